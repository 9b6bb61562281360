"""Choice between code for a CPU and for a GPU, where both compute the same in different ways.

It follows the device of a tensor, except in plans, which run the code of a GPU on fake tensors of a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_forced_device_type: str | None = None  # a variable of the module, which torch.compile can read, unlike a ContextVar


def kernel_device(device: torch.device) -> str:
    """Return the type of device ("cpu", "cuda" ...) whose code is to be used for tensors on `device`."""
    return _forced_device_type or device.type


@contextmanager
def use_kernels_of(device_type: str) -> Iterator[None]:
    """Context in which tensors of any device are computed by the code for `device_type`."""
    global _forced_device_type
    previous, _forced_device_type = _forced_device_type, device_type
    try:
        yield
    finally:
        _forced_device_type = previous
