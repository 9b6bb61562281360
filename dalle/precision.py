"""Number formats by name, computing outside autocast where half precision is too coarse, and exactness on GPUs."""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Function = TypeVar("Function", bound=Callable[..., Any])


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return a context in which matrix products and convolutions compute in `precision`; weights stay float32."""
    return torch.autocast(device.type, FORMATS[precision], enabled=precision != "float32")


def use_exact_float32() -> None:
    """Have GPUs compute products and convolutions of float32 in float32, not with TF32's 10 bits of significand.

    cuDNN would use TF32 by default: a dVAE's codes would then be others than on a CPU.
    """
    with warnings.catch_warnings():  # of newer names, which torch 2.6 does not have
        warnings.simplefilter("ignore", UserWarning)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def use_deterministic_algorithms() -> None:
    """Have GPUs compute the same bits each time, by slower kernels where there are any; raise where there are none.

    To be called before the first operation on a GPU. On a CPU this changes nothing.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add up in any order
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def cumulative_sum(x: Tensor) -> Tensor:
    """Return the running sums of (..., n) floats along the last axis.

    Where deterministic algorithms are asked for, torch has none for this on GPUs: there blocks are summed by products
    with triangular matrices.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(dim=-1)
    return blocked_cumulative_sum(x)


def blocked_cumulative_sum(x: Tensor, block: int = 128) -> Tensor:
    """Compute `cumulative_sum` block by block, in matrix products."""
    length = x.shape[-1]
    blocks = F.pad(x, (0, -length % block)).unflatten(-1, (-1, block))  # (..., blocks, block)
    within = blocks @ torch.ones(block, block, dtype=x.dtype, device=x.device).triu()
    count = blocks.shape[-2]
    before = within[..., -1] @ torch.ones(count, count, dtype=x.dtype, device=x.device).triu(1)
    return (within + before.unsqueeze(-1)).flatten(-2)[..., :length]


def without_autocast(device_type: str) -> AbstractContextManager:
    """Return a context in which operations compute in the format of their arguments."""
    if not torch.amp.is_autocast_available(device_type):  # the meta device has none
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def in_float32(function: Function) -> Function:
    """Decorate `function` to compute outside autocast, with its half-precision arguments as float32.

    Losses and distances need it: autocast would compute their matrix products in half precision, whatever their
    arguments are. Arguments in float64 stay so.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        with without_autocast(tensors[0].device.type):
            return function(*map(_widened, args), **{name: _widened(each) for name, each in kwargs.items()})

    return cast(Function, run)


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
