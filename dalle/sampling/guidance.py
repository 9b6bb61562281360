"""Classifier-free guidance: amplify the effect of the caption on the logits (Ho and Salimans 2022; not in the paper).

Each image is decoded twice in one batch: with its caption (conditional) and with the empty caption (unconditional). The
token sampled from the guided logits is fed to both. The model must have been trained on empty captions, with
`caption_dropout` of `dalle.stages.transformer`.
"""

import torch
from torch import Tensor

from dalle.models.transformer.kv_cache import PrefixCache, PrefixKV
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.sequence import PAD, SequenceLayout
from dalle.sampling.sampling_config import DecodingConfig


class Guidance:
    """Guidance of the images that a decoding session samples. Without guidance, all methods return their argument."""

    def __init__(self, model: Transformer, config: DecodingConfig, device: torch.device):
        """Prefill the empty caption, once for all captions, if `config` is guided."""
        self.scale = 1.0 if config.guidance is None else config.guidance
        self.unconditional = model.prefill(empty_caption(model.sequence).to(device)) if config.guided else None

    def extend_prefix(self, prefix: PrefixCache) -> PrefixCache:
        """Append the empty caption for each caption of a prefix cache: (b, ...) -> (2b, ...)."""
        return prefix if self.unconditional is None else append_unconditional(prefix, self.unconditional)

    def duplicate(self, inputs: Tensor) -> Tensor:
        """Duplicate the inputs of a pass, for the captions and for the empty one: (b, ...) -> (2b, ...)."""
        return inputs if self.unconditional is None else torch.cat([inputs, inputs])

    def combine(self, logits: Tensor) -> Tensor:
        """Combine the logits of a pass with `apply_guidance`: (2b, ..., v) -> (b, ..., v)."""
        return logits if self.unconditional is None else apply_guidance(logits, self.scale)


def empty_caption(sequence: SequenceLayout) -> Tensor:
    """Return the empty caption: (1, T) int64, padding only; the model puts the start token before it."""
    return torch.full((1, sequence.text_positions), PAD)


def append_unconditional(conditional: PrefixCache, empty: PrefixCache) -> PrefixCache:
    """Append the prefix cache of the empty caption, once for each caption: (b, ...) and (1, ...) -> (2b, ...)."""
    return [
        PrefixKV(
            _append_copies(layer.keys, unconditional.keys),
            _append_copies(layer.values, unconditional.values),
            None
            if layer.key_padding_mask is None or unconditional.key_padding_mask is None
            else _append_copies(layer.key_padding_mask, unconditional.key_padding_mask),
        )
        for layer, unconditional in zip(conditional, empty, strict=True)
    ]


def apply_guidance(logits: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance: (2b, ..., v) logits, conditional then unconditional -> (b, ..., v).

    A scale of 1 gives the conditional logits, 0 the unconditional ones. More than 1 follows the captions more closely
    and reduces variety.
    """
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _append_copies(rows: Tensor, row: Tensor) -> Tensor:
    return torch.cat([rows, row.expand_as(rows)])
