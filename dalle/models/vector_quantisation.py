"""Vector quantisation, what the paper's relaxation took the place of (VQ-VAE, van den Oord et al. 2017, Section 3).

The encoder gives a vector at each position, and the decoder's first layer, which embeds the codes, is the codebook: the
code is the one whose vector is nearest. Going backward, the decoder's gradients pass straight through to the encoder's
vectors; encoder and codebook meet because their distance is part of the loss.
"""

import torch
from einops import rearrange
from torch import Tensor

from dalle.precision import in_float32


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
