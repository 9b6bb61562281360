"""Number formats by name, computing outside autocast where half precision is too coarse, and exactness on GPUs."""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
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
