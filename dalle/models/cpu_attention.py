"""Attention on a CPU that stores no scores: torch's flash attention, of two sets of keys merged by their log-sum-exps.

The operator is private to torch, whose `scaled_dot_product_attention` calls it but does not return the log-sum-exp. So
`is_flash_supported` tests it before use; it is called in this file only. It has no gradient through the log-sum-exp.

Source: Dao et al. 2022, "FlashAttention: fast and memory-efficient exact attention with IO-awareness", Sec. 3.1.
"""

from functools import cache

import torch
from torch import Tensor


@cache
def is_flash_supported() -> bool:
    """Return True if flash attention works with this torch: compares it with a softmax over both sets of keys."""
    q, k, v = (torch.linspace(-2, 2, 2 * 3 * n * 8).sin().view(2, 3, n, 8) for n in (4, 7, 7))
    try:
        with torch.inference_mode():
            parts = (flash_attention(q, k[:, :, keys], v[:, :, keys]) for keys in (slice(3), slice(3, None)))
            merged = merge_attention(*parts)
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or different arguments
        return False
    expected = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
    return merged.shape == expected.shape and torch.allclose(merged, expected, atol=1e-5)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attend from every query to every key: q (b, heads, n, d), k and v (b, heads, m, d), float32.

    Returns the output, (b, heads, n, d), and the log-sum-exp of each query's scores, (b, heads, n, 1).
    """
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return output, log_sum_exp.unsqueeze(-1)


def merge_attention(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Merge attention to two sets of keys, outputs and log-sum-exps, into that of one softmax over both sets."""
    (output, log_sum_exp), (other, other_log_sum_exp) = first, second
    return torch.lerp(output, other, torch.sigmoid(other_log_sum_exp - log_sum_exp))
