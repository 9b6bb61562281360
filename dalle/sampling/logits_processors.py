"""Logits processors: temperature, top-k, top-p and min-p, as pure functions."""

import math

import torch
from torch import Tensor

from dalle.precision import cumulative_sum
from dalle.sampling.sampling_config import DecodingConfig


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of (b, v) logits, exactly k even with ties; set the others to -inf."""
    kept = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus sampling: keep the fewest largest of (b, v) logits with total probability p; set the others to -inf."""
    ordered = logits.sort(dim=-1, descending=True)
    # summed from the least probable up: in the other order rounding would lose the tail
    remaining = cumulative_sum(ordered.values.softmax(dim=-1).flip(-1)).flip(-1)
    masked = remaining <= 1 - p
    masked[:, 0] = False  # rounding could mask all of them
    kept = ordered.values.masked_fill(masked, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, ordered.indices, kept)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep (b, v) logits whose probability is at least `share` times the largest one; set the others to -inf.

    Few tokens remain where the model is confident, and many where it is not (Nguyen et al. 2024).
    """
    min_logit = logits.amax(dim=-1, keepdim=True) + math.log(share)
    return logits.masked_fill(logits < min_logit, -torch.inf)


def process_logits(logits: Tensor, config: DecodingConfig) -> Tensor:
    """Apply temperature, then top-k, top-p and min-p: (b, v) logits -> (b, v) logits of the sampling distribution.

    Temperature 0 is greedy decoding. The paper samples at temperature 1 without the other processors (Sec. 2.6), as
    does a config without a temperature.
    """
    if config.temperature == 0:
        return top_k(logits, 1)
    if config.temperature is not None:
        logits = logits / config.temperature
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    return logits
