"""Sampling of the dVAE's codes during training: Gumbel-softmax, straight-through, vector quantisation (Section 2.1).

`vector_quantisation` is the method that the paper's relaxation replaces (VQ-VAE, van den Oord et al. 2017, Section 3).
The encoder outputs one vector per position, and the decoder's first layer, which embeds the codes, is the codebook.
The chosen code is the one with the nearest vector. In the backward pass the decoder's gradients are copied straight
through to the encoder's vectors. The distance between encoder vectors and codebook is a term of the loss.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dalle.precision import in_float32


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw relaxed samples of the codes (Section 2.1): (b, v, h, w) logits -> (b, v, h, w), fp32, summing to 1 over v.

    As the temperature goes to 0, the samples approach one-hot draws from the categorical distribution.
    """
    logits = logits.float()
    exponential = torch.empty_like(logits).exponential_(generator=generator)
    gumbel = -torch.log(exponential.clamp_min(torch.finfo(torch.float32).tiny))
    return F.softmax((logits + gumbel) / temperature, dim=1)


def straight_through(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw one-hot codes with the gradients of the relaxed samples: (b, v, h, w) logits -> (b, v, h, w)."""
    relaxed = gumbel_softmax(logits, temperature, generator)
    return argmax_one_hot(relaxed) + (relaxed - relaxed.detach())


def argmax_one_hot(logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Return the one-hot argmax over v of logits or relaxed codes: (b, v, h, w), fp32; deterministic."""
    logits = logits.float()
    return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)


RELAXATIONS = {
    "gumbel_softmax": gumbel_softmax,
    "straight_through": straight_through,
    "vector_quantisation": argmax_one_hot,  # gradients bypass it: see `DiscreteVAE.forward`
}


@in_float32
def negative_squared_distance(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Compute the negative squared distance to each code: (b, d, h, w), (v, d) codebook -> (b, v, h, w), fp32."""
    # Distances do not depend on the origin; cancellation errors below are smallest with the origin at the codes' mean.
    centre = codebook.detach().mean(dim=0)
    vectors, codebook = vectors - rearrange(centre, "d -> d 1 1"), codebook - centre
    products = torch.einsum("bdhw,vd->bvhw", vectors, codebook)
    squares = rearrange(codebook.square().sum(dim=1), "v -> v 1 1")
    return 2 * products - squares - vectors.square().sum(dim=1, keepdim=True)


def straight_through_vectors(vectors: Tensor, chosen: Tensor) -> Tensor:
    """Return `chosen`, the vectors of the chosen codes, with gradients that go to `vectors`; both (b, d, h, w)."""
    return vectors + (chosen - vectors).detach()
