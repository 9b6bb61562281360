"""Where a layer's cache keeps what its pattern still shows, and how a step of decoding gets at it.

A `Layout` follows from the pattern. It is read in one of two ways: by `Slices`, which give a step a view of little
more than it sees, or by `Tables`, which give every step tensors of the same shapes, so that one CUDA graph of a
step can be replayed for all of them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from dalle.models.patterns import Pattern, image_mask


@dataclass(frozen=True)
class Layout:
    """Where one pattern's states lie while the image states 0..I-1 are decoded in turn."""

    slots: int  # states that a candidate keeps
    write: list[int]  # (I) the slot of each state
    read: list[slice]  # (I) the stretch of slots that holds all that each state sees
    mask: Tensor  # (I, slots) bool: which of them it sees


@lru_cache(maxsize=64)
def layout_of(pattern: Pattern, grid: int) -> Layout:
    """The compact cache of `pattern`, derived from what it sees.

    Raises:
        ValueError: the pattern's slots overwrite a state that a later one still sees.
    """
    sees = image_mask(pattern, grid)
    slot = pattern.slot(torch.arange(grid * grid, device="cpu"), grid)
    slots = int(slot.max()) + 1

    visible = torch.zeros(grid * grid, slots, dtype=torch.bool, device="cpu")
    holds = torch.full((slots,), -1, device="cpu")  # the state that is in each slot
    for state in range(grid * grid):
        holds[slot[state]] = state
        visible[state] = (holds >= 0) & sees[state, holds.clamp(min=0)]
        if visible[state].sum() != sees[state].sum():
            raise ValueError(f"{pattern} on grid={grid} overwrites a key that image state {state} needs")

    read = [slice(int(row.min()), int(row.max()) + 1) for row in (states.nonzero() for states in visible)]
    return Layout(slots, slot.tolist(), read, visible)


class Places(Protocol):
    """Gets at what a cache keeps, a tensor (..., slots, d), for the step of one image state."""

    layout: Layout
    copied: int  # how many states `take` copies; 0 where it is a view

    def put(self, kept: Tensor, position: Any, new: Tensor) -> None:
        """Write (..., 1, d) into the state's slot."""

    def take(self, kept: Tensor, position: Any) -> Tensor:
        """(..., s, d): all that the state sees, and perhaps more."""
        ...

    def unseen(self, position: Any) -> Tensor | None:
        """Which of the s it does not see: bool that broadcasts to (..., s); None where it sees all."""
        ...


class Slices:
    """Positions are whole numbers; what is read is a view, of a stretch as short as it can be."""

    copied = 0

    def __init__(self, layout: Layout, device: torch.device):
        self.layout = layout
        whole = all(bool(seen[stretch].all()) for seen, stretch in zip(layout.mask, layout.read, strict=True))
        self.hidden = None if whole else ~layout.mask.to(device)

    def put(self, kept: Tensor, position: int, new: Tensor) -> None:
        kept.narrow(-2, self.layout.write[position], 1).copy_(new)

    def take(self, kept: Tensor, position: int) -> Tensor:
        stretch = self.layout.read[position]
        return kept.narrow(-2, stretch.start, stretch.stop - stretch.start)

    def unseen(self, position: int) -> Tensor | None:
        return None if self.hidden is None else self.hidden[position, self.layout.read[position]]


class Tables:
    """Positions are (1,) int64 tensors, looked up where they are: no shape and no address depends on them."""

    def __init__(self, layout: Layout, device: torch.device):
        self.layout = layout
        length = max(stretch.stop - stretch.start for stretch in layout.read)
        starts = torch.tensor([min(stretch.start, layout.slots - length) for stretch in layout.read], device="cpu")
        index = starts[:, None] + torch.arange(length, device="cpu")  # (I, s)
        self.write = torch.tensor(layout.write, device=device)
        self.copied = 0 if length == layout.slots else length
        self.index = index.to(device)
        self.hidden = ~layout.mask.gather(1, index).to(device)

    def put(self, kept: Tensor, position: Tensor, new: Tensor) -> None:
        kept.index_copy_(kept.ndim - 2, self.write[position], new.to(kept.dtype))

    def take(self, kept: Tensor, position: Tensor) -> Tensor:
        return kept.index_select(kept.ndim - 2, self.index[position].squeeze(0)) if self.copied else kept

    def unseen(self, position: Tensor) -> Tensor:
        return self.hidden[position]
