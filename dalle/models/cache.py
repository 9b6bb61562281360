"""What decoding keeps: a caption's keys and values once for all its candidates, theirs as small as can be.

A cache is an argument of the decoding calls, never part of a model. It is the one thing that they write into.

A candidate's image states are kept as their keys and values, or as the states themselves, from which keys and values
are linear maps. States take half the memory. The maps then act on what each query is compared with and on what it
finds, which for few keys costs little more: see `StateCache`.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor

from dalle.models.attention import SelfAttention, Softmax
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

    def __init__(self, text: TextKeys, candidates: int, places: Places, softmax: Softmax):
        self.text = text
        self.images = len(text.keys) * candidates
        self.places = places
        self.softmax = softmax

    @abstractmethod
    def attend(self, position: Any, x: Tensor, attention: SelfAttention) -> Tensor:
        """Add an image state; mix what it sees of caption and image: (b, 1, heads * d) -> (b, heads, 1, d).

        position: the state's number, as `places` wants it.
        attention: makes queries, keys and values of x.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the images take, without their captions."""

    def _mix_text(self, position: Any, q: Tensor, on_image: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries (b, heads, 1, d), scores of image keys (b, heads, 1, s) -> the text's part, image weights."""
        captions = len(self.text.keys)
        # One matrix product per caption and head serves all of the caption's candidates.
        together = rearrange(q, "(captions m) heads 1 d -> captions heads m d", captions=captions)
        on_text = together @ self.text.keys.mT
        if self.text.hidden is not None:
            on_text = on_text.masked_fill(self.text.hidden[:, None, None], -torch.inf)
        on_text = rearrange(on_text, "captions heads m t -> (captions m) heads 1 t")
        unseen = self.places.unseen(position)
        if unseen is not None:
            on_image = on_image.masked_fill(unseen, -torch.inf)

        on_text, on_image = self.softmax(on_text, on_image)
        together = rearrange(on_text, "(captions m) heads 1 t -> captions heads m t", captions=captions)
        from_text = rearrange(together @ self.text.values, "captions heads m d -> (captions m) heads 1 d")
        return from_text, on_image


class KeyCache(LayerCache):
    """Keeps keys and values."""

    def __init__(self, text: TextKeys, candidates: int, places: Places, softmax: Softmax):
        super().__init__(text, candidates, places, softmax)
        _, heads, _, width = text.keys.shape
        # Zeros: what the mask hides is still multiplied by its weight of zero, so it must be finite.
        self.keys = text.keys.new_zeros(self.images, heads, places.layout.slots, width)
        self.values = torch.zeros_like(self.keys)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def attend(self, position: Any, x: Tensor, attention: SelfAttention) -> Tensor:
        q, k, v = attention.project(x)
        self.places.put(self.keys, position, k)
        self.places.put(self.values, position, v)

        q = q * q.shape[-1] ** -0.5
        on_image = q @ self.places.take(self.keys, position).mT
        from_text, weights = self._mix_text(position, q, on_image)
        return from_text + weights @ self.places.take(self.values, position)


class StateCache(LayerCache):
    """Keeps the states that keys and values are made from: half as much, and exact.

    With k = W x + b, a query's score q k is (q W) x + q b: one map of the query serves all keys. The weighted sum of
    values is likewise the map of the weighted sum of states. Both maps together take the arithmetic that making the
    key and the value took, but each head then reads whole states instead of its own d of their heads * d numbers.
    In the paper's column layers, 16 states on average, that is 4% of the layer's arithmetic.
    """

    def __init__(self, text: TextKeys, candidates: int, places: Places, softmax: Softmax):
        super().__init__(text, candidates, places, softmax)
        _, heads, _, width = text.keys.shape
        self.states = text.keys.new_zeros(self.images, places.layout.slots, heads * width)

    @property
    def nbytes(self) -> int:
        return self.states.nbytes

    def attend(self, position: Any, x: Tensor, attention: SelfAttention) -> Tensor:
        split = "(three heads d) ... -> three heads d ..."
        to_q, to_k, to_v = rearrange(attention.qkv.weight, split, three=3, heads=attention.heads)  # (heads, d, width)
        q_bias, k_bias, v_bias = rearrange(attention.qkv.bias, split, three=3, heads=attention.heads)  # (heads, d)
        x = x.to(to_q.dtype)  # norms compute in float32
        self.places.put(self.states, position, x)
        states = self.places.take(self.states, position)  # (b, s, width)

        q = einsum(x.squeeze(1), to_q, "b width, heads d width -> b heads d") + q_bias
        q = q * q.shape[-1] ** -0.5
        sought = einsum(q, to_k, "b heads d, heads d width -> b heads width")
        on_image = sought @ states.mT + einsum(q, k_bias, "b heads d, heads d -> b heads").unsqueeze(-1)
        from_text, weights = self._mix_text(position, q.unsqueeze(2), on_image.unsqueeze(2))
        found = weights.squeeze(2) @ states  # (b, heads, width)
        from_image = einsum(found, to_v, "b heads width, heads d width -> b heads d") + weights.sum(dim=-1) * v_bias
        return from_text + from_image.unsqueeze(2)


Cache = list[LayerCache]
"""One per layer, from the first."""
