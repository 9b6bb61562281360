"""PSNR and SSIM: right by hand, and the same as torchmetrics'."""

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dalle.evaluation.similarity import psnr, ssim


@pytest.fixture
def images() -> torch.Tensor:
    """Soft blobs, so that windows have means and spreads of all kinds."""
    coarse = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (24, 30), mode="bilinear")


def disturbed(images: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + amount * noise).clamp(0, 1)


@pytest.mark.parametrize("amount", [0.01, 0.1, 0.5])
def test_ssim_is_torchmetrics_own_where_windows_lie_within_the_picture(images, amount):
    """torchmetrics goes on beyond the edges with the picture's reflection, unlike the authors."""
    others = disturbed(images, amount)
    _, everywhere = structural_similarity_index_measure(others, images, data_range=1.0, return_full_image=True)
    theirs = everywhere[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(images, others), theirs, atol=2e-5, rtol=1e-4)


def test_psnr_is_torchmetrics_own(images):
    others = disturbed(images, 0.1)
    theirs = [peak_signal_noise_ratio(b, a, data_range=1.0) for a, b in zip(images, others, strict=True)]
    torch.testing.assert_close(psnr(images, others), torch.stack(theirs))


def test_a_constant_error_has_the_decibels_of_its_square(images):
    others = torch.full_like(images, 0.5)
    assert psnr(others, others + 0.1).tolist() == pytest.approx([20.0] * 4, abs=1e-4)


def test_equal_pictures_are_alike_and_their_ratio_is_finite(images):
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 4)
    assert psnr(images, images).tolist() == pytest.approx([100.0] * 4)
    flat = torch.zeros_like(images)
    assert all(math.isfinite(value) for value in ssim(flat, flat).tolist())


def test_pictures_smaller_than_a_window_are_refused_in_words():
    with pytest.raises(ValueError, match=r"windows of 11 pixels, and pictures of \(8, 12\) are smaller"):
        ssim(torch.zeros(1, 3, 8, 12), torch.zeros(1, 3, 8, 12))
