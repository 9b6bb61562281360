"""Linear layers with weights prepacked for oneDNN, for inference on a CPU.

torch's own layers compute fp32 products with MKL, which does not use AVX512 on some processors, and repack bfloat16
weights at every call. Here the weights are packed once. The operators are private to torch (its compiler uses them),
so `is_packing_supported` tests them before use; they are called in this file only.
"""

from copy import copy
from functools import cache, partial
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.models.blocks import MLP, Float32Linear

Model = TypeVar("Model", bound=nn.Module)

NO_ACTIVATION, GELU, SILU = "none", "gelu", "swish"  # activations that oneDNN can fuse into a product


def pack_linear_layers(model: Model, batch: int, dtype: torch.dtype = torch.float32) -> Model:
    """Return a copy of `model` with packed linear layers, if it is on a CPU and torch can pack; else `model` itself.

    The copy shares everything with `model` except the packed weights, which do not follow later updates. `model` is
    unchanged and can be trained further. The copy is for inference: it has no gradients.

    batch: usual number of rows of the products, such as the images decoded at a time. Other numbers work, more slowly.
    dtype: of weights and products. torch.bfloat16 halves memory and is faster. The residual stream and attention stay
        fp32, and logits are computed in fp32 (App. D).
    """
    device = next(model.parameters()).device
    if device.type != "cpu" or not is_packing_supported(dtype):
        return model
    return cast(Model, _pack_module(model, batch, dtype))


@cache
def is_packing_supported(dtype: torch.dtype) -> bool:
    """Return True if packed layers of `dtype` work with this torch on this processor: compares them with `F.linear`."""
    x, weight, bias = (torch.linspace(-1, 1, size).to(dtype) for size in (4 * 32, 16 * 32, 16))
    x, weight = x.view(4, 32), weight.view(16, 32)
    try:
        with torch.inference_mode():
            packed_weight = _pack_weight(weight, batch=4)
            results = {name: _packed_linear(x, packed_weight, bias, name) for name in (NO_ACTIVATION, GELU, SILU)}
    except (AttributeError, RuntimeError, TypeError):  # no such operator, different arguments, or unsupported processor
        return False
    plain = F.linear(x, weight, bias)
    expected = {NO_ACTIVATION: plain, GELU: F.gelu(plain), SILU: F.silu(plain)}
    return all(torch.allclose(results[name], expected[name], rtol=0.02, atol=0.02) for name in expected)


class PackedLinear(nn.Module):
    """Packed linear layer: activation(output_scale * linear(input_scale * x)), with the scales packed into the weights.

    Shares the parameters of the linear layer, so the state dict is the same.
    """

    def __init__(
        self,
        linear: nn.Linear,
        batch: int,
        dtype: torch.dtype,
        activation: str = NO_ACTIVATION,
        input_scale: float = 1.0,
        output_scale: float = 1.0,
        keep_packed_dtype: bool = False,
    ):
        """Pack the weights of `linear`.

        batch: usual number of rows of the products.
        dtype: of the packed weights and the products.
        activation: NO_ACTIVATION, or an activation that oneDNN applies to the product.
        input_scale, output_scale: as in the formula above.
        keep_packed_dtype: return results in `dtype`, for another packed layer, instead of the parameters' dtype.
        """
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.dtype = dtype
        self.activation = activation
        self.keep_packed_dtype = keep_packed_dtype
        with torch.no_grad():
            self.packed_weight = _pack_weight((linear.weight * (input_scale * output_scale)).to(dtype), batch)
            self.packed_bias = None if linear.bias is None else (linear.bias * output_scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., inputs) -> (..., outputs), in the parameters' dtype unless `keep_packed_dtype`."""
        y = _packed_linear(x.to(self.dtype), self.packed_weight, self.packed_bias, self.activation)
        return y if self.keep_packed_dtype else y.to(self.weight.dtype)


def _pack_module(module: nn.Module, batch: int, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, Float32Linear):
        return PackedLinear(module, batch, torch.float32, keep_packed_dtype=True)
    if isinstance(module, nn.Linear):
        return PackedLinear(module, batch, dtype)
    packed = copy(module)  # shallow: shares parameters and buffers with the module
    if isinstance(module, MLP):  # fuses its activation into the first layer
        children = module.pack(partial(PackedLinear, batch=batch, dtype=dtype))
    else:
        children = {name: _pack_module(child, batch, dtype) for name, child in module.named_children()}
    packed.__dict__["_modules"] = children
    return packed


def _pack_weight(weight: Tensor, batch: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, batch)


def _packed_linear(x: Tensor, packed_weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    algorithm = "none" if activation == GELU else ""  # of GELU: "none" is exact, "tanh" an approximation
    return torch.ops.mkldnn._linear_pointwise(x, packed_weight, bias, activation, [], algorithm)
