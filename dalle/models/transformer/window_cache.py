"""Cache index for windows of image positions: several consecutive positions per image, each image at its own.

Parallel decoding processes a window of guessed tokens in one pass and keeps only those that turn out right, so the
later keys and values of a window are provisional. Every position has a slot of its own, and a query never reads a slot
after its own position. A wrong entry is therefore hidden until the next pass, which starts at the first position that
may be wrong, overwrites it. A ring buffer would need the slot of an older position for a provisional entry.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.models.transformer.cache_layout import CacheLayout
from dalle.models.transformer.patterns import Pattern, image_attend_mask


@dataclass(frozen=True)
class Window:
    """Image positions of one pass: `size` consecutive ones for each of b images.

    Positions past the last one are allowed, so that images near their end take part; their outputs mean nothing.
    """

    positions: Tensor  # (b, size) int64
    first: int  # smallest position of all images
    last: int  # largest position of all images

    @classmethod
    def starting_at(cls, starts: Tensor, size: int) -> "Window":
        """Create the window of `size` positions from `starts`, (b,) int64."""
        positions = starts.unsqueeze(1) + torch.arange(size, device=starts.device)
        return cls(positions, int(starts.min()), int(starts.max()) + size - 1)


class WindowIndex:
    """Cache index for a `Window` of positions; reads are views of the range of positions that all images need."""

    copied_slots, needs_mask = 0, True

    def __init__(self, pattern: Pattern, grid: int, size: int, device: torch.device):
        """size: positions per image and pass."""
        self.queries = size
        attends = image_attend_mask(pattern, grid)
        last = len(attends) - 1
        slots = last + size  # a window that starts at the last position reaches past it
        attend_mask = torch.zeros(slots, slots, dtype=torch.bool, device="cpu")
        attend_mask[: last + 1, : last + 1] = attends
        # positions past the last one attend to themselves: no NaN
        attend_mask[last + 1 :, last + 1 :].fill_diagonal_(True)
        # first slot that this position or a later one attends to
        first_attended = attend_mask[: last + 1].int().argmax(dim=1)
        self._first_read = first_attended.flip(0).cummin(dim=0).values.flip(0).tolist()
        self._masked = (~attend_mask).to(device)  # inverted on the CPU: operations on the meta device load much code
        reads = [slice(first, slots) for first in self._first_read]  # the images' positions may be far apart
        self.layout = CacheLayout(slots, list(range(slots)), reads, attend_mask)

    def write(self, cached: Tensor, position: Window, entries: Tensor) -> None:
        """Write `entries`, (b, heads, size, d), to the window's slots in `cached`, (b, heads, slots, d)."""
        if position.last - position.first < entries.shape[-2]:  # all images are at the same position
            cached.narrow(-2, position.first, entries.shape[-2]).copy_(entries)
        else:
            rows = torch.arange(len(cached), device=cached.device).unsqueeze(1)
            cached[rows, :, position.positions] = entries.transpose(1, 2).to(cached.dtype)

    def read(self, cached: Tensor, position: Window) -> Tensor:
        start = self._first_read[position.first]
        return cached.narrow(-2, start, position.last + 1 - start)

    def masked(self, position: Window) -> Tensor:
        """Return which of the slots that `read` returns are masked: (b, 1, size, s) bool."""
        start = self._first_read[position.first]
        return self._masked[:, start : position.last + 1][position.positions].unsqueeze(1)
