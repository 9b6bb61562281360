"""What decoding keeps: a caption's keys and values once for all its candidates, theirs as small as can be.

A cache is an argument of the decoding calls, never part of a model. It is the one thing that they write into.

A candidate's image states are kept as their keys and values, or as the states themselves, from which keys and values
are linear maps. States take half the memory. The maps then act on what each query is compared with and on what it
finds, which for few keys costs little more: see `StateCache`.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.attention import SelfAttention, StateAttention, TextImageSoftmax
from dalle.models.layouts import Places


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
