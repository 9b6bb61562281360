"""Storage of the weights in bfloat16, without a float32 copy: updates are rounded stochastically.

The paper stores most parameters in 16 bits (App. D). bfloat16 has 8 significand bits, so an update of less than 2^-9 of
a weight would always be lost if it were rounded to nearest. A stochastically rounded weight is on average the exact one
(Gupta et al. 2015).
"""

import copy

import torch
from torch import Tensor, nn

from dalle.models.blocks import TransformerBlock
from dalle.models.mixed_precision import to_mixed_precision
from dalle.training.weight_matrices import WeightMatrix, weight_matrices

DISCARDED_BITS = 16  # of a float32, that bfloat16 does not have


def bfloat16_matrices(model: nn.Module) -> dict[str, WeightMatrix]:
    """Return the matrices that are stored in bfloat16, by name: those of transformer blocks.

    Gains, biases, embeddings and unembeddings stay in float32, as in the paper. Raises ValueError if there are none.
    """
    block_parameter_ids = {
        id(parameter)
        for block in model.modules()
        if isinstance(block, TransformerBlock)
        for parameter in block.parameters()
    }
    matrices = {
        name: matrix for name, matrix in weight_matrices(model).items() if id(matrix.weight) in block_parameter_ids
    }
    if not matrices:
        raise ValueError("this model has no transformer blocks to store in 16 bits: set parameters=float32")
    return matrices


def store_in_bfloat16(model: nn.Module) -> None:
    """Round the matrices of `model` to bfloat16 in place; their gradients are then bfloat16 too."""
    for matrix in bfloat16_matrices(model).values():
        matrix.weight.data = matrix.weight.detach().bfloat16()


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 values to bfloat16, up or down with a probability that makes the mean exact.

    Values that bfloat16 can represent are not changed, infinities and NaN neither.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.empty_like(bits).random_(0, 1 << DISCARDED_BITS, generator=generator)
    # carries into the kept bits with the probability of the discarded ones
    rounded = noise.add_(bits).bitwise_and_(-(1 << DISCARDED_BITS)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of `model`, with parameters and buffers that share its memory and need no gradients."""
    shared: dict[int, Tensor] = {
        id(parameter): nn.Parameter(parameter.detach(), False) for parameter in model.parameters()
    }
    return copy.deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()})


def for_inference(model: nn.Module) -> nn.Module:
    """Return a model to use without autocast: `model`, or a copy that shares its memory if it has bfloat16 matrices."""
    if all(parameter.dtype != torch.bfloat16 for parameter in model.parameters()):
        return model
    return to_mixed_precision(shared_copy(model), torch.bfloat16)
