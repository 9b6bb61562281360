"""Sparse attention that computes little more than what a pattern shows; equal to attention with its dense mask.

Image states attend in groups, a line or a column of the picture each: to all text, and to a stretch of image keys
that their group shares. Both parts go through one softmax, or each through its own.
"""

from abc import ABC, abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.attention import Masked, TextImageSoftmax, causal, full
from dalle.models.transformer.patterns import Column, Dense, Pattern, image_mask, stream_mask

WAYS = ("auto", "masked", "structured")


def attend_for(
    pattern: Pattern, text_positions: int, grid: int, way: str = "auto", normalisation: str = "joint"
) -> nn.Module:
    """How a layer with `pattern` attends over the whole stream: queries, keys, values (b, heads, n, d) -> the same.

    What it returns also takes `hidden`, (b, T) bool or None: text states that no state sees.

    way: "masked" is the dense mask, "structured" a form that computes little more than what the pattern shows; "auto"
        is the faster of the two on a CPU, and on a GPU, where nobody has measured yet, the mask in one fused kernel.
    normalisation: "joint" is one softmax over the text and image keys of an image state; "separate" is one for
        each, whose results are added (Sec. 2.2, fn. 7).

    Raises:
        ValueError: an unknown way or normalisation.
    """
    if way not in WAYS:
        raise ValueError(f"unknown way to attend {way!r}; choose one of {', '.join(WAYS)}")
    softmax = TextImageSoftmax(normalisation)
    joint = normalisation == "joint"
    if way == "auto" and joint and isinstance(pattern, Dense):
        return Causal()
    masked = Masked(stream_mask(pattern, text_positions, grid)) if joint else MaskedApart(pattern, text_positions, grid)
    structured = partial(_structured, pattern, text_positions, grid, softmax)
    if way == "structured":
        return structured()
    # Measured on CPUs: from 256 image states on, worth it where a query meets at most two fifths of the stream.
    affordable = (text_positions + grid * grid) * 2 // 5 - text_positions
    image_keys = grid if isinstance(pattern, Column) else lines_seen(pattern, grid) * grid
    return ByDevice(structured(), masked) if way == "auto" and grid >= 16 and image_keys <= affordable else masked


def _structured(pattern: Pattern, text_positions: int, grid: int, softmax: TextImageSoftmax) -> nn.Module:
    if isinstance(pattern, Column):
        return Columns(text_positions, grid, softmax)
    return Lines(pattern, text_positions, grid, softmax)


