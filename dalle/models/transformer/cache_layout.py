"""Layouts of KV caches: the slot of each image position's key and value, and which slots a position reads.

A `CacheLayout`, derived from an attention pattern, has slots only for the keys that later positions attend to. There
are two ways to index it. `SlicedIndex` returns a view of the shortest range of slots that a step needs. `GatheredIndex`
returns tensors of equal shapes at every step, so that one CUDA graph of a step can be replayed for all of them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from dalle.models.transformer.patterns import Pattern, image_attend_mask


@dataclass(frozen=True)
class CacheLayout:
    """Cache layout of one attention pattern, for decoding image positions 0..I-1 in order."""

    slots: int  # slots per candidate
    write_slots: list[int]  # (I) slot of each position
    read_slices: list[slice]  # (I) range of slots with all keys that each position attends to
    attend_mask: Tensor  # (I, slots) bool: slots that each position attends to


@lru_cache(maxsize=64)
def cache_layout(pattern: Pattern, grid: int) -> CacheLayout:
    """Derive the cache layout of `pattern` from its slots and its attend mask.

    Raises:
        ValueError: a slot is overwritten while a later position still attends to its key.
    """
    attends = image_attend_mask(pattern, grid)
    slot = pattern.slot(torch.arange(grid * grid, device="cpu"), grid)
    slots = int(slot.max()) + 1

    attend_mask = torch.zeros(grid * grid, slots, dtype=torch.bool, device="cpu")
    stored = torch.full((slots,), -1, device="cpu")  # position whose key is in each slot; -1: none
    for position in range(grid * grid):
        stored[slot[position]] = position
        attend_mask[position] = (stored >= 0) & attends[position, stored.clamp(min=0)]
        if attend_mask[position].sum() != attends[position].sum():
            raise ValueError(f"{pattern} on grid={grid} overwrites a key that image position {position} attends to")

    attended = (row.nonzero() for row in attend_mask)
    read_slices = [slice(int(indices.min()), int(indices.max()) + 1) for indices in attended]
    return CacheLayout(slots, slot.tolist(), read_slices, attend_mask)


class CacheIndex(Protocol):
    """Cache index: reads and writes a cached tensor, (..., slots, d), at the step of one image position."""

    layout: CacheLayout
    copied_slots: int  # slots that `read` copies; 0 if it returns a view
    queries: int  # positions of an image in one step
    needs_mask: bool  # False if `masked` is None at every position

    def write(self, cached: Tensor, position: Any, entries: Tensor) -> None:
        """Write `entries`, (..., 1, d), into the slot of `position` in `cached`, (..., slots, d)."""

    def read(self, cached: Tensor, position: Any) -> Tensor:
        """Read the slots that `position` attends to, and possibly more: (..., slots, d) -> (..., s, d)."""
        ...

    def masked(self, position: Any) -> Tensor | None:
        """Return which of the s slots that `read` returns are masked: bool, broadcastable to (..., s).

        None if no slot is masked.
        """
        ...


class SlicedIndex:
    """Cache index for integer positions; reads are views of the shortest range of slots."""

    copied_slots, queries = 0, 1

    def __init__(self, layout: CacheLayout, device: torch.device):
        self.layout = layout
        attend_mask = layout.attend_mask
        all_attended = all(bool(row[read].all()) for row, read in zip(attend_mask, layout.read_slices, strict=True))
        self._masked = None if all_attended else (~attend_mask).to(device)
        self.needs_mask = not all_attended

    def write(self, cached: Tensor, position: int, entries: Tensor) -> None:
        cached.narrow(-2, self.layout.write_slots[position], 1).copy_(entries)

    def read(self, cached: Tensor, position: int) -> Tensor:
        slots = self.layout.read_slices[position]
        return cached.narrow(-2, slots.start, slots.stop - slots.start)

    def masked(self, position: int) -> Tensor | None:
        return None if self._masked is None else self._masked[position, self.layout.read_slices[position]]


class GatheredIndex:
    """Cache index for positions on the device, (1,) int64 tensors: no shape or address depends on their value."""

    queries, needs_mask = 1, True

    def __init__(self, layout: CacheLayout, device: torch.device):
        self.layout = layout
        length = max(slots.stop - slots.start for slots in layout.read_slices)
        starts = torch.tensor([min(slots.start, layout.slots - length) for slots in layout.read_slices], device="cpu")
        index = starts[:, None] + torch.arange(length, device="cpu")  # (I, s)
        self._write_slots = torch.tensor(layout.write_slots, device=device)
        self.copied_slots = 0 if length == layout.slots else length
        self._read_slots = index.to(device)
        self._masked = (~layout.attend_mask.gather(1, index)).to(device)

    def write(self, cached: Tensor, position: Tensor, entries: Tensor) -> None:
        cached.index_copy_(cached.ndim - 2, self._write_slots[position], entries.to(cached.dtype))

    def read(self, cached: Tensor, position: Tensor) -> Tensor:
        if not self.copied_slots:
            return cached
        return cached.index_select(cached.ndim - 2, self._read_slots[position].squeeze(0))

    def masked(self, position: Tensor) -> Tensor:
        return self._masked[position]
