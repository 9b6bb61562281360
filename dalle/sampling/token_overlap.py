"""Overlap of two images in token space: the share of equal tokens at the best shift.

A shift by less than a token changes most tokens, so images are aligned to the pixel before they are encoded.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 2  # tokens, in each direction
COPY_SHARE = 0.5  # from this share of equal tokens on, an image counts as a copy (docs/lab.md)


def token_overlap(tokens: Tensor, other: Tensor, max_shift: int = MAX_SHIFT) -> float:
    """Return the largest share of equal tokens of two (h, w) grids over all shifts of up to `max_shift` tokens.

    The background does not count: positions where both have the most frequent token of both grids. The share is of the
    positions with anything else, in the grid that has more of them; 1 if both are background alone.
    """
    background = int(torch.bincount(torch.cat([tokens.flatten(), other.flatten()])).argmax())
    foreground = max(int((tokens != background).sum()), int((other != background).sum()))
    if foreground == 0:
        return 1.0
    shifts = range(-max_shift, max_shift + 1)
    equal = (count_equal_tokens(tokens, other, down, right, background) for down, right in product(shifts, shifts))
    return max(equal) / foreground


def count_equal_tokens(tokens: Tensor, other: Tensor, down: int, right: int, background: int) -> int:
    """Count the equal tokens other than `background` if `other` is moved `down` and `right`; what moves out is lost."""
    height, width = tokens.shape
    window = tokens[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
    other_window = other[max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)]
    return int(((window == other_window) & (window != background)).sum())


def align(images: Tensor, target: Tensor, max_shift: int) -> Tensor:
    """Move each image to where it correlates best with `target`: (n, 3, H, W), (3, H, W) -> (n, 3, H, W).

    At most `max_shift` pixels in each direction. Border pixels are repeated where an image moves away.
    """
    height, width = target.shape[-2:]
    shifts = [_best_shift(image.mean(dim=0), target.mean(dim=0), max_shift) for image in images]
    padded = F.pad(images, [max_shift] * 4, mode="replicate")
    tops, lefts = zip(*[(max_shift - down, max_shift - right) for down, right in shifts], strict=True)
    moved = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def _best_shift(image: Tensor, target: Tensor, max_shift: int) -> tuple[int, int]:
    """Return the pixels to move `image` down and right so that it correlates best with `target`, both (H, W)."""
    height, width = target.shape
    size = (2 * height, 2 * width)  # without this padding, what moves out at one side would come in at the other
    spectrum = torch.fft.rfft2(target - target.mean(), s=size) * torch.fft.rfft2(image - image.mean(), s=size).conj()
    correlation = torch.fft.irfft2(spectrum, s=size).roll((max_shift, max_shift), dims=(0, 1))
    best = int(correlation[: 2 * max_shift + 1, : 2 * max_shift + 1].argmax())
    down, right = divmod(best, 2 * max_shift + 1)
    return down - max_shift, right - max_shift
