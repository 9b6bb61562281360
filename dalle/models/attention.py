"""Multi-head self-attention. Who sees whom is an argument: a function of queries, keys and values.

`hidden`, (b, t) bool, marks keys, of the first t, that no query sees, whatever else shows them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.precision import without_autocast

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (b, heads, n, d) each -> (b, heads, n, d)."""


class OfStates(NamedTuple):
    """Attention that is not given queries, keys and values, but the states and the layer that makes them."""

    attend: Callable[[Tensor, "SelfAttention"], Tensor]  # states (b, n, heads * d) -> (b, heads, n, d)


def full(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Every query sees every key."""
    return _attention(q, k, v, None if hidden is None else ~_columns(hidden, k))


def causal(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Every query sees the keys up to its own position."""
    if hidden is None:
        return _attention(q, k, v, is_causal=True)
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return _attention(q, k, v, past & ~_columns(hidden, k))


class Masked(nn.Module):
    """Query i sees key j where mask[i, j]. Serves any pattern; faster ways are measured against it."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        return _attention(q, k, v, self.mask if hidden is None else self.mask & ~_columns(hidden, k))


class FusedLinear(nn.Linear):
    """`parts` linear layers of the same input and the same size, computed as one."""

    def __init__(self, inputs: int, outputs: int, parts: int):
        super().__init__(inputs, parts * outputs)
        self.parts = parts


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} does not divide into heads={heads}; the paper has 64 a head")
        self.heads = heads
        self.qkv = FusedLinear(width, width, parts=3)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Attend | OfStates = full) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        mixed = attend.attend(x, self) if isinstance(attend, OfStates) else attend(*self.project(x))
        return self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, n, heads * d) -> queries, keys and values, (b, heads, n, d) each."""
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        return q, k, v


Softmax = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores (..., t) of text keys and (..., s) of image keys -> the weights of both."""


def joint_softmax(on_text: Tensor, on_image: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that add up to one together: a single attention operation, which did better (Sec. 2.2, fn. 7)."""
    weights = torch.cat([on_text, on_image], dim=-1).softmax(dim=-1)
    from_text, from_image = weights.split([on_text.shape[-1], on_image.shape[-1]], dim=-1)
    return from_text, from_image


def separate_softmax(on_text: Tensor, on_image: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that add up to one on text and to one on image keys: two operations, whose results are added."""
    return on_text.softmax(dim=-1), on_image.softmax(dim=-1)


SOFTMAXES: dict[str, Softmax] = {"joint": joint_softmax, "separate": separate_softmax}


def _columns(hidden: Tensor, k: Tensor) -> Tensor:
    """`hidden` over all keys, as masks of scores have it: (b, t) -> (b, 1, 1, n)."""
    return F.pad(hidden, (0, k.shape[2] - hidden.shape[1]))[:, None, None]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    if q.device.type == "cpu" and q.dtype != torch.float32:
        # torch's CPU kernel is two to three times slower in bfloat16 than in float32
        with without_autocast("cpu"):
            return _attention(q.float(), k.float(), v.float(), mask, is_causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