def lines_seen(pattern: Pattern, grid: int) -> int:
    """How many lines of the picture, its own included, hold all that any state of a line sees."""
    query, key = image_mask(pattern, grid).nonzero().unbind(dim=1)
    return int((query // grid - key // grid).max()) + 1


class ByDevice(nn.Module):
    """One form of attention on CPUs and another elsewhere; both compute the same."""

    def __init__(self, on_cpu: nn.Module, elsewhere: nn.Module):
        super().__init__()
        self.on_cpu, self.elsewhere = on_cpu, elsewhere

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        return (self.on_cpu if q.device.type == "cpu" else self.elsewhere)(q, k, v, hidden)


class Causal(nn.Module):
    """For the dense pattern: each state sees all before it, text or image."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        return causal(q, k, v, hidden)


class MaskedApart(nn.Module):
    """For any pattern, normalised separately: an image state's attention to text plus that to image states."""

    def __init__(self, pattern: Pattern, text_positions: int, grid: int):
        super().__init__()
        self.text_positions = text_positions
        self.to_image = Masked(image_mask(pattern, grid))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        (text_q, q), (text_k, k), (text_v, v) = (_split(x, self.text_positions) for x in (q, k, v))
        image = full(q, text_k, text_v, hidden) + self.to_image(q, k, v)
        return torch.cat([causal(text_q, text_k, text_v, hidden), image], dim=2)


class Grouped(nn.Module, ABC):
    """Image states in groups, each of which shares the keys it sees; `Lines` and `Columns` say which."""

    mask: Tensor  # (g or 1, s, m): which of its group's m keys each of its s states sees

    def __init__(self, mask: Tensor, text_positions: int, grid: int, softmax: TextImageSoftmax):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.text_positions = text_positions
        self.grid = grid
        self.softmax = softmax

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        (text_q, q), (text_k, k), (text_v, v) = (_split(x, self.text_positions) for x in (q, k, v))
        text = causal(text_q, text_k, text_v, hidden)
        q, k, v = self.queries(q), self.keys(k), self.keys(v)  # (b, heads, g, s, d), the others (b, heads, g, m, d)

        q = q * q.shape[-1] ** -0.5
        text_scores = rearrange(q, "b heads g s d -> b heads (g s) d") @ text_k.mT
        text_scores = rearrange(text_scores, "b heads (g s) t -> b heads g s t", g=self.grid)
        text_hidden = None if hidden is None else hidden[:, None, None, None]
        text_weights, image_weights = self.softmax(text_scores, q @ k.mT, text_hidden, ~self.mask)

        from_text = rearrange(text_weights, "b heads g s t -> b heads (g s) t") @ text_v
        from_text = rearrange(from_text, "b heads (g s) d -> b heads g s d", g=self.grid)
        return torch.cat([text, self.in_raster_order(from_text + image_weights @ v)], dim=2)

    @abstractmethod
    def queries(self, image: Tensor) -> Tensor:
        """(b, heads, I, d) -> (b, heads, g, s, d)."""

    @abstractmethod
    def keys(self, image: Tensor) -> Tensor:
        """(b, heads, I, d) -> (b, heads, g, m, d)."""

    @abstractmethod
    def in_raster_order(self, groups: Tensor) -> Tensor:
        """The inverse of `queries`."""


class Lines(Grouped):
    """For patterns that reach a few lines back: a line's states share those lines' keys."""

    def __init__(self, pattern: Pattern, text_positions: int, grid: int, softmax: TextImageSoftmax):
        reach = lines_seen(pattern, grid)
        query = torch.arange(grid * grid, device="cpu").view(grid, grid, 1)
        first = (torch.arange(grid, device="cpu") - reach + 1) * grid
        key = first[:, None, None] + torch.arange(reach * grid, device="cpu")
        mask = pattern.sees(query, key, grid) & (key >= 0)  # keys before the first line are padding
        super().__init__(mask, text_positions, grid, softmax)
        self.reach = reach

    def queries(self, image: Tensor) -> Tensor:
        return rearrange(image, "b heads (h w) d -> b heads h w d", w=self.grid)

    def keys(self, image: Tensor) -> Tensor:
        """Each line behind those before it."""
        padded = F.pad(self.queries(image), (0, 0, 0, 0, self.reach - 1, 0))
        return torch.cat([padded[:, :, back : back + self.grid] for back in range(self.reach)], dim=3)

    def in_raster_order(self, groups: Tensor) -> Tensor:
        return rearrange(groups, "b heads h w d -> b heads (h w) d")


class Columns(Grouped):
    """For the column pattern: image states are transposed, and each column is causal (Figure 11c)."""

    def __init__(self, text_positions: int, grid: int, softmax: TextImageSoftmax):
        mask = torch.ones(1, grid, grid, dtype=torch.bool, device="cpu").tril()
        super().__init__(mask, text_positions, grid, softmax)

    def queries(self, image: Tensor) -> Tensor:
        return rearrange(image, "b heads (h w) d -> b heads w h d", w=self.grid)

    keys = queries

    def in_raster_order(self, groups: Tensor) -> Tensor:
        return rearrange(groups, "b heads w h d -> b heads (h w) d")


def _split(x: Tensor, text_positions: int) -> tuple[Tensor, Tensor]:
    """(b, heads, n, d) -> text states (b, heads, T, d), image states (b, heads, I, d)."""
    return x[:, :, :text_positions], x[:, :, text_positions:]
