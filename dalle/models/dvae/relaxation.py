"""Draws of the codes that the dVAE's decoder learns from, and its encoder through it (Section 2.1).

`vector_quantisation` is what the paper's relaxation took the place of (VQ-VAE, van den Oord et al. 2017, Section 3).
The encoder gives a vector at each position, and the decoder's first layer, which embeds the codes, is the codebook: the
code is the one whose vector is nearest. Going backward, the decoder's gradients pass straight through to the encoder's
vectors; encoder and codebook meet because their distance is part of the loss.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dalle.precision import in_float32


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


@in_float32
def nearness(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Minus the squared distance to each code: (b, d, h, w) vectors, (v, d) codebook -> (b, v, h, w), fp32."""
    # Distances stay the same wherever zero is, and what cancels below is smallest where zero is amid the codes.
    centre = codebook.detach().mean(dim=0)
    vectors, codebook = vectors - rearrange(centre, "d -> d 1 1"), codebook - centre
    products = torch.einsum("bdhw,vd->bvhw", vectors, codebook)
    squares = rearrange(codebook.square().sum(dim=1), "v -> v 1 1")
    return 2 * products - squares - vectors.square().sum(dim=1, keepdim=True)


def straight_through_vectors(vectors: Tensor, chosen: Tensor) -> Tensor:
    """The `chosen` codes' vectors, whose gradients go to `vectors`; both (b, d, h, w)."""
    return vectors + (chosen - vectors).detach()
