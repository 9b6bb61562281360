"""Copies from the CPU's memory to a GPU that training does not wait for."""

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, **options: Any) -> Tensor:
    """Return a CPU tensor on `device`, without waiting for what a GPU is still computing.

    From pageable memory a copy would wait for the GPU, so the tensor is first copied into pinned memory, which torch
    keeps until the copy is done.

    options: further arguments of `Tensor.to`, as memory_format.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True, **options)
