"""Sparse attention that computes little more than what a pattern shows; equal to attention with its dense mask.

Image states attend in groups, a line or a column of the picture each: to all text, and to a stretch of image keys
that their group shares. Both parts go through one softmax.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.attention import Masked, causal, joint_softmax
from dalle.models.patterns import Column, Dense, Pattern, image_mask, stream_mask

WAYS = ("auto", "masked")


def attend_for(pattern: Pattern, text_positions: int, grid: int, way: str = "auto") -> nn.Module:
    """How a layer with `pattern` attends over the whole stream: queries, keys, values (b, heads, n, d) -> the same.

    "masked" is the dense mask; "auto" is a structured form where that computes much less.

    Raises:
        ValueError: an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"unknown way to attend {way!r}; choose one of {', '.join(WAYS)}")
    if way == "auto" and isinstance(pattern, Dense):
        return Causal()
    # Measured on CPUs: from 256 image states on, worth it where a query meets at most two fifths of the stream.
    if way == "auto" and grid >= 16:
        affordable = (text_positions + grid * grid) * 2 // 5 - text_positions
        if isinstance(pattern, Column) and grid <= affordable:
            return Columns(text_positions, grid)
        if lines_seen(pattern, grid) * grid <= affordable:
            return Lines(pattern, text_positions, grid)
    return Masked(stream_mask(pattern, text_positions, grid))


def lines_seen(pattern: Pattern, grid: int) -> int:
    """How many lines of the picture, its own included, hold all that any state of a line sees."""
    query, key = image_mask(pattern, grid).nonzero().unbind(dim=1)
    return int((query // grid - key // grid).max()) + 1


class Causal(nn.Module):
    """For the dense pattern: each state sees all before it, text or image."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal(q, k, v)


class Lines(nn.Module):
    """For patterns that reach a few lines back: a line's states share those lines' keys."""

    mask: Tensor  # (lines, grid, keys): which keys of its line's stretch a state sees

    def __init__(self, pattern: Pattern, text_positions: int, grid: int):
        super().__init__()
        self.text_positions = text_positions
        self.grid = grid
        self.reach = lines_seen(pattern, grid)
        query = torch.arange(grid * grid, device="cpu").view(grid, grid, 1)
        first = (torch.arange(grid, device="cpu") - self.reach + 1) * grid
        key = first[:, None, None] + torch.arange(self.reach * grid, device="cpu")
        mask = pattern.sees(query, key, grid) & (key >= 0)  # keys before the first line are padding
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        text_q, text_k, text_v = (x[:, :, : self.text_positions] for x in (q, k, v))
        q, k, v = (
            rearrange(x[:, :, self.text_positions :], "b heads (h w) d -> b heads h w d", w=self.grid)
            for x in (q, k, v)
        )
        image = _in_groups(q, text_k, text_v, self._stretches(k), self._stretches(v), self.mask)
        image = rearrange(image, "b heads h w d -> b heads (h w) d")
        return torch.cat([causal(text_q, text_k, text_v), image], dim=2)

    def _stretches(self, lines: Tensor) -> Tensor:
        """(b, heads, h, w, d) -> (b, heads, h, reach * w, d): each line behind those before it."""
        padded = F.pad(lines, (0, 0, 0, 0, self.reach - 1, 0))
        return torch.cat([padded[:, :, back : back + self.grid] for back in range(self.reach)], dim=3)


class Columns(nn.Module):
    """For the column pattern: image states are transposed, and each column is causal (Figure 11c)."""

    mask: Tensor  # (grid, grid)

    def __init__(self, text_positions: int, grid: int):
        super().__init__()
        self.text_positions = text_positions
        self.grid = grid
        self.register_buffer("mask", torch.ones(grid, grid, dtype=torch.bool, device="cpu").tril(), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        text_q, text_k, text_v = (x[:, :, : self.text_positions] for x in (q, k, v))
        q, k, v = (
            rearrange(x[:, :, self.text_positions :], "b heads (h w) d -> b heads w h d", w=self.grid)
            for x in (q, k, v)
        )
        image = rearrange(_in_groups(q, text_k, text_v, k, v, self.mask), "b heads w h d -> b heads (h w) d")
        return torch.cat([causal(text_q, text_k, text_v), image], dim=2)


def _in_groups(q: Tensor, text_k: Tensor, text_v: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Groups of queries (b, heads, g, s, d) over text (b, heads, t, d) and their stretches (b, heads, g, m, d)."""
    groups = q.shape[2]
    q = q * q.shape[-1] ** -0.5
    on_text = rearrange(q, "b heads g s d -> b heads (g s) d") @ text_k.mT
    on_text = rearrange(on_text, "b heads (g s) t -> b heads g s t", g=groups)
    on_image = (q @ k.mT).masked_fill(~mask, -torch.inf)

    on_text, on_image = joint_softmax(on_text, on_image)
    from_text = rearrange(on_text, "b heads g s t -> b heads (g s) t") @ text_v
    return rearrange(from_text, "b heads (g s) d -> b heads g s d", g=groups) + on_image @ v
