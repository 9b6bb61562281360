"""Attention maps: how much each cell of a picture attended to each word of its caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dalle.models.attention import TextImageSoftmax, causal
from dalle.models.transformer.model import Transformer
from dalle.models.transformer.patterns import image_mask


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Settings of the attention maps that sample.py draws beside its pictures."""

    attention: bool = False  # also draw where in each kept picture each word was attended to
    attention_layer: int | None = None  # in this layer, from 1; None: in all on average


@dataclass(frozen=True)
class Recording:
    """Attends just as a layer with this mask does, and keeps what image states gave to text states."""

    mask: Tensor  # (I, I) bool: which image states see which
    text_positions: int
    softmax: TextImageSoftmax
    kept: list[Tensor]  # (b, heads, I, T) for each call

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        sizes = [self.text_positions, len(self.mask)]
        (text_q, q), (text_k, k), (text_v, v) = (x.split(sizes, dim=2) for x in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        text_hidden = None if hidden is None else hidden[:, None, None]
        on_text, on_image = self.softmax(q @ text_k.mT, q @ k.mT, text_hidden, ~self.mask.to(q.device))
        self.kept.append(on_text)
        return torch.cat([causal(text_q, text_k, text_v, hidden), on_text @ text_v + on_image @ v], dim=2)


def recordings(model: Transformer, kept: list[Tensor]) -> dict[str, Recording]:
    """For `Transformer.forward`: a recording for each of the model's patterns, all of which keep into one list."""
    stream = model.stream
    return {
        name: Recording(image_mask(pattern, stream.grid), stream.text_positions, model.softmax, kept)
        for name, pattern in model.patterns.items()
    }


@torch.inference_mode()
def attention_to_text(model: Transformer, caption: Tensor, tokens: Tensor) -> Tensor:
    """Weights that the state which predicts each cell of a picture gave to each text state, by layer, mean of heads.

    (T,) caption, (h, w) image tokens -> (depth, h, w, T) weights on the CPU. With one softmax over text and picture
    those of a cell add up to at most 1, the rest being given to cells before it; with separate ones to 1.

    Raises:
        ValueError: a picture of another size than the model's.
    """
    grid = model.stream.grid
    if tokens.shape != (grid, grid):
        raise ValueError(
            f"the picture is {tokens.shape[0]} x {tokens.shape[1]} tokens, and the transformer sees {grid} x {grid}; "
            "leave attention=true out for others"
        )
    device = model.image_head.weight.device
    kept: list[Tensor] = []
    image = rearrange(tokens, "h w -> 1 (h w)")
    model(caption[None].to(device), image.to(device), recordings(model, kept))
    by_layer = torch.stack([weights.mean(dim=(0, 1)).float().cpu() for weights in kept])
    return rearrange(by_layer, "layers (h w) t -> layers h w t", h=len(tokens))


def check_layer(model: Transformer, layer: int | None) -> None:
    """Raise `ValueError` if the model has no such layer, counted from 1."""
    if layer is not None and not 1 <= layer <= model.config.depth:
        raise ValueError(f"attention_layer={layer} is none of the model's layers, which are 1 to {model.config.depth}")


class WordMaps(NamedTuple):
    """A heat map for each word of a caption, and what else of the text was attended to, on average over cells."""

    words: list[str]
    maps: Tensor  # (words, h, w): what each cell gave to the word's tokens, in [0, 1]
    start: float  # to the start of the text
    pads: float  # to what stands behind the caption


def word_maps(attention: Tensor, words: Sequence[tuple[str, Sequence[int]]], layer: int | None = None) -> WordMaps:
    """Heat maps of `attention_to_text`, (depth, h, w, T), for words as `CaptionTokenizer.words` gives them.

    layer: from 1 to depth; None: the mean over all.

    """
    cells = attention.mean(dim=0) if layer is None else attention[layer - 1]  # (h, w, T)
    # text state 0 is the start, and token j the input of state j + 1
    lengths = [len(ids) for _, ids in words]
    rest = cells.shape[-1] - 1 - sum(lengths)
    start, *by_word, pads = cells.split([1, *lengths, rest], dim=-1)
    maps = torch.stack([weights.sum(dim=-1) for weights in by_word])
    return WordMaps([word for word, _ in words], maps, start.mean().item(), pads.sum(dim=-1).mean().item())
