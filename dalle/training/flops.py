"""FLOPs of a model's forward pass, counted on the meta device: without data, and without computing anything."""

from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

TRAINING_FACTOR = 3  # the backward pass computes two matrix products for each of the forward pass


class ImageCost(NamedTuple):
    """Work of the model for one image."""

    flops: float  # floating-point operations of matrix products and convolutions in the forward pass
    tokens: int | None = None  # positions of the sequence; None for models of images


@torch.no_grad()
def forward_flops(model: nn.Module, *shapes: tuple[int, ...], integers: bool = False) -> float:
    """Count the FLOPs of `model` for one image. A multiplication with addition counts as two.

    Attention counts as it is computed: all pairs of positions with a dense mask, the chosen blocks if it is sparse.

    shapes: of the model's inputs, without the batch axis.
    integers: the inputs are token ids, not floats.
    """
    dtype = torch.int64 if integers else torch.float32
    batch = 2  # batch norms in training mode need more than one image
    inputs = tuple(torch.empty(batch, *shape, dtype=dtype, device="meta") for shape in shapes)
    tensors = {name: each.detach().to("meta") for name, each in [*model.named_parameters(), *model.named_buffers()]}
    with FlopCounterMode(display=False) as counter:
        functional_call(model, tensors, inputs)
    return counter.get_total_flops() / batch
