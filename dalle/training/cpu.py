"""CPU settings for training: freed memory is kept by the allocator, and denormal numbers are flushed to zero.

`benchmarks/training.py` measures the gain of each.

Activations of many megabytes are freed and allocated again at every step. By default glibc returns blocks of that size
to the kernel, which then has to clear every page again.

Float32 numbers below 1.2e-38 are denormal, and CPU operations on them are a hundred times slower. An encoder with
confident predictions produces millions of them: relaxed samples give the other codes probabilities such as e^-100.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# from malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@contextmanager
def configure_cpu(device: torch.device) -> Iterator[None]:
    """Context that flushes denormals to zero and keeps freed memory, if `device` is a CPU; else it does nothing.

    Memory is kept until the process ends. Enter before the first large tensor is allocated, and before PyTorch starts
    its threads, which inherit the setting of the thread that starts them.
    """
    if device.type != "cpu":
        yield
        return
    keep_freed_memory()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)  # other code in this process may rely on denormals


def keep_freed_memory() -> bool:
    """Configure glibc to keep freed memory, and PyTorch to request huge pages; returns False without glibc.

    Memory use then stays at its peak until the process ends.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())
