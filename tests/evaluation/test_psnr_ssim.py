"""PSNR and SSIM against their definitions."""

import math

import pytest
import torch

from dalle.evaluation.metrics.psnr_ssim import check_torchmetrics, psnr, ssim


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth random images, whose windows have various means and variances."""
    coarse = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (24, 30), mode="bilinear")


def add_noise(images: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + amount * noise).clamp(0, 1)


def ssim_by_the_paper(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Equations 6 and 13 to 17 of Wang et al. 2004, window by window, in float64."""
    line = torch.exp(-0.5 * ((torch.arange(11).double() - 5) / 1.5) ** 2)
    window = torch.outer(line, line).flatten() / line.sum() ** 2

    def windows(pixels: torch.Tensor) -> torch.Tensor:  # (b, 3, h - 10, w - 10, 121)
        return pixels.double().unfold(2, 11, 1).unfold(3, 11, 1).flatten(-2)

    x, y = windows(images), windows(others)
    mean_x, mean_y = ((patches * window).sum(-1, keepdim=True) for patches in (x, y))
    variance_x, variance_y, covariance = (
        (one * other * window).sum(-1)
        for one, other in ((x - mean_x, x - mean_x), (y - mean_y, y - mean_y), (x - mean_x, y - mean_y))
    )
    mean_x, mean_y = mean_x.squeeze(-1), mean_y.squeeze(-1)
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("amount", [1e-4, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("size", [(24, 30), (11, 11), (11, 40)])
def test_ssim_agrees_with_the_paper_in_windows_within_the_image(images, amount, size):
    images = images[:, :, : size[0], : size[1]]
    others = add_noise(images, amount)
    torch.testing.assert_close(ssim(images, others), ssim_by_the_paper(images, others), atol=1e-9, rtol=0)


def test_ssim_of_uniform_images():
    """In float32 the variances of uniform windows would be rounding errors."""
    flat = torch.full((2, 3, 16, 16), 0.95)
    torch.testing.assert_close(ssim(flat, flat - 0.01), ssim_by_the_paper(flat, flat - 0.01), atol=1e-9, rtol=0)


def test_psnr_agrees_with_its_definition(images):
    others = add_noise(images, 0.1)
    mean_square = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(psnr(images, others), -10 * mean_square.log10(), atol=1e-5, rtol=0)


def test_missing_torchmetrics_raises(monkeypatch):
    monkeypatch.setattr("dalle.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"reconstruction\] needs torchmetrics: .* pip install 'dalle\[eval\]'"):
        check_torchmetrics()


def test_psnr_of_a_constant_error(images):
    others = torch.full_like(images, 0.5)
    assert psnr(others, others + 0.1).tolist() == pytest.approx([20.0] * 4, abs=1e-4)


def test_equal_images_have_ssim_1_and_psnr_100(images):
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 4)
    assert psnr(images, images).tolist() == pytest.approx([100.0] * 4)
    flat = torch.zeros_like(images)
    assert all(math.isfinite(value) for value in ssim(flat, flat).tolist())


def test_image_smaller_than_a_window_raises():
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, but got \(8, 12\)"):
        ssim(torch.zeros(1, 3, 8, 12), torch.zeros(1, 3, 8, 12))
