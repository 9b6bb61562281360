"""Asynchronous copies from CPU memory to a GPU."""

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, **options: Any) -> Tensor:
    """Copy a CPU tensor to `device` without waiting for pending GPU work.

    A copy from pageable memory would block until the GPU is ready. The tensor is therefore first copied to pinned
    memory, which torch keeps until the copy is complete.

    options: further arguments of `Tensor.to`, such as memory_format.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True, **options)
