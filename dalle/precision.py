"""Precision: autocast, float32 computation inside autocast, exact and deterministic computation on GPUs."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_CAPABILITY = (8, 0)  # compute capability of the first GPUs with bfloat16 and TF32, such as A100
FLOAT32_MATMUL_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision

Function = TypeVar("Function", bound=Callable[..., Any])


def check_precision(precision: str) -> None:
    """Raise ValueError unless `precision` is "auto" or a name in `FORMATS`."""
    if precision != "auto" and precision not in FORMATS:
        raise ValueError(f"precision={precision} is unknown; choose auto, {', '.join(FORMATS)}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return a context in which matrix products and convolutions use `precision`; weights stay float32."""
    return torch.autocast(device.type, FORMATS[precision], enabled=precision != "float32")


def names_amx(cpuinfo: Path) -> bool:
    """Return True if the file `cpuinfo` names Intel's AMX for bfloat16; False if it is missing."""
    try:
        return "amx_bf16" in cpuinfo.read_text()
    except OSError:  # not on Linux
        return False


AMX = names_amx(Path("/proc/cpuinfo"))  # read once, where torch.compile does not trace it


def has_amx() -> bool:
    """Return True if the processor has Intel's AMX for bfloat16."""
    return AMX


def has_bfloat16(device: torch.device) -> bool:
    """Return True if the GPU `device` computes in bfloat16; False if torch would emulate it, slowly, as on T4 and V100.

    `torch.cuda.is_bf16_supported` counts emulation.
    """
    return torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def use_exact_float32() -> None:
    """Disable TF32 on GPUs, which has 10 significand bits, for float32 matrix products and convolutions.

    cuDNN uses TF32 by default; a dVAE's codes would then differ from those on a CPU.
    """
    with warnings.catch_warnings():  # about newer names, which torch 2.6 does not have
        warnings.simplefilter("ignore", UserWarning)
        _set_float32_matmul_precision("highest")


def check_float32_matmul_precision(precision: str) -> None:
    """Raise ValueError unless `precision` is one of `FLOAT32_MATMUL_PRECISIONS`."""
    if precision not in FLOAT32_MATMUL_PRECISIONS:
        choices = ", ".join(FLOAT32_MATMUL_PRECISIONS)
        raise ValueError(f"float32_matmul_precision={precision} is unknown; choose one of {choices}")


@contextmanager
def float32_matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Context that sets the precision of float32 matrix products and convolutions on GPUs; afterwards they are exact.

    It does nothing if `device` is no GPU: on some CPUs torch would compute products in TF32 or bfloat16 too.

    precision: "highest": float32; "high", "medium": TF32, on GPUs that have it (`torch.set_float32_matmul_precision`,
        `torch.backends.cudnn.allow_tf32`).
    """
    if device.type != "cuda":
        yield
        return
    _set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        _set_float32_matmul_precision("highest")


def _set_float32_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products, and that of convolutions with it.

    These two names exist in every version of torch. Others, such as `torch.backends.cudnn.conv.fp32_precision` and
    `torch.backends.cuda.matmul.allow_tf32`, must not be set beside them: torch raises errors when it reads a mixture.
    """
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def describe_float32_matmul_precision(precision: str, device: torch.device) -> str:
    """Return a line for the log of a run: what `precision` changes on `device`; empty for "highest"."""
    if precision == "highest":
        return ""
    setting = f"float32_matmul_precision={precision}"
    if device.type != "cuda":
        return f"{setting} has no effect on a {device.type.upper()}: it is for CUDA GPUs"
    if not has_tf32(device):
        return f"{setting} has no effect on this GPU, which has no TF32"
    return f"{setting}: float32 matrix products and convolutions of updates are in TF32"


def has_tf32(device: torch.device) -> bool:
    """Return True for a CUDA GPU with TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def matmul_format(precision: str, float32_matmul_precision: str, tf32_available: bool) -> str:
    """Return the format in which a device computes matrix products in `precision`: one of `FORMATS`, or "tf32"."""
    uses_tf32 = tf32_available and precision == "float32" and float32_matmul_precision != "highest"
    return "tf32" if uses_tf32 else precision


def use_deterministic_algorithms() -> None:
    """Make GPU results reproducible to the bit, with slower kernels; operations without such a kernel then raise.

    Call it before the first operation on a GPU. It has no effect on a CPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in any order
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def cumulative_sum(x: Tensor) -> Tensor:
    """Return the cumulative sum of (..., n) floats along the last axis.

    torch has no deterministic algorithm for this on GPUs. If one is required, `blocked_cumulative_sum` is used.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(dim=-1)
    return blocked_cumulative_sum(x)


def blocked_cumulative_sum(x: Tensor, block: int = 128) -> Tensor:
    """Compute the cumulative sum by products with triangular matrices, in blocks of `block` numbers.

    In float64, which `float32_matmul_precision` does not round.
    """
    length = x.shape[-1]
    blocks = F.pad(x.double(), (0, -length % block)).unflatten(-1, (-1, block))  # (..., blocks, block)
    within = blocks @ torch.ones(block, block, dtype=torch.float64, device=x.device).triu()
    count = blocks.shape[-2]
    before = within[..., -1] @ torch.ones(count, count, dtype=torch.float64, device=x.device).triu(1)
    return (within + before.unsqueeze(-1)).flatten(-2)[..., :length].to(x.dtype)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Return a context without autocast: operations compute in the dtype of their arguments."""
    if not torch.amp.is_autocast_available(device_type):  # the meta device has none
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def in_float32(function: Function) -> Function:
    """Decorate `function` to compute outside autocast, with half-precision tensor arguments cast to float32.

    Losses and distances need it, because autocast computes matrix products in half precision for any dtype of the
    arguments. float64 arguments are not cast.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with without_autocast(tensors[0].device.type):
            return function(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    return cast(Function, run)


def _widened(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
