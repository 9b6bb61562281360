"""KL divergence from the codes' distribution to the uniform one, in chunks of positions.

With the paper's 8,192 codes, log-probabilities, probabilities and their product each take as much memory as the logits.
Here they are computed for some positions at a time, and again in the backward pass, so that only the logits are kept.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dalle.models.dvae.gumbel_embedding import positions_per_chunk


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Compute KL(q || uniform) at each position: (b, v, h, w) float32 or float64 logits -> (b, h, w) nats."""
    b, v, h, _ = logits.shape
    flat = rearrange(logits, "b v h w -> (b h w) v")  # a view if logits are in channels-last layout
    negative_entropy = _NegativeEntropy.apply(flat)
    return rearrange(negative_entropy, "(b h w) -> b h w", b=b, h=h) + math.log(v)


class _NegativeEntropy(torch.autograd.Function):
    """Negative entropy, the sum of q log q, of q = softmax(logits): (n, v) -> (n,)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        negative_entropy = logits.new_empty(len(logits))
        size = positions_per_chunk(logits)
        for part, out in zip(logits.split(size), negative_entropy.split(size), strict=True):
            log_q = F.log_softmax(part, dim=1)
            out.copy_(torch.linalg.vecdot(log_q.exp(), log_q))
        ctx.save_for_backward(logits, negative_entropy)
        return negative_entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        logits, negative_entropy = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        size = positions_per_chunk(logits)
        chunks = (each.split(size) for each in (logits, negative_entropy, gradients[0], grad_logits))
        for part, sums, grad, out in zip(*chunks, strict=True):
            log_q = F.log_softmax(part, dim=1)
            q = log_q.exp().mul_(grad.unsqueeze(1))
            torch.mul(q, log_q.sub_(sums.unsqueeze(1)), out=out)
        return grad_logits
