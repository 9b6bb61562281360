"""Linear layers whose weights lie in memory the way oneDNN wants them: for inference on a CPU.

torch's own layers hand fp32 products to MKL, which keeps off AVX512 on some processors, and lay bfloat16 weights
out anew at every call. Here that is done once. The operators are private to torch, whose compiler uses them, so
they are tried before they are trusted; everything that knows them is in this file.
"""

from copy import copy
from functools import cache, partial
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.blocks import MLP, Float32Linear

Model = TypeVar("Model", bound=nn.Module)

NOTHING, GELU, SILU = "none", "gelu", "swish"  # what oneDNN can do to a product before it is written to memory


def packed(model: Model, batch: int, dtype: torch.dtype = torch.float32) -> Model:
    """`model` with packed linear layers, on a CPU; `model` itself elsewhere, and where torch cannot pack them.

    It is a copy that shares with `model` everything but the packed weights, which are those of this moment.
    `model` stays as it is, free to be trained on. The copy is for inference: it has no gradients.

    batch: rows that most products will have, such as the images decoded at a time. Others work, less fast.
    dtype: of the weights and products. torch.bfloat16 takes half the memory and is faster; between the layers,
        in the residual stream and in attention, numbers stay fp32, and logits are fp32 all through (App. D).
    """
    device = next(model.parameters()).device
    return cast(Model, _pack(model, batch, dtype)) if device.type == "cpu" and can_pack(dtype) else model


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch, on this processor, has packed layers of `dtype` that compute what they should."""
    x, weight, bias = (torch.linspace(-1, 1, size).to(dtype) for size in (4 * 32, 16 * 32, 16))
    x, weight = x.view(4, 32), weight.view(16, 32)
    try:
        with torch.inference_mode():
            layout = _layout(weight, batch=4)
            results = {name: _product(x, layout, bias, name) for name in (NOTHING, GELU, SILU)}
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or other arguments, or not on this processor
        return False
    plain = F.linear(x, weight, bias)
    expected = {NOTHING: plain, GELU: F.gelu(plain), SILU: F.silu(plain)}
    return all(torch.allclose(results[name], expected[name], rtol=0.02, atol=0.02) for name in expected)


class PackedLinear(nn.Module):
    """activation(output_scale * linear(input_scale * x)), the scales being part of the packed weights.

    Its parameters are the linear layer's own, so that it has the same state dict.
    """

    def __init__(
        self,
        linear: nn.Linear,
        batch: int,
        dtype: torch.dtype,
        activation: str = NOTHING,
        input_scale: float = 1.0,
        output_scale: float = 1.0,
        narrow: bool = False,
    ):
        """narrow: whether results stay in `dtype`, for another packed layer, instead of going back to the input's."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.dtype = dtype
        self.activation = activation
        self.narrow = narrow
        with torch.no_grad():
            self.layout = _layout((linear.weight * (input_scale * output_scale)).to(dtype), batch)
            self.packed_bias = None if linear.bias is None else (linear.bias * output_scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the dtype of x unless `narrow`."""
        y = _product(x.to(self.dtype), self.layout, self.packed_bias, self.activation)
        return y if self.narrow else y.to(x.dtype)


def _pack(module: nn.Module, batch: int, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, Float32Linear):
        return PackedLinear(module, batch, torch.float32)
    if isinstance(module, nn.Linear):
        return PackedLinear(module, batch, dtype)
    twin = copy(module)  # shares parameters, buffers and all else with the module
    if isinstance(module, MLP):  # which knows what can be fused
        children = module.pack(partial(PackedLinear, batch=batch, dtype=dtype))
    else:
        children = {name: _pack(child, batch, dtype) for name, child in module.named_children()}
    twin.__dict__["_modules"] = children
    return twin


def _layout(weight: Tensor, batch: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, batch)


def _product(x: Tensor, layout: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    algorithm = "none" if activation == GELU else ""  # of gelu: exact, or approximated by a tanh
    return torch.ops.mkldnn._linear_pointwise(x, layout, bias, activation, [], algorithm)
