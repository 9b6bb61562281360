"""PSNR and SSIM of image pairs, by torchmetrics, in float64."""

from torch import Tensor

from dalle.optional_dependencies import check_installed

WINDOW = 11  # pixels: side of SSIM's window, a Gaussian with a standard deviation of 1.5
MAX_PSNR = 100.0  # dB, used for equal images, for which torchmetrics returns infinity


def check_torchmetrics() -> None:
    """Raise `ValueError` if torchmetrics is missing. Called before images are decoded."""
    check_installed("eval", "metrics=[reconstruction]", "torchmetrics")


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each pair, at most 100: (b, 3, h, w) each in [0, 1] -> (b,) dB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # on first use: it takes seconds to import

    inputs = references.double(), images.double()
    return peak_signal_noise_ratio(*inputs, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(max=MAX_PSNR)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Compute the structural similarity of each pair (Wang et al. 2004): (b, 3, h, w) each in [0, 1] -> (b,), up to 1.

    Colour channels are compared separately, in windows that lie wholly within the image.

    Raises:
        ValueError: images smaller than a window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(images.shape[-2:]) < WINDOW:
        size = tuple(images.shape[-2:])
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, but got {size}")
    # unlike the authors', its mean includes windows that reach into the reflected padding: leave these out
    edge = WINDOW // 2
    output = structural_similarity_index_measure(
        references.double(), images.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    assert isinstance(output, tuple)  # the mean, and a similarity for each pixel
    return output[1][:, :, edge:-edge, edge:-edge].mean(dim=(1, 2, 3))
