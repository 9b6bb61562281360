"""Decoder-only transformer over caption and image tokens as one sequence (Sec. 2.2, App. B.1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from dalle import checkpoint
from dalle.models.attention import TextImageSoftmax, causal
from dalle.models.blocks import Float32Linear, TransformerBlock
from dalle.models.linear_cross_entropy import linear_cross_entropy
from dalle.models.transformer.cache_layout import GatheredIndex, SlicedIndex, cache_layout
from dalle.models.transformer.config import TransformerConfig
from dalle.models.transformer.kv_cache import Cache, HiddenStateCache, KVCache, PrefixCache, PrefixKV
from dalle.models.transformer.patterns import PATTERNS, pattern_names
from dalle.models.transformer.prefix_chunk import PrefixChunk
from dalle.models.transformer.sequence import SequenceEmbedding, SequenceLayout
from dalle.models.transformer.sparse_attention import build_attention
from dalle.models.transformer.window_cache import Window, WindowIndex
from dalle.tokenizer import CaptionTokenizer


class Logits(NamedTuple):
    """Logits of the next token at each position, fp32; text and image tokens have separate softmaxes."""

    text: Tensor  # (b, T, text_vocabulary + 1); the last class is padding
    image: Tensor  # (b, I, image_vocabulary)


class Targets(NamedTuple):
    """Targets of the next token at each position."""

    text: Tensor  # (b, T) classes in [0, text_vocabulary], or IGNORED
    image: Tensor  # (b, I) image tokens, or distributions over them, (b, I, image_vocabulary)


class TokenLosses(NamedTuple):
    """Negative log-likelihood of the next token at each position in nats, fp32; 0 for ignored targets."""

    text: Tensor  # (b, T)
    image: Tensor  # (b, I)


class Transformer(nn.Module):
    """Autoregressive model of p(caption, image). Trained by `dalle.stages.transformer`.

    Raises:
        ValueError: invalid sizes or pattern names in `config`.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.sequence = SequenceLayout(
            config.text_positions,
            config.text_vocabulary,
            config.image_vocabulary,
            config.grid,
            config.pads,
            config.image_position_embedding,
        )
        self.pattern_names = pattern_names(config.patterns, config.depth)
        self.patterns = {name: PATTERNS.lookup(name).build(config.pattern_options) for name in set(self.pattern_names)}

        self.embed = SequenceEmbedding(self.sequence, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.attend = nn.ModuleDict(
            {
                name: build_attention(
                    pattern, config.text_positions, config.grid, config.attention, config.attention_normalisation
                )
                for name, pattern in self.patterns.items()
            }
        )
        self.softmax = TextImageSoftmax(config.attention_normalisation)
        blocks = nn.ModuleList(TransformerBlock(config.block) for _ in range(config.depth))
        self.layers = cast(Sequence[TransformerBlock], blocks)
        self.norm = nn.LayerNorm(config.width)
        self.text_head = Float32Linear(config.width, config.text_vocabulary + 1)
        self.image_head = Float32Linear(config.width, config.image_vocabulary)
        self._init_weights()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the layers' matrices, and of keys and values."""
        return next(parameter.dtype for parameter in self.layers[0].parameters() if parameter.ndim == 2)

    @overload
    def forward(
        self, caption: Tensor, image: Tensor, attend: Mapping[str, Callable[..., Tensor]] | None = None
    ) -> Logits: ...

    @overload
    def forward(self, caption: Tensor, image: Tensor, *, targets: Targets) -> TokenLosses: ...

    def forward(
        self,
        caption: Tensor,
        image: Tensor,
        attend: Mapping[str, Callable[..., Tensor]] | None = None,
        targets: Targets | None = None,
    ) -> Logits | TokenLosses:
        """Compute the logits of the next token at every position, or its loss if targets are given.

        caption: (b, T) token ids, padded with `PAD`.
        image: (b, I) image tokens.
        attend: attention function of each pattern, by its name; None: the model's own, `self.attend`.
        targets: of each position; their losses take less memory than all logits.
        """
        attention_fns = self.attend if attend is None else attend
        x = self.dropout(self.embed(caption, image))  # (b, n, d)
        key_padding_mask = self.sequence.key_padding_mask(caption)  # (b, T), or None
        for layer, name in zip(self.layers, self.pattern_names, strict=True):
            x = layer(x, partial(attention_fns[name], key_padding_mask=key_padding_mask))  # (b, n, d)
        text, image_states = self.sequence.split(self.norm(x))
        if targets is not None:
            return TokenLosses(
                linear_cross_entropy(text, self.text_head, targets.text),
                linear_cross_entropy(image_states, self.image_head, targets.image),
            )
        return Logits(self.text_head(text), self.image_head(image_states))

    def prefill(self, caption: Tensor) -> PrefixCache:
        """Compute keys and values of (b, T) captions, for `new_cache`. In every pattern text attends to text only."""
        prefix: PrefixCache = []
        key_padding_mask = self.sequence.key_padding_mask(caption)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            prefix.append(PrefixKV(k.contiguous(), v.contiguous(), key_padding_mask))
            return causal(q, k, v, key_padding_mask)

        x = self.embed.text(caption)
        for layer in self.layers:
            x = layer(x, attend)
        return prefix

    def new_cache(
        self, prefix: PrefixCache, candidates: int, recompute_kv: bool = False, static_shapes: bool = False
    ) -> Cache:
        """Allocate a KV cache for `candidates` images of each caption, which share the caption's keys and values.

        recompute_kv: layers that need all image positions to the end cache hidden states instead of keys and values, in
            half the memory. It is a little slower, with the same result (see
            `dalle.models.transformer.kv_cache.HiddenStateCache`).
        static_shapes: use static shapes; `decode_one_token` then takes positions as tensors.
        """
        indices, cache_types = {}, {}
        for name, pattern in self.patterns.items():
            layout = cache_layout(pattern, self.config.grid)
            indices[name] = (GatheredIndex if static_shapes else SlicedIndex)(layout, prefix[0].keys.device)
            cache_types[name] = (
                HiddenStateCache if recompute_kv and layout.slots == self.sequence.image_positions else KVCache
            )
        return [
            cache_types[name](keys_values, candidates, indices[name], self.softmax, layer.attention.branch)
            for keys_values, name, layer in zip(prefix, self.pattern_names, self.layers, strict=True)
        ]

    def new_window_cache(self, prefix: PrefixCache, candidates: int, size: int) -> Cache:
        """Allocate a KV cache for `decode_window` with windows of `size` positions, otherwise as `new_cache`.

        It has a slot for every image position: more memory than `new_cache` for patterns that need few of them.

        Raises:
            ValueError: a window without positions, or larger than the image.
        """
        if not 1 <= size <= self.sequence.image_positions:
            raise ValueError(
                f"a window of {size} positions does not fit an image of {self.sequence.image_positions} tokens; "
                f"use 1 to {self.sequence.image_positions}"
            )
        device = prefix[0].keys.device
        indices = {
            name: WindowIndex(pattern, self.config.grid, size, device) for name, pattern in self.patterns.items()
        }
        return [
            KVCache(keys_values, candidates, indices[name], self.softmax, layer.attention.branch)
            for keys_values, name, layer in zip(prefix, self.pattern_names, self.layers, strict=True)
        ]

    def prefill_image(self, previous: Tensor, cache: Cache, max_images: int, max_positions: int) -> None:
        """Process the first n image positions at once: `cache` is then as n calls of `decode_one_token` leave it.

        Candidates of a caption with equal tokens are processed once.

        previous: (b, n) previous token of each position; for position 0, `sequence.start_of_image`.
        cache: from `new_cache`; earlier images in it are overwritten.
        max_images, max_positions: largest number of images, and of positions of each, to process at a time.
        """
        length, candidates = previous.shape[1], cache[0].batch_size // len(cache[0].prefix.keys)
        by_caption = [slice(first, first + candidates) for first in range(0, len(previous), candidates)]
        shared = [bool((previous[rows] == previous[rows.start]).all()) for rows in by_caption]
        for start in range(0, length, max_positions):
            chunk = range(start, min(start + max_positions, length))
            chunks = {
                name: PrefixChunk(pattern, self.config.grid, chunk, previous.device)
                for name, pattern in self.patterns.items()
            }
            for rows, is_shared in zip(by_caption, shared, strict=True):
                stop = rows.start + 1 if is_shared else rows.stop
                for first in range(rows.start, stop, max_images):
                    self._prefill_chunk(previous, cache, chunk, chunks, slice(first, min(first + max_images, stop)))
        for rows, is_shared in zip(by_caption, shared, strict=True):
            for tensor in (tensor for layer in cache if is_shared for tensor in layer.tensors):
                tensor[rows.start + 1 : rows.stop] = tensor[rows.start]

    def _prefill_chunk(
        self, previous: Tensor, cache: Cache, positions: range, chunks: Mapping[str, PrefixChunk], rows: slice
    ) -> None:
        """Write a chunk of positions of some images of one caption, rows of the batch, to the cache."""
        tokens = previous[rows, positions.start : positions.stop]
        x = self.embed.embed_image_tokens(tokens, torch.arange(positions.start, positions.stop, device=tokens.device))
        for layer, name, layer_cache in zip(self.layers, self.pattern_names, cache, strict=True):
            x = layer.decode(x, partial(chunks[name].attend, cache=layer_cache, rows=rows))  # (b, n, d)

    def decode_one_token(self, previous: Tensor, position: int | Tensor, cache: Cache) -> Tensor:
        """Compute the logits of image token `position` from the previous token: (b,) -> (b, image_vocabulary).

        Call it for positions 0, 1, 2 ... in order; for position 0, `previous` is `sequence.start_of_image`. b is
        captions * candidates, with a caption's candidates adjacent. Writes to `cache`. The position is an int, or a
        (1,) int64 tensor if the cache was built with `static_shapes`.
        """
        x = self.embed.embed_decoding_step(previous, position).unsqueeze(1)  # (b, 1, d)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer.decode(x, partial(layer_cache.attend, position))  # (b, 1, d)
        return self.image_head(self.norm(x)).squeeze(1)

    def decode_window(self, previous: Tensor, starts: Tensor, cache: Cache) -> Tensor:
        """Compute the logits of a window of image tokens: (b, n) -> (b, n, image_vocabulary).

        Row i gets the logits of positions starts[i], starts[i] + 1 ..., equal to those of `decode_one_token` with the
        same previous tokens. All earlier positions must have been processed. A position can be processed again with
        another previous token, and then all positions after it must be. Writes to `cache`.

        previous: (b, n) previous token of each position; for position 0, `sequence.start_of_image`.
        starts: (b,) first position of each row. Logits of positions past the last one mean nothing.
        cache: from `new_window_cache` with size n.
        """
        window = Window.starting_at(starts, previous.shape[1])
        x = self.embed.embed_image_tokens(previous, window.positions)  # (b, n, d)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer.decode(x, partial(layer_cache.attend, window))  # (b, n, d)
        return self.image_head(self.norm(x))

    def _init_weights(self) -> None:
        """Initialise as the Sparse Transformer (Child et al. 2019, Sec. 6); it is not known if DALL-E kept all of it.

        With s = `initial_scale`, standard deviations are: weights s / sqrt(inputs), the last of each residual branch
        times 1 / sqrt(2 depth); embeddings s / sqrt(width), those of rows and columns times 1 / sqrt(2), since two are
        added. Biases and the output heads are 0, so all logits are initially 0.
        """
        width, scale = self.config.width, self.config.initial_scale
        std, residual_scale = scale / math.sqrt(width), 1 / math.sqrt(2 * self.config.depth)
        for module in self.embed.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        for layer in self.layers:
            mlp_out = residual_scale * scale / math.sqrt(layer.mlp_width)
            layer.init_weights(qkv=std, attention_out=residual_scale * std, expand=std, mlp_out=mlp_out)
        for head in (self.text_head, self.image_head):
            nn.init.normal_(head.weight)  # overwritten below; without it, `axis` and recorded numbers would differ
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        for axis in (self.embed.row, self.embed.column):
            nn.init.normal_(axis.weight, std=scale / math.sqrt(2 * width))

    def save(self, folder: str | Path, meta: dict | None = None, tokenizer: CaptionTokenizer | None = None) -> None:
        """Write the model to a checkpoint folder, which `load` reads. `meta`: further entries, JSON-serialisable."""
        checkpoint.save_model(folder, "transformer", self, self.config, meta, tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> "Transformer":
        """Load a model in eval mode from a checkpoint folder. Raises `CheckpointError` if it is missing or invalid."""
        return checkpoint.load_model(folder, "transformer", TransformerConfig, cls)
