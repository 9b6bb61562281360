"""PSNR and SSIM: right by hand, and by the definition of the paper."""

import math

import pytest
import torch

from dalle.evaluation.metrics.similarity import check_torchmetrics, psnr, ssim


@pytest.fixture
def images() -> torch.Tensor:
    """Soft blobs, so that windows have means and spreads of all kinds."""
    coarse = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (24, 30), mode="bilinear")


def disturbed(images: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + amount * noise).clamp(0, 1)


def ssim_by_the_paper(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Equations 6 and 13 to 17 of Wang et al. 2004, window by window, in float64."""
    line = torch.exp(-0.5 * ((torch.arange(11).double() - 5) / 1.5) ** 2)
    window = torch.outer(line, line).flatten() / line.sum() ** 2

    def windows(pixels: torch.Tensor) -> torch.Tensor:  # (b, 3, h - 10, w - 10, 121)
        return pixels.double().unfold(2, 11, 1).unfold(3, 11, 1).flatten(-2)

    x, y = windows(images), windows(others)
    mean_x, mean_y = ((each * window).sum(-1, keepdim=True) for each in (x, y))
    spread_x, spread_y, common = (
        (one * other * window).sum(-1)
        for one, other in ((x - mean_x, x - mean_x), (y - mean_y, y - mean_y), (x - mean_x, y - mean_y))
    )
    mean_x, mean_y = mean_x.squeeze(-1), mean_y.squeeze(-1)
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (luminance * (2 * common + 0.03**2) / (spread_x + spread_y + 0.03**2)).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("amount", [1e-4, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("size", [(24, 30), (11, 11), (11, 40)])
def test_ssim_is_the_papers_in_windows_within_the_picture(images, amount, size):
    images = images[:, :, : size[0], : size[1]]
    others = disturbed(images, amount)
    torch.testing.assert_close(ssim(images, others), ssim_by_the_paper(images, others), atol=1e-9, rtol=0)


def test_flat_pictures_differ_as_little_as_their_levels():
    """In float32 the spreads of flat windows were rounding alone."""
    flat = torch.full((2, 3, 16, 16), 0.95)
    torch.testing.assert_close(ssim(flat, flat - 0.01), ssim_by_the_paper(flat, flat - 0.01), atol=1e-9, rtol=0)


def test_psnr_is_ten_times_the_logarithm_of_one_over_the_mean_square(images):
    others = disturbed(images, 0.1)
    mean_square = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(psnr(images, others), -10 * mean_square.log10(), atol=1e-5, rtol=0)


def test_missing_torchmetrics_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr("dalle.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"reconstruction\] needs torchmetrics: .* pip install 'dalle\[eval\]'"):
        check_torchmetrics()


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
