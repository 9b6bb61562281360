"""Attention to cached hidden states in place of keys and values: half the memory of a KV cache."""

import torch
from einops import einsum, rearrange
from torch import Tensor

from dalle.models.attention import SelfAttention


class HiddenStateAttention:
    """Attention of one layer to cached hidden states instead of keys and values: half the memory, same result.

    With k = W x + b, a score is q k = (q W) x + q b, so the query is projected once for all keys. Likewise, the
    weighted sum of values is the projection of the weighted sum of states. The two projections cost as much as
    computing the key and the value, but each head then reads whole states instead of its own d of heads * d numbers.
    In the paper's column layers, with 16 states on average, that is 4% of the layer's arithmetic. With `qk_norm` a
    key is W x + b times one scale per head, which is cached beside the state.
    """

    def __init__(self, attention: SelfAttention):
        self.attention = attention
        self.width = attention.out.weight.shape[1]
        self.size = self.width + (attention.heads if attention.qk_norm else 0)  # numbers cached per state

    def cache_entry(self, x: Tensor) -> Tensor:
        """Return the cache entry of new states, from which keys and values follow: (b, 1, width) -> (b, 1, size)."""
        attention, (weight, bias) = self.attention, self._projection(1)
        x = x.to(weight.dtype)  # norms compute in float32
        if not attention.qk_norm:
            return x
        keys = einsum(x, weight, "b n width, heads d width -> b n heads d") + bias
        return torch.cat([x, attention.key_norm.scale(keys).squeeze(-1).to(x.dtype)], dim=-1)

    def scores(self, x: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scaled queries and attention scores.

        x: (b, 1, width) new states; cached: (b, s, size) cache entries -> (b, heads, 1, d) and (b, heads, 1, s).
        """
        attention, (weight, bias) = self.attention, self._projection(0)
        key_weight, key_bias = self._projection(1)
        states, scales = cached[..., : self.width], cached[..., self.width :]  # (b, s, width), (b, s, heads or 0)
        q = einsum(x.to(weight.dtype).squeeze(1), weight, "b width, heads d width -> b heads d") + bias
        q = attention.query_norm(q) if attention.qk_norm else q
        q = q * q.shape[-1] ** -0.5
        with_gain = q * attention.key_norm.weight.to(q.dtype) if attention.qk_norm else q
        projected_query = einsum(with_gain, key_weight, "b heads d, heads d width -> b heads width")
        scores = projected_query @ states.mT + einsum(with_gain, key_bias, "b heads d, heads d -> b heads").unsqueeze(
            -1
        )
        if attention.qk_norm:
            scores = scores * scales.mT
        return q.unsqueeze(2), scores.unsqueeze(2)

    def weighted_values(self, weights: Tensor, cached: Tensor) -> Tensor:
        """Compute weighted sums of the values of cached states.

        weights: (b, heads, 1, s) attention weights; cached: (b, s, size) cache entries -> (b, heads, 1, d).
        """
        weight, bias = self._projection(2)
        context = weights.squeeze(2) @ cached[..., : self.width]  # (b, heads, width)
        values = einsum(context, weight, "b heads width, heads d width -> b heads d") + weights.sum(dim=-1) * bias
        return values.unsqueeze(2)

    def _projection(self, number: int) -> tuple[Tensor, Tensor]:
        """Return weight (heads, d, width) and bias (heads, d) of queries (0), keys (1) or values (2)."""
        split = "(three heads d) ... -> three heads d ..."
        qkv, heads = self.attention.qkv, self.attention.heads
        return (
            rearrange(qkv.weight, split, three=3, heads=heads)[number],
            rearrange(qkv.bias, split, three=3, heads=heads)[number],
        )
