"""Key-value caches of decoding, and their layouts.

A caption's keys and values are kept once for all its candidates, theirs as few as a layer's attention pattern still
needs. A cache is an argument of the decoding calls, never part of a model: the one thing that they write into.

A `Layout` follows from the pattern: the slot of each state's key and value. It is read in one of two ways: by `Slices`,
which give a step a view of little more than it sees, or by `Tables`, which give every step tensors of the same shapes,
so that one CUDA graph of a step can be replayed for all of them.

A candidate's image states are kept as their keys and values (`KeyCache`), or as the states themselves, from which keys
and values are linear maps (`StateCache`): half the memory, and for few keys little more arithmetic.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.attention import SelfAttention, StateAttention, TextImageSoftmax
from dalle.models.transformer.patterns import Pattern, image_mask


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


class TextKeys(NamedTuple):
    """What image states attend to of captions, in one layer."""

    keys: Tensor  # (captions, heads, T, d)
    values: Tensor  # (captions, heads, T, d)
    hidden: Tensor | None = None  # (captions, T) bool: text states that no state sees


CaptionCache = list[TextKeys]
"""One per layer, from the first."""


class LayerCache(ABC):
    """What one layer keeps of captions * candidates images, a caption's candidates side by side."""

    def __init__(
        self, text: TextKeys, candidates: int, places: Places, softmax: TextImageSoftmax, layer: SelfAttention
    ):
        self.text = text
        self.images = len(text.keys) * candidates
        self.places = places
        self.softmax = softmax
        self.text_hidden: Tensor | None = None  # (images, 1, 1, T)
        if text.hidden is not None:
            self.text_hidden = text.hidden.repeat_interleave(candidates, dim=0)[:, None, None]
        self._allocate(layer)

    @abstractmethod
    def _allocate(self, layer: SelfAttention) -> None:
        """Make the tensors that `attend` writes into."""

    @abstractmethod
    def attend(self, position: Any, x: Tensor, layer: SelfAttention) -> Tensor:
        """Add an image state; mix what it sees of caption and image: (b, 1, heads * d) -> (b, heads, 1, d).

        position: the state's number, as `places` wants it.
        layer: makes queries, keys and values of x.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the images take, without their captions."""

    @property
    @abstractmethod
    def activations(self) -> int:
        """Numbers of one image that a step of attention holds at a time: scores, and copies of what it reads."""

    def _mix_text(self, position: Any, q: Tensor, image_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries (b, heads, 1, d), scores of image keys (b, heads, 1, s) -> the text's part, image weights."""
        captions = len(self.text.keys)
        # One matrix product per caption and head serves all of the caption's candidates.
        together = rearrange(q, "(captions m) heads 1 d -> captions heads m d", captions=captions)
        text_scores = together @ self.text.keys.mT
        text_scores = rearrange(text_scores, "captions heads m t -> (captions m) heads 1 t")
        text_weights, image_weights = self.softmax(
            text_scores, image_scores, self.text_hidden, self.places.unseen(position)
        )
        together = rearrange(text_weights, "(captions m) heads 1 t -> captions heads m t", captions=captions)
        from_text = rearrange(together @ self.text.values, "captions heads m d -> (captions m) heads 1 d")
        return from_text, image_weights

    def _scores(self) -> int:
        """Numbers of one image that scores take: before and after masks and softmax."""
        _, heads, text_positions, _ = self.text.keys.shape
        return 4 * heads * (text_positions + max(each.stop - each.start for each in self.places.layout.read))


class KeyCache(LayerCache):
    """Keeps keys and values."""

    def _allocate(self, layer: SelfAttention) -> None:
        _, heads, _, width = self.text.keys.shape
        # Zeros: what the mask hides is still multiplied by its weight of zero, so it must be finite.
        self.keys = self.text.keys.new_zeros(self.images, heads, self.places.layout.slots, width)
        self.values = torch.zeros_like(self.keys)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def activations(self) -> int:
        _, heads, _, width = self.keys.shape
        return self._scores() + 2 * self.places.copied * heads * width

    def attend(self, position: Any, x: Tensor, layer: SelfAttention) -> Tensor:
        q, k, v = layer.project(x)
        self.places.put(self.keys, position, k)
        self.places.put(self.values, position, v)

        q = q * q.shape[-1] ** -0.5
        scores = q @ self.places.take(self.keys, position).mT
        from_text, weights = self._mix_text(position, q, scores)
        return from_text + weights @ self.places.take(self.values, position)


class StateCache(LayerCache):
    """Keeps the states that keys and values are made from, see `StateAttention`."""

    def _allocate(self, layer: SelfAttention) -> None:
        self.states = self.text.keys.new_zeros(self.images, self.places.layout.slots, StateAttention(layer).size)

    @property
    def nbytes(self) -> int:
        return self.states.nbytes

    @property
    def activations(self) -> int:
        _, heads, _, width = self.text.keys.shape
        # what each head looks for and finds is as wide as the states
        return self._scores() + (3 * heads + self.places.copied) * heads * width

    def attend(self, position: Any, x: Tensor, layer: SelfAttention) -> Tensor:
        attention = StateAttention(layer)
        self.places.put(self.states, position, attention.keep(x))
        states = self.places.take(self.states, position)  # (b, s, size)
        q, scores = attention.scores(x, states)
        from_text, weights = self._mix_text(position, q, scores)
        return from_text + attention.mix(weights, states)


Cache = list[LayerCache]
"""One per layer, from the first."""
