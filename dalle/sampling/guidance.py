"""Classifier-free guidance: amplify the effect of the caption on the logits (Ho and Salimans 2022; not in the paper).

Each image is decoded twice in one batch: with its caption (conditional) and with the empty caption (unconditional). The
token sampled from the guided logits is fed to both. The model must have been trained on empty captions, with
`caption_dropout` of `dalle.stages.transformer`.
"""

import torch
from torch import Tensor

from dalle.models.transformer.kv_cache import PrefixCache, PrefixKV
from dalle.models.transformer.sequence import PAD, SequenceLayout


def empty_caption(sequence: SequenceLayout) -> Tensor:
    """The empty caption: (1, T) int64, the start of text followed by padding."""
    return torch.full((1, sequence.text_positions), PAD)


def beside_empty(text: PrefixCache, empty: PrefixCache) -> PrefixCache:
    """Append the cache of the empty caption to those of the captions, once for each of them."""
    return [
        PrefixKV(
            _beside(layer.keys, without.keys),
            _beside(layer.values, without.values),
            None
            if layer.key_padding_mask is None or without.key_padding_mask is None
            else _beside(layer.key_padding_mask, without.key_padding_mask),
        )
        for layer, without in zip(text, empty, strict=True)
    ]


def guided(logits: Tensor, scale: float) -> Tensor:
    """Apply guidance: (2b, v) logits, conditional then unconditional -> (b, v) logits.

    A scale of 1 gives the conditional logits, 0 the unconditional ones. More than 1 follows the captions more closely
    and reduces variety.
    """
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _beside(rows: Tensor, row: Tensor) -> Tensor:
    return torch.cat([rows, row.expand_as(rows)])
