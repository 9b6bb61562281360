"""Mixed precision for inference (Appendix D): linear layers in half precision, all else in float32.

Norms, embeddings, unembeddings and the residual stream stay in float32. Compared with float32, the error of a random
64-layer network is eight times as large if everything is in bfloat16 (`tests/models/test_mixed_precision.py`).
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.blocks import Float32Linear

Model = TypeVar("Model", bound=nn.Module)


class HalfLinear(nn.Module):
    """Linear layer that casts its input to the dtype of its weights. For inference: no gradients."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the linear layer: (..., inputs) -> (..., outputs) in the dtype of the weights."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def to_mixed_precision(model: Model, dtype: torch.dtype) -> Model:
    """Replace the linear layers of `model`, except unembeddings, by layers in `dtype`; returns `model`.

    Modifies `model` in place. For inference only: the replaced weights have no gradients. The names in the state dict
    stay the same.
    """
    if dtype == torch.float32:
        return model
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and not isinstance(child, Float32Linear):
            setattr(model, name, HalfLinear(child, dtype))
        else:
            to_mixed_precision(child, dtype)
    return model
