"""Description of the machine: name, versions, and measured memory bandwidth and matmul throughput."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import processor

PACKAGES = ("numpy", "triton", "transformers", "torchmetrics", "hydra-core", "tokenizers", "safetensors")
SHARE_OF_IDLE_GPU = 0.9  # of its memory; a process that begins finds more free, unless others use the GPU


def describe(device: torch.device) -> dict[str, Any]:
    """Return the machine's hardware and package versions, which are reported with all results."""
    description: dict[str, Any] = {"device": str(device), "processor": processor(), "cores": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    description |= {"python": platform.python_version(), "torch": torch.__version__}
    return description | {"packages": {name: _version(name) for name in PACKAGES}}


def name_of(machine: dict[str, Any]) -> str:
    """Return a description in one line of a machine, as `describe` returns it."""
    if "gpu" not in machine:
        return f"{machine['processor']}, {machine['cores']} threads, torch {machine['torch']}"
    memory = f"{machine['gpu_memory_bytes'] / 2**30:.0f} GiB"
    return f"{machine['gpu']} ({memory}), driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}"


def memory_bytes(device: torch.device) -> int:
    """Return the free memory of the device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def is_shared(device: torch.device, free: int) -> bool:
    """Return True if other processes hold memory of a GPU, of which a process that begins finds `free` bytes."""
    return device.type == "cuda" and free < SHARE_OF_IDLE_GPU * torch.cuda.mem_get_info(device)[1]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds until the device has finished `work`."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def median_seconds(work: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """Return the median seconds over `rounds`, after one warm-up round."""
    work()
    return statistics.median(seconds(work, device) for _ in range(rounds))


def read_bandwidth(device: torch.device, size: int) -> float:
    """Return the bytes per second of a sum over `size` bytes."""
    numbers = torch.ones(size // 4, device=device)
    return numbers.nbytes / median_seconds(numbers.sum, device)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the operations (multiplications and additions) per second of a product of random side x side matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device)


class PeakMemory:
    """Context manager that records torch's peak GPU memory in `bytes`, which is None on a CPU."""

    bytes: int | None = None

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[0] or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
