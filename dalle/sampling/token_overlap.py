"""Overlap of two images in token space: the share of equal tokens at the best shift."""

from itertools import product

import torch
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
