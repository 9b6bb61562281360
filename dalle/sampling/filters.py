"""What may be drawn: temperature, top-k, top-p and min-p, as pure functions of logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dalle.precision import cumulative_sum


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of (b, v) logits, exactly k even among equals; the others become -inf."""
    kept = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest of (b, v) logits, the largest, that together have probability p; the others: -inf."""
    ordered = logits.sort(dim=-1, descending=True)
    # summed from the least probable up: the other way round, rounding swallows the tail
    remaining = cumulative_sum(ordered.values.softmax(dim=-1).flip(-1)).flip(-1)
    kept = ordered.values.masked_fill(remaining <= 1 - p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, ordered.indices, kept)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Keep those of (b, v) logits at least `share` times as probable as the likeliest; the others: -inf.

    So few are left where the model is sure and many where it is not (Nguyen et al. 2024).
    """
    lowest = logits.amax(dim=-1, keepdim=True) + math.log(share)
    return logits.masked_fill(logits < lowest, -torch.inf)


@dataclass(frozen=True)
class Filters:
    """Temperature, then top-k, top-p and min-p. The paper draws at temperature 1 without filters (Sec. 2.6).

    Raises:
        ValueError: a setting out of its range.
    """

    temperature: float = 1.0  # divides the logits; 0 always takes the most probable token
    top_k: int | None = None  # keep this many tokens; None: all
    top_p: float | None = None  # keep the most probable tokens that together have this probability; None: all
    min_p: float | None = None  # keep tokens at least this many times as probable as the likeliest; None: all

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} is below 0; 0 is greedy, 1 the model's own")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} leaves nothing to draw; use at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is no probability; use more than 0 and at most 1")
        if self.min_p is not None and not 0 < self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} is no share of a probability; use more than 0 and at most 1")

    def __call__(self, logits: Tensor) -> Tensor:
        """(b, v) logits -> (b, v) logits of the distribution that is drawn from."""
        if self.temperature == 0:
            return top_k(logits, 1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits


UNFILTERED = Filters()
