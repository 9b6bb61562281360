"""Classifier-free guidance: what a caption changes, scaled up (Ho and Salimans 2022; not in the paper).

Each image is decoded twice, side by side in one batch: with its caption, and with the empty caption. Both are given
the token that is drawn from the guided logits. The model must have seen empty captions in training, which
`caption_dropout` of `dalle.stages.transformer` shows it.
"""

import torch
from torch import Tensor

from dalle.models.transformer.kv_cache import CaptionCache, TextKeys
from dalle.models.transformer.sequence import PAD, Stream


def empty_caption(stream: Stream) -> Tensor:
    """(1, T) int64: the start of text, and nothing that follows."""
    return torch.full((1, stream.text_positions), PAD)


def beside_empty(text: CaptionCache, empty: CaptionCache) -> CaptionCache:
    """The caches of some captions, then as many times that of the empty caption."""
    return [
        TextKeys(
            _beside(layer.keys, without.keys),
            _beside(layer.values, without.values),
            None if layer.hidden is None or without.hidden is None else _beside(layer.hidden, without.hidden),
        )
        for layer, without in zip(text, empty, strict=True)
    ]


def guided(logits: Tensor, scale: float) -> Tensor:
    """(2b, v) logits, of b images with their captions and then without -> (b, v) logits.

    A scale of 1 is the model with its captions, 0 the model without; more than 1 follows the captions more closely,
    at the price of variety.
    """
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _beside(rows: Tensor, row: Tensor) -> Tensor:
    return torch.cat([rows, row.expand_as(rows)])
