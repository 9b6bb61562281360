"""How alike two pictures are: signal-to-noise ratio and structural similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SPREAD = 11, 1.5  # side and standard deviation of the Gaussian window, in pixels
STABLE_MEANS, STABLE_SPREADS = 0.01**2, 0.03**2  # keep quotients of flat windows finite
LEAST_ERROR = 1e-10  # mean square of pixels in [0, 1] below which pictures count as equal: 100 dB


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, at most 100: two of (b, 3, h, w) in [0, 1] -> (b,) dB."""
    return -10 * (images - others).square().mean(dim=(1, 2, 3)).clamp(min=LEAST_ERROR).log10()


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004): two of (b, 3, h, w) in [0, 1] -> (b,), 1 for equal ones.

    Colours are compared one by one, in windows that lie wholly within the picture. Raises ValueError for pictures
    smaller than a window.
    """
    if min(images.shape[-2:]) < WINDOW:
        size = tuple(images.shape[-2:])
        raise ValueError(f"SSIM compares windows of {WINDOW} pixels, and pictures of {size} are smaller")
    places = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    line = torch.exp(-0.5 * (places / SPREAD) ** 2)
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1).unsqueeze(1), window[None, None]).squeeze(1).unflatten(0, values.shape[:2])

    one, other = mean(images), mean(others)
    spread_one = (mean(images**2) - one**2).clamp(min=0)
    spread_other = (mean(others**2) - other**2).clamp(min=0)
    common = mean(images * others) - one * other
    likeness = (2 * one * other + STABLE_MEANS) / (one**2 + other**2 + STABLE_MEANS)
    likeness = likeness * (2 * common + STABLE_SPREADS) / (spread_one + spread_other + STABLE_SPREADS)
    return likeness.mean(dim=(1, 2, 3))
