"""Draws of the codes that the dVAE's decoder learns from, and its encoder through it (Section 2.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """A relaxed sample of the codes (Section 2.1): (b, v, h, w) logits -> (b, v, h, w) on the simplex over v, fp32.

    As the temperature goes to 0 the samples become one-hot draws from the categorical distribution.
    """
    logits = logits.float()
    exponential = torch.empty_like(logits).exponential_(generator=generator)
    gumbel = -torch.log(exponential.clamp_min(torch.finfo(torch.float32).tiny))
    return F.softmax((logits + gumbel) / temperature, dim=1)


def straight_through(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """One-hot draws of the codes, (b, v, h, w), whose gradients are those of the relaxed samples."""
    relaxed = gumbel_softmax(logits, temperature, generator)
    return most_probable(relaxed) + (relaxed - relaxed.detach())


def most_probable(logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """The codes with the largest logits, or the largest of relaxed codes, one-hot: (b, v, h, w), fp32; no chance."""
    logits = logits.float()
    return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)


RELAXATIONS = {
    "gumbel_softmax": gumbel_softmax,
    "straight_through": straight_through,
    "vector_quantisation": most_probable,  # gradients go around it: see `DiscreteVAE.forward`
}
