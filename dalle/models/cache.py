"""Key and value caches for decoding: a caption's once for all its candidates, theirs as small as can be.

A cache is an argument of the decoding calls, never part of a model. It is the one thing that they write into.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.attention import Softmax, joint_softmax
from dalle.models.patterns import Pattern, image_mask


class TextKeys(NamedTuple):
    """What image states attend to of captions, in one layer."""

    keys: Tensor  # (captions, heads, T, d)
    values: Tensor  # (captions, heads, T, d)
    hidden: Tensor | None = None  # (captions, T) bool: text states that no state sees


CaptionCache = list[TextKeys]
"""One per layer, from the first."""


@dataclass(frozen=True)
class Layout:
    """Where the keys of one pattern lie while the image states 0..I-1 are decoded in turn."""

    slots: int  # keys, and values, that a candidate keeps
    write: list[int]  # (I) the slot of each state
    read: list[slice]  # (I) the stretch of slots that holds all that each state sees
    mask: Tensor | None  # (I, slots) bool, which of them it sees; None where that is always the whole stretch


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
    holds = torch.full((slots,), -1, device="cpu")  # the state whose key is in each slot
    for state in range(grid * grid):
        holds[slot[state]] = state
        visible[state] = (holds >= 0) & sees[state, holds.clamp(min=0)]
        if visible[state].sum() != sees[state].sum():
            raise ValueError(f"{pattern} on grid={grid} overwrites a key that image state {state} needs")

    read = [slice(int(row.min()), int(row.max()) + 1) for row in (states.nonzero() for states in visible)]
    whole = all(bool(visible[state, stretch].all()) for state, stretch in enumerate(read))
    return Layout(slots, slot.tolist(), read, None if whole else visible)


class LayerCache:
    """Keys and values of one layer for captions * candidates images, a caption's candidates side by side."""

    def __init__(self, text: TextKeys, candidates: int, layout: Layout, softmax: Softmax = joint_softmax):
        captions, heads, _, width = text.keys.shape
        self.text = text
        # Zeros: what the mask hides is still multiplied by its weight of zero, so it must be finite.
        self.keys = text.keys.new_zeros(captions * candidates, heads, layout.slots, width)
        self.values = torch.zeros_like(self.keys)
        self.layout = layout
        self.mask = None if layout.mask is None else layout.mask.to(text.keys.device)
        self.softmax = softmax

    def attend(self, position: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add image state `position`; mix what it sees of caption and image.

        Query, key and value (b, heads, 1, d) each -> (b, heads, 1, d).
        """
        captions, slot, stretch = len(self.text.keys), self.layout.write[position], self.layout.read[position]
        self.keys[:, :, slot] = k[:, :, 0]
        self.values[:, :, slot] = v[:, :, 0]
        keys, values = self.keys[:, :, stretch], self.values[:, :, stretch]  # (b, heads, s, d)

        q = q * q.shape[-1] ** -0.5
        # One matrix product per caption and head serves all of the caption's candidates.
        together = rearrange(q, "(captions m) heads 1 d -> captions heads m d", captions=captions)
        on_text = together @ self.text.keys.mT
        if self.text.hidden is not None:
            on_text = on_text.masked_fill(self.text.hidden[:, None, None], -torch.inf)
        on_text = rearrange(on_text, "captions heads m t -> (captions m) heads 1 t")
        on_image = q @ keys.mT  # (b, heads, 1, s)
        if self.mask is not None:
            on_image = on_image.masked_fill(~self.mask[position, stretch], -torch.inf)

        on_text, on_image = self.softmax(on_text, on_image)
        together = rearrange(on_text, "(captions m) heads 1 t -> captions heads m t", captions=captions)
        from_text = rearrange(together @ self.text.values, "captions heads m d -> (captions m) heads 1 d")
        return from_text + on_image @ values


Cache = list[LayerCache]
"""One per layer, from the first."""
