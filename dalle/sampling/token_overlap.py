"""Overlap of two images in token space: the share of equal tokens at the best shift.

A shift by less than a token changes most tokens, so images are aligned to the pixel before they are encoded. In a world
of few shapes, images with one shape in common share most tokens; the colours of the other shapes tell them apart.
"""

from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.models.dvae.model import DiscreteVAE

MAX_SHIFT = 2  # tokens, in each direction
COPY_SHARE = 0.5  # from this share of equal tokens on, an image counts as a copy (docs/lab.md)
COPY_LEVELS = 80  # of 255; in a copy, no cell's mean colours differ by more than this (docs/lab.md)


@dataclass(frozen=True)
class TokenComparison:
    """Comparison of a sample with a training image through the dVAE."""

    overlap: float  # share of equal tokens, in [0, 1]
    cell_levels: float | None  # largest difference of a cell's mean colours, of 255; None: too few equal tokens

    @property
    def is_copy(self) -> bool:
        return self.overlap >= COPY_SHARE and self.cell_levels is not None and self.cell_levels <= COPY_LEVELS


@torch.inference_mode()
def compare_tokens(dvae: DiscreteVAE, image: Tensor, tokens: Tensor, others: Tensor) -> list[TokenComparison]:
    """Compare a sample, (3, H, W) in [0, 1] with tokens (h, w), with n training images, (n, 3, H, W).

    Each training image is compared as it is and aligned. Its colours are also compared after the dVAE, since the sample
    has the blur of the dVAE.
    """
    shifts = [best_shift(other, image, MAX_SHIFT * dvae.downsample) for other in others]
    moved = torch.stack([move(other, *shift) for other, shift in zip(others, shifts, strict=True)])
    views = torch.stack([others, moved], dim=1).to(next(dvae.parameters()).device)  # (n, 2, 3, H, W)
    encoded = dvae.encode(views.flatten(0, 1)).unflatten(0, (-1, 2))  # (n, 2, h, w)
    compared = []
    for two, codes, shift in zip(views, encoded, shifts, strict=True):
        overlap = max(token_overlap(tokens, other_tokens) for other_tokens in codes.cpu())
        if overlap < COPY_SHARE:
            compared.append(TokenComparison(overlap, None))
            continue
        shown = torch.cat([two, dvae.decode(codes)]).cpu()  # (4, 3, H, W)
        cell = max(1, dvae.downsample // 2)
        differences = [cell_levels(view, image, cell, by) for view, by in zip(shown, [(0, 0), shift] * 2, strict=True)]
        compared.append(TokenComparison(overlap, min(differences)))
    return compared


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


def cell_levels(image: Tensor, other: Tensor, cell: int, moved: tuple[int, int] = (0, 0)) -> float:
    """Return the largest difference of a cell's mean colours, of 255, of two images (3, H, W).

    Cells are squares of `cell` pixels. moved: pixels that one image was moved down and right; cells where it has no
    content of its own do not count.
    """
    difference = F.avg_pool2d(image, cell) - F.avg_pool2d(other, cell)  # (3, H / cell, W / cell)
    height, width = difference.shape[-2:]
    (top, bottom), (left, right) = [(ceil(max(0, by) / cell), ceil(max(0, -by) / cell)) for by in moved]
    return 255 * float(difference[:, top : height - bottom, left : width - right].abs().amax())


def move(image: Tensor, down: int, right: int) -> Tensor:
    """Move an image (3, H, W) by some pixels. Border pixels are repeated where it moves away."""
    margin = max(abs(down), abs(right))
    padded = F.pad(image[None], [margin] * 4, mode="replicate")[0]
    top, left = margin - down, margin - right
    return padded[:, top : top + image.shape[-2], left : left + image.shape[-1]]


def best_shift(image: Tensor, target: Tensor, max_shift: int) -> tuple[int, int]:
    """Return the pixels to move `image` down and right to where it correlates best with `target`, both (3, H, W).

    At most `max_shift` pixels in each direction.
    """
    image, target = image.mean(dim=0), target.mean(dim=0)
    height, width = target.shape
    size = (2 * height, 2 * width)  # without this padding, what moves out at one side would come in at the other
    spectrum = torch.fft.rfft2(target - target.mean(), s=size) * torch.fft.rfft2(image - image.mean(), s=size).conj()
    correlation = torch.fft.irfft2(spectrum, s=size).roll((max_shift, max_shift), dims=(0, 1))
    best = int(correlation[: 2 * max_shift + 1, : 2 * max_shift + 1].argmax())
    down, right = divmod(best, 2 * max_shift + 1)
    return down - max_shift, right - max_shift
