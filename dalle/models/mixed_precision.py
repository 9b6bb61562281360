"""Half precision where the paper has it (Appendix D): the matrices of the layers, and what is computed with them.

Norms, embeddings, unembeddings and the residual stream stay in float32. In bfloat16 throughout, a random network of
64 layers is eight times as far from float32 (`tests/models/test_mixed_precision.py`).
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.blocks import Float32Linear

Model = TypeVar("Model", bound=nn.Module)


class HalfLinear(nn.Module):
    """A linear layer in the format of its weights, whatever the format of its input."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) in the weights' format."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def to_mixed_precision(model: Model, dtype: torch.dtype) -> Model:
    """Put half-precision layers in the places of the linear layers of `model`, unembeddings excepted; returns it.

    For inference: the weights lose their gradients. Names in the state dict stay.
    """
    if dtype == torch.float32:
        return model
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and not isinstance(child, Float32Linear):
            setattr(model, name, HalfLinear(child, dtype))
        else:
            to_mixed_precision(child, dtype)
    return model
