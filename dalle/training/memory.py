"""Memory on the CPU: what a training step frees is kept for the next step instead of going back to the system.

Activations of many megabytes are freed and asked for again at every step. glibc hands blocks of that size back to the
kernel, which then has to clear every page anew; on the demo's dVAE that took a third of the time
(`benchmarks/training.py`).
"""

import ctypes
import os

# from malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed, and PyTorch to ask for huge pages; false where there is no glibc.

    Call it before the first large tensor is made. Memory use is then the largest ever needed, until the process ends.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())
