"""KV caches for decoding.

The caption's keys and values are stored once for all its candidates. For image positions, a layer stores only the keys
and values that its attention pattern still needs. A cache is an argument of the decoding calls, never part of a model,
and the only argument that they modify. `dalle.models.transformer.cache_layout` gives the slot of each position.

A layer caches keys and values (`KVCache`), or the hidden states from which they are computed (`HiddenStateCache`): half
the memory, and for few keys little more arithmetic.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dalle.models.attention import SelfAttention, TextImageSoftmax
from dalle.models.cpu_attention import flash_attention, is_flash_supported, merge_attention
from dalle.models.transformer.cache_layout import CacheIndex
from dalle.models.transformer.hidden_state_attention import HiddenStateAttention

# most images of a batch that flash attention computes on a CPU: 1.03 to 1.09 times as fast for 1 to 16, slower for 256
MAX_FLASH_IMAGES = 32


class PrefixKV(NamedTuple):
    """Prefix KV of one layer: keys and values of the captions, shared by all their candidates."""

    keys: Tensor  # (captions, heads, T, d)
    values: Tensor  # (captions, heads, T, d)
    key_padding_mask: Tensor | None = None  # (captions, T) bool, true for padding, which is masked


PrefixCache = list[PrefixKV]
"""Keys and values of the captions, one entry per layer, from the first."""


class LayerCache(ABC):
    """KV cache of one transformer layer, for captions * candidates images.

    A caption's candidates are adjacent in the batch.
    """

    def __init__(
        self, prefix: PrefixKV, candidates: int, index: CacheIndex, softmax: TextImageSoftmax, attention: SelfAttention
    ):
        self.prefix = prefix
        self.batch_size = len(prefix.keys) * candidates  # images
        self.index = index
        self.softmax = softmax
        self.text_padding_mask: Tensor | None = None  # (b, 1, 1, T)
        if prefix.key_padding_mask is not None:
            self.text_padding_mask = prefix.key_padding_mask.repeat_interleave(candidates, dim=0)[:, None, None]
        self._allocate(attention)

    @abstractmethod
    def _allocate(self, attention: SelfAttention) -> None:
        """Allocate the tensors that `attend` writes into."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Cached tensors, (b, ..., slots, d) each, of b images."""

    @abstractmethod
    def entries(self, x: Tensor, keys: Tensor, values: Tensor, attention: SelfAttention) -> list[Tensor]:
        """Return what `tensors` store of new positions, (b, ..., n, d) each: of their states, or of keys and values."""

    @abstractmethod
    def keys_values(self, rows: slice, slots: slice, attention: SelfAttention) -> tuple[Tensor, Tensor]:
        """Return keys and values in some slots of some images, rows of the batch: (b, heads, s, d) each."""

    @abstractmethod
    def attend(self, position: Any, x: Tensor, attention: SelfAttention) -> Tensor:
        """Add image positions to the cache and attend from them: (b, n, heads * d) -> (b, heads, n, d).

        position: index of the image position, of the type that `index` accepts; n is 1 unless it is a `Window`.
        attention: projects x to queries, keys and values.
        """

    @property
    def nbytes(self) -> int:
        """Bytes that the cache takes for the positions of all images, without the captions' keys and values."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    @abstractmethod
    def activations(self) -> int:
        """Number of activations per image in one attention step: scores, and copies of cached tensors."""

    def _attend_to_text(self, position: Any, q: Tensor, image_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to the caption's keys, and normalise the scores of text and image keys.

        q: (b, heads, n, d), scaled; image_scores: (b, heads, n, s). Returns the text's share of the output,
        (b, heads, n, d), and the attention weights of the image keys, (b, heads, n, s).
        """
        captions, n = len(self.prefix.keys), q.shape[2]
        # one matrix product per caption and head for all of the caption's candidates
        text_scores = split_captions(join_candidates(q, captions) @ self.prefix.keys.mT, n)
        text_weights, image_weights = self.softmax(
            text_scores, image_scores, self.text_padding_mask, self.index.masked(position)
        )
        from_text = split_captions(join_candidates(text_weights, captions) @ self.prefix.values, n)
        return from_text, image_weights

    def _scores(self) -> int:
        """Number of score activations per image, before and after masking and softmax."""
        _, heads, text_positions, _ = self.prefix.keys.shape
        keys = text_positions + max(read_slice.stop - read_slice.start for read_slice in self.index.layout.read_slices)
        return 4 * heads * self.index.queries * keys


# einops would read better, but takes longer than small products, and a step has dozens of these


