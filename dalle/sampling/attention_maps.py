"""Attention maps: attention from each image token to each word of the caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.attention import TextImageSoftmax, causal
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import image_attend_mask


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Settings of the attention maps that sample.py writes beside its images."""

    attention: bool = False  # also write heat maps of the attention to each word, for each kept image
    attention_layer: int | None = None  # layer of the maps, from 1; None: the mean over all layers


@dataclass(frozen=True)
class RecordedAttention:
    """Attention function with a dense mask that records the weights from image states to text states."""

    masked: Tensor  # (I, I) bool: true where an image state, by row, does not attend to another
    text_positions: int
    softmax: TextImageSoftmax
    weights: list[Tensor]  # (b, heads, I, T) for each call

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        sizes = [self.text_positions, len(self.masked)]
        (text_q, q), (text_k, k), (text_v, v) = (x.split(sizes, dim=2) for x in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        text_padding_mask = None if key_padding_mask is None else key_padding_mask[:, None, None]
        on_text, on_image = self.softmax(q @ text_k.mT, q @ k.mT, text_padding_mask, self.masked.to(q.device))
        self.weights.append(on_text)
        return torch.cat([causal(text_q, text_k, text_v, key_padding_mask), on_text @ text_v + on_image @ v], dim=2)


def record_attention(model: Transformer, weights: list[Tensor]) -> dict[str, RecordedAttention]:
    """Build a recording attention for each pattern of the model, by name, for `Transformer.forward`.

    All of them append to `weights`, one tensor per layer.
    """
    sequence = model.sequence
    return {
        name: RecordedAttention(
            ~image_attend_mask(pattern, sequence.grid), sequence.text_positions, model.softmax, weights
        )
        for name, pattern in model.patterns.items()
    }


@torch.inference_mode()
def attention_to_text(model: Transformer, caption: Tensor, tokens: Tensor) -> Tensor:
    """Compute the attention from the state that predicts each image token to each text state, averaged over heads.

    (T,) caption, (h, w) image tokens -> (depth, h, w, T) weights on the CPU. With one softmax over text and image the
    weights of a token sum to at most 1, as the rest goes to earlier image tokens; with separate softmaxes to 1.

    Raises:
        ValueError: an image of another size than the model's.
    """
    grid = model.sequence.grid
    if tokens.shape != (grid, grid):
        raise ValueError(
            f"the image has {tokens.shape[0]} x {tokens.shape[1]} tokens, but the transformer has {grid} x {grid}; "
            "leave attention=true out for images of other sizes"
        )
    device = model.image_head.weight.device
    recorded: list[Tensor] = []
    image = rearrange(tokens, "h w -> 1 (h w)")
    model(caption[None].to(device), image.to(device), record_attention(model, recorded))
    by_layer = torch.stack([weights.mean(dim=(0, 1)).float().cpu() for weights in recorded])
    return rearrange(by_layer, "layers (h w) t -> layers h w t", h=len(tokens))


def check_layer(model: Transformer, layer: int | None) -> None:
    """Raise `ValueError` if the model has no such layer, counted from 1."""
    if layer is not None and not 1 <= layer <= model.config.depth:
        raise ValueError(f"attention_layer={layer} is not a layer of the model; use 1 to {model.config.depth}")


class WordMaps(NamedTuple):
    """Heat map of each word of a caption, and the attention to the rest of the text, averaged over image tokens."""

    words: list[str]
    maps: Tensor  # (words, h, w): attention of each image token to the word's tokens, in [0, 1]
    start: float  # attention to the start of text
    padding: float  # attention to the padding after the caption


def word_maps(attention: Tensor, words: Sequence[tuple[str, Sequence[int]]], layer: int | None = None) -> WordMaps:
    """Build heat maps from `attention_to_text`, (depth, h, w, T).

    words: words and their token ids, as `CaptionTokenizer.words` returns them.
    layer: from 1 to depth; None: the mean over all.
    """
    cells = attention.mean(dim=0) if layer is None else attention[layer - 1]  # (h, w, T)
    # text state 0 is the start of text, and token j is the input of state j + 1
    lengths = [len(ids) for _, ids in words]
    rest = cells.shape[-1] - 1 - sum(lengths)
    start, *by_word, padding = cells.split([1, *lengths, rest], dim=-1)
    maps = torch.stack([weights.sum(dim=-1) for weights in by_word])
    return WordMaps([word for word, _ in words], maps, start.mean().item(), padding.sum(dim=-1).mean().item())
