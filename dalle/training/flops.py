"""FLOPs of a model's forward pass, counted on the meta device: without data, and without computing anything."""

from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """Count the FLOPs of attention between all pairs of positions: shapes (b, heads, n, d)."""
    return 2 * q.numel() * k[2] + 2 * q[:3].numel() * v[2] * v[3]


# torch counts its attention kernels for GPUs, and not the one for CPUs
ATTENTION_FLOPS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
TRAINING_FACTOR = 3  # the backward pass computes two matrix products for each of the forward pass


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the FLOPs of matrix products, convolutions and attention, on any device."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)


class ImageCost(NamedTuple):
    """Work of the model for one image."""

    flops: float  # floating-point operations of matrix products and convolutions in the forward pass
    tokens: int | None = None  # positions of the sequence; None for models of images


class EncodingCost(NamedTuple):
    """Cost of encoding images by the frozen dVAE."""

    weight_bytes: int  # of the dVAE
    peak_bytes: int  # most at a time of all other tensors, for one image
    flops: int  # for one image


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
    tensors = {name: tensor.detach().to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    with flop_counter() as counter:
        functional_call(model, tensors, inputs)
    return counter.get_total_flops() / batch
