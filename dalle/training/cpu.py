"""The CPU, set up for training: freed memory is kept, and numbers too small to matter count as zero.

What each gains is measured by `benchmarks/training.py`.

Activations of many megabytes are freed and asked for again at every step. glibc hands blocks of that size back to the
kernel, which then has to clear every page anew.

Below 1.2e-38 a float32 is denormal, and a CPU takes a hundred times as long over it. An encoder that is sure of its
codes makes millions of them: a relaxed sample gives the other codes probabilities of e^-100.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# from malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@contextmanager
def set_up(device: torch.device) -> Iterator[None]:
    """Within it, denormal numbers count as zero, and freed memory is kept until the process ends, if it is a CPU.

    Begin before the first large tensor is made, and before PyTorch has threads, which do as the one that began them.
    """
    if device.type != "cpu":
        yield
        return
    keep_freed_memory()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)  # other code in this process may count on them


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed, and PyTorch to ask for huge pages; false where there is no glibc.

    Memory use is then the largest ever needed, until the process ends.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())
