"""Multi-head self-attention. The attention function, from queries, keys and values to outputs, is an argument.

An `attend_mask` is true where a query attends to a key. `key_padding_mask`, (b, t) bool, covers the first t keys, and
is true for padding, to which no query attends.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.models.kernels import kernel_device
from dalle.precision import has_amx, without_autocast

# with AMX and more keys than this, attention by matrix products is not faster than torch's kernel
# (benchmarks/attention_training.py)
MAX_MATMUL_KEYS = 512

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention function: queries, keys, values, (b, heads, n, d) each -> (b, heads, n, d)."""
CachedAttention = Callable[[Tensor, "SelfAttention"], Tensor]
"""Cached attention: normed states of new positions, (b, n, width), and their attention module -> (b, heads, n, d)."""


def full(q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Attend from every query to every key: q (b, heads, n, d), k and v (b, heads, m, d) -> (b, heads, n, d)."""
    return _attend(q, k, v, None if key_padding_mask is None else _attend_mask_without_padding(key_padding_mask, k))


def causal(q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Attend from each query to the keys up to its own position: q, k and v (b, heads, n, d) -> (b, heads, n, d)."""
    if key_padding_mask is None:
        return _attend(q, k, v, is_causal=True)
    return _attend(q, k, v, _causal_attend_mask(q, k) & _attend_mask_without_padding(key_padding_mask, k))


class DenseMaskAttention(nn.Module):
    """Attention with a dense (n, n) bool mask: query i attends to key j where attend_mask[i, j] is true.

    Works for any pattern; the reference for faster implementations.
    """

    attend_mask: Tensor

    def __init__(self, attend_mask: Tensor):
        super().__init__()
        self.register_buffer("attend_mask", attend_mask, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is None:
            return _attend(q, k, v, self.attend_mask)
        return _attend(q, k, v, self.attend_mask & _attend_mask_without_padding(key_padding_mask, k))


class FusedLinear(nn.Linear):
    """`parts` linear layers of equal size with one input: (..., inputs) -> (..., parts * outputs)."""

    def __init__(self, inputs: int, outputs: int, parts: int):
        super().__init__(inputs, parts * outputs)
        self.parts = parts


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    qk_norm: apply RMS norm with learned gains to queries and keys, per head (Henry et al. 2020). Attention scores
        then stay bounded, which keeps training in bfloat16 stable.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} does not divide into heads={heads}; the paper has 64 a head")
        self.heads = heads
        self.qkv = FusedLinear(width, width, parts=3)
        self.out = nn.Linear(width, width)
        self.qk_norm = qk_norm
        if qk_norm:
            self.query_norm, self.key_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    @property
    def activations(self) -> int:
        """Number of activations per position: queries, keys, values and output, without attention scores."""
        width = self.out.weight.shape[1]
        return (6 if self.qk_norm else 4) * width  # queries, keys, values, output; normed queries and keys

    def forward(self, x: Tensor, attend: AttentionFn = full) -> Tensor:
        """Project, attend and merge: (b, n, width) -> (b, n, width). `attend`: attention function."""
        return self.merge(attend(*self.project(x)))

    def decode(self, x: Tensor, attend: CachedAttention) -> Tensor:
        """Attend from new positions, usually one, to a KV cache: (b, n, width) -> (b, n, width)."""
        return self.merge(attend(x, self))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project hidden states to queries, keys and values: (b, n, width) -> (b, heads, n, d) each."""
        # views, since einops takes longer than the operation itself in a decoding step
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        return (self.query_norm(q), self.key_norm(k), v) if self.qk_norm else (q, k, v)

    def merge(self, heads_output: Tensor) -> Tensor:
        """Merge the heads' outputs and project them: (b, heads, n, d) -> (b, n, width)."""
        return self.out(heads_output.transpose(1, 2).flatten(2))


class RMSNorm(nn.Module):
    """RMS norm over the last axis, with learned gains; computed in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Divide x by its RMS and multiply by the gains: (..., width) -> (..., width), in the dtype of x."""
        return (x.float() * self.scale(x) * self.weight).to(x.dtype)

    def scale(self, x: Tensor) -> Tensor:
        """Return 1 / RMS(x), in float32: (..., width) -> (..., 1)."""
        return (x.float().square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()


def joint_softmax(text_scores: Tensor, image_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise text and image scores with one softmax: (..., t), (..., s) -> weights of the same shapes.

    The paper found this, a single attention operation, to perform better than two (fn. 7).
    """
    weights = torch.cat([text_scores, image_scores], dim=-1).softmax(dim=-1)
    text, image = weights.split([text_scores.shape[-1], image_scores.shape[-1]], dim=-1)
    return text, image


def separate_softmax(text_scores: Tensor, image_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise text and image scores with a softmax each: (..., t), (..., s) -> weights of the same shapes.

    These are two attention operations, whose results are added (fn. 7).
    """
    return text_scores.softmax(dim=-1), image_scores.softmax(dim=-1)


SOFTMAXES = {"joint": joint_softmax, "separate": separate_softmax}


class TextImageSoftmax:
    """Masked softmax over the attention scores of image positions, split into text keys and image keys.

    Used by all attention that handles the two kinds of keys separately: sparse attention, attention to the KV cache,
    and the recording of attention maps.

    Raises:
        ValueError: an unknown normalisation.
    """

    def __init__(self, normalisation: str = "joint"):
        """normalisation: "joint" for one softmax over both kinds of keys, or "separate" for two (Sec. 2.2, fn. 7)."""
        if normalisation not in SOFTMAXES:
            raise ValueError(f"unknown normalisation {normalisation!r}; choose one of {', '.join(SOFTMAXES)}")
        self._softmax = SOFTMAXES[normalisation]
        self.joint = normalisation == "joint"

    def __call__(
        self, text_scores: Tensor, image_scores: Tensor, text_padding_mask: Tensor | None, image_masked: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return attention weights of the shapes of the scores, (..., t) and (..., s).

        text_padding_mask, image_masked: bool, broadcastable to the scores, true for keys that are not attended to; None
            masks nothing.
        """
        if text_padding_mask is not None:
            text_scores = text_scores.masked_fill(text_padding_mask, -torch.inf)
        if image_masked is not None:
            image_scores = image_scores.masked_fill(image_masked, -torch.inf)
        return self._softmax(text_scores, image_scores)


def _attend_mask_without_padding(key_padding_mask: Tensor, k: Tensor) -> Tensor:
    """Return the attend mask of all n keys but padding, broadcastable to attention scores: (b, t) -> (b, 1, 1, n)."""
    return ~F.pad(key_padding_mask, (0, k.shape[2] - key_padding_mask.shape[1]))[:, None, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, attend_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Compute attention with the fastest implementation for the device and dtype (benchmarks/attention_training.py)."""
    on_cpu = kernel_device(q.device) == "cpu"
    if on_cpu and q.dtype == torch.bfloat16 and has_amx():
        if torch.is_grad_enabled() and k.shape[2] <= MAX_MATMUL_KEYS:
            return matmul_attention(q, k, v, _causal_attend_mask(q, k) if is_causal else attend_mask)
    elif on_cpu and q.dtype in (torch.float16, torch.bfloat16):
        # without AMX torch's CPU kernel is two to three times as slow in 16 bits as in float32
        with without_autocast("cpu"):
            return _attend(q.float(), k.float(), v.float(), attend_mask, is_causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attend_mask, is_causal=is_causal)


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, attend_mask: Tensor | None = None) -> Tensor:
    """Compute attention by matrix products, which store all scores: (b, heads, n, d) -> (b, heads, n, d).

    With AMX the backward pass is faster than that of `scaled_dot_product_attention`. Scores are rounded to the dtype
    of `q` before the softmax.

    attend_mask: bool, broadcastable to (b, heads, n, m).
    """
    b, _, n, d = q.shape
    m = k.shape[2]
    q, k, v = (rearrange(tensor, "b heads n d -> (b heads) n d") for tensor in (q, k, v))
    bias = q.new_zeros(())
    if attend_mask is not None:
        bias = q.new_zeros(attend_mask.shape).masked_fill(~attend_mask, -torch.inf)
        if attend_mask.ndim == 4:  # differs between the batch's sequences
            bias = rearrange(bias.expand(b, len(q) // b, n, m), "b heads n m -> (b heads) n m")
    weights = torch.baddbmm(bias, q, k.mT, alpha=d**-0.5).softmax(dim=-1)
    return rearrange(weights @ v, "(b heads) n d -> b heads n d", b=b)


def _causal_attend_mask(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