def join_candidates(x: Tensor, captions: int) -> Tensor:
    """Join the queries of a caption's m candidates: (captions * m, heads, n, d) -> (captions, heads, m * n, d)."""
    b, heads, n, d = x.shape
    if b == captions:
        return x
    return x.reshape(captions, b // captions, heads, n, d).transpose(1, 2).reshape(captions, heads, -1, d)


def split_captions(x: Tensor, n: int) -> Tensor:
    """Split what `join_candidates` joined: (captions, heads, m * n, d) -> (captions * m, heads, n, d)."""
    captions, heads, rows, d = x.shape
    if rows == n:
        return x
    return x.view(captions, heads, rows // n, n, d).transpose(1, 2).reshape(-1, heads, n, d)


class KVCache(LayerCache):
    """KV cache of one transformer layer that stores keys and values."""

    def _allocate(self, attention: SelfAttention) -> None:
        _, heads, _, width = self.prefix.keys.shape
        # zeros: masked values are still multiplied by a weight of zero, so they must be finite
        size = self.batch_size, heads, self.index.layout.slots, width
        # not zeros_like: on the meta device, where memory is estimated, its first call loads sympy, for half a second
        self.keys, self.values = self.prefix.keys.new_zeros(size), self.prefix.keys.new_zeros(size)
        plain = self.softmax.joint and not self.index.needs_mask and self.text_padding_mask is None
        on_cpu = self.keys.device.type == "cpu" and self.keys.dtype == torch.float32
        self._use_flash = plain and on_cpu and self.batch_size <= MAX_FLASH_IMAGES and is_flash_supported()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]

    def entries(self, x: Tensor, keys: Tensor, values: Tensor, attention: SelfAttention) -> list[Tensor]:
        return [keys, values]

    def keys_values(self, rows: slice, slots: slice, attention: SelfAttention) -> tuple[Tensor, Tensor]:
        return self.keys[rows, :, slots], self.values[rows, :, slots]

    @property
    def activations(self) -> int:
        _, heads, _, width = self.keys.shape
        return self._scores() + 2 * self.index.copied_slots * heads * width

    def attend(self, position: Any, x: Tensor, attention: SelfAttention) -> Tensor:
        q, k, v = attention.project(x)
        self.index.write(self.keys, position, k)
        self.index.write(self.values, position, v)

        keys, values = self.index.read(self.keys, position), self.index.read(self.values, position)
        # not with gradients, which flash attention lacks, or under autocast, which gives q another dtype
        if self._use_flash and q.dtype == keys.dtype and not torch.is_grad_enabled():
            captions, n = len(self.prefix.keys), q.shape[2]
            from_text = flash_attention(join_candidates(q, captions), self.prefix.keys, self.prefix.values)
            output, log_sum_exp = (split_captions(tensor, n) for tensor in from_text)
            return merge_attention(flash_attention(q, keys, values), (output, log_sum_exp))
        q = q * q.shape[-1] ** -0.5
        from_text, weights = self._attend_to_text(position, q, q @ keys.mT)
        return from_text + weights @ values


class HiddenStateCache(LayerCache):
    """KV cache of one transformer layer that stores the hidden states from which keys and values are computed.

    See `HiddenStateAttention`.
    """

    def _allocate(self, attention: SelfAttention) -> None:
        size = HiddenStateAttention(attention).size
        self.states = self.prefix.keys.new_zeros(self.batch_size, self.index.layout.slots, size)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.states]

    def entries(self, x: Tensor, keys: Tensor, values: Tensor, attention: SelfAttention) -> list[Tensor]:
        return [HiddenStateAttention(attention).cache_entry(x)]

    def keys_values(self, rows: slice, slots: slice, attention: SelfAttention) -> tuple[Tensor, Tensor]:
        _, keys, values = attention.project(self.states[rows, slots, : HiddenStateAttention(attention).width])
        return keys, values

    @property
    def activations(self) -> int:
        _, heads, _, width = self.prefix.keys.shape
        # each head's projected query and context are as wide as the states
        return self._scores() + (3 * heads + self.index.copied_slots) * heads * width

    def attend(self, position: Any, x: Tensor, attention: SelfAttention) -> Tensor:
        state_attention = HiddenStateAttention(attention)
        self.index.write(self.states, position, state_attention.cache_entry(x))
        states = self.index.read(self.states, position)  # (b, s, size)
        q, scores = state_attention.scores(x, states)
        from_text, weights = self._attend_to_text(position, q, scores)
        return from_text + state_attention.weighted_values(weights, states)


Cache = list[LayerCache]
"""KV cache of a model, one entry per layer, from the first."""
