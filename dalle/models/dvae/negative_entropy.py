"""Negative entropy of the codes' distribution, for its KL divergence to the uniform one, in chunks of positions.

With the paper's 8,192 codes, log-probabilities, probabilities and their product each take as much memory as the logits.
Here they are computed for some positions at a time, and again in the backward pass, so that only the logits are kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.models.dvae.gumbel_embedding import positions_per_chunk


def negative_entropy(logits: Tensor) -> Tensor:
    """Compute the sum of q log q, of q = softmax(logits): (n, v) float32 or float64 logits -> (n,) nats."""
    return _NegativeEntropy.apply(logits)


class _NegativeEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        sums = logits.new_empty(len(logits))
        size = positions_per_chunk(logits)
        for part, out in zip(logits.split(size), sums.split(size), strict=True):
            log_q = F.log_softmax(part, dim=1)
            out.copy_(torch.linalg.vecdot(log_q.exp(), log_q))
        ctx.save_for_backward(logits, sums)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        logits, sums = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        size = positions_per_chunk(logits)
        chunks = (tensor.split(size) for tensor in (logits, sums, gradients[0], grad_logits))
        for part, part_sums, grad, out in zip(*chunks, strict=True):
            log_q = F.log_softmax(part, dim=1)
            q = log_q.exp().mul_(grad.unsqueeze(1))
            torch.mul(q, log_q.sub_(part_sums.unsqueeze(1)), out=out)
        return grad_logits
