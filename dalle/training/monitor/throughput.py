"""Throughput of a training run: model FLOPs utilisation (MFU), tokens per second and peak memory."""

import re
import resource
import sys
import time
from functools import cache
from typing import NamedTuple

import torch

from dalle import distributed
from dalle.precision import FORMATS
from dalle.training.flops import TRAINING_FACTOR, ImageCost

MEASURED_SIZE = 1024  # side of the matrices that are multiplied to measure a CPU
MEASURED_SECONDS = 0.3


class PeakFlops(NamedTuple):
    """Peak matrix-product rates of a GPU in FLOP/s, without sparsity, from its data sheet."""

    half: float  # float16, and bfloat16 unless `has_bfloat16` is false
    single: float  # float32 without TF32
    has_bfloat16: bool = True

    @property
    def tf32(self) -> float:
        """Rate of float32 with TF32, half of that of float16; GPUs without bfloat16 have no TF32 either."""
        return self.half / 2 if self.has_bfloat16 else self.single


GPUS = {  # words of torch.cuda.get_device_name() -> rates; the longest entry that matches is used
    "V100": PeakFlops(125e12, 15.7e12, has_bfloat16=False),
    "V100S": PeakFlops(130e12, 16.4e12, has_bfloat16=False),
    "T4": PeakFlops(65e12, 8.1e12, has_bfloat16=False),
    "A10": PeakFlops(125e12, 31.2e12),
    "A10G": PeakFlops(70e12, 31.5e12),
    "A30": PeakFlops(165e12, 10.3e12),
    "A40": PeakFlops(149.7e12, 37.4e12),
    "RTX A6000": PeakFlops(154.8e12, 38.7e12),
    "A100": PeakFlops(312e12, 19.5e12),
    "L4": PeakFlops(121e12, 30.3e12),
    "L40": PeakFlops(181e12, 90.5e12),
    "L40S": PeakFlops(362e12, 91.6e12),
    "RTX 3090": PeakFlops(71e12, 35.6e12),
    "RTX 4090": PeakFlops(165.2e12, 82.6e12),
    "H100": PeakFlops(989.4e12, 66.9e12),
    "H100 PCIe": PeakFlops(756e12, 51.2e12),
    "H100 NVL": PeakFlops(835e12, 60e12),
    "H200 NVL": PeakFlops(835e12, 60e12),
    "H200": PeakFlops(989.4e12, 66.9e12),
    "GH200": PeakFlops(989.4e12, 66.9e12),
    "B200": PeakFlops(2250e12, 75e12),
    "GB200": PeakFlops(2500e12, 80e12),
}
OTHER_CARDS = {"Ti", "D", "Laptop", "MIG"}  # words in names of cards, or parts of a card, with rates of their own


class Throughput:
    """Rates of a run, from the images per second of all ranks."""

    def __init__(self, cost: ImageCost | None, device: torch.device, precision: str):
        """Look up or measure the peak rate of `device`.

        cost: work of one image; None if it could not be counted.
        precision: format of matrix products, of `matmul_format`.
        """
        self.cost, self.device = cost, device
        self.peak, self.message = (
            (None, "the model's FLOPs are unknown") if cost is None else peak_of(device, precision)
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def metrics(self, images_per_second: float) -> dict[str, float]:
        """Return tokens per second of all ranks, MFU and this rank's peak memory, as far as they are known.

        The MFU is the share of the devices' peak rate that the model's forward and backward passes need (Chowdhery et
        al. 2022, App. B). Activation checkpointing lowers it, since what is computed twice counts once.
        """
        metrics = {}
        if self.cost is not None and self.cost.tokens is not None:
            metrics["tokens_per_second"] = images_per_second * self.cost.tokens
        if self.cost is not None and self.peak is not None:
            flops_per_second = images_per_second * self.cost.flops * TRAINING_FACTOR
            metrics["mfu"] = flops_per_second / (self.peak * distributed.get_world_size())
        return metrics | {"memory_gb": peak_memory(self.device) / 1e9}


def peak_of(device: torch.device, precision: str) -> tuple[float | None, str]:
    """Return the peak rate of matrix products in FLOP/s, None if it is unknown, and its source or the reason."""
    if device.type == "cpu":
        rate = measure(precision, torch.get_num_threads())
        return rate, f"mfu is relative to {rate / 1e12:.3g} TFLOP/s, measured with matrix products in {precision}"
    if device.type != "cuda":
        return None, f"no peak rate of {device} is known"
    name = torch.cuda.get_device_name(device)
    peak = peak_of_gpu(name, precision)
    if peak is None:
        return None, f"no peak rate of {name} in {precision} is known; add it to GPUS in {__name__}"
    return peak, f"mfu is relative to {peak / 1e12:.4g} TFLOP/s of {name} in {precision}"


def peak_of_gpu(name: str, precision: str) -> float | None:
    """Return the peak rate of the GPU `name` in FLOP/s, or None if it is not in `GPUS`."""
    entries = [entry for entry in GPUS if is_named(entry, name)]
    if not entries:
        return None
    peak = GPUS[max(entries, key=len)]
    if precision in ("float32", "tf32"):
        return peak.tf32 if precision == "tf32" else peak.single
    return peak.half if precision == "float16" or peak.has_bfloat16 else None


def is_named(entry: str, name: str) -> bool:
    """Return True if the device name has the words of `entry`, such as "H100 PCIe", in a row.

    Only whole words count: an RTX A4000 is not an A40. With "RTX" it is another card than without.
    """
    words, entry_words = re.findall(r"\w+", name), entry.split()
    if OTHER_CARDS & set(words) or ("RTX" in words) != ("RTX" in entry_words):
        return False
    return any(words[start : start + len(entry_words)] == entry_words for start in range(len(words)))


@cache
def measure(precision: str, threads: int) -> float:
    """Measure this CPU's rate of matrix products in FLOP/s with `threads` threads: the best of 0.3 seconds.

    All ranks measure at once, so ranks on one machine share its rate.
    """
    ones = torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=FORMATS[precision])
    product = torch.empty_like(ones)
    best, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while (begin := time.perf_counter()) < end:
        torch.mm(ones, ones, out=product)
        best = min(best, time.perf_counter() - begin)
    return 2 * MEASURED_SIZE**3 / best


def peak_memory(device: torch.device) -> int:
    """Return the peak of the memory allocated on a GPU, else of this process's resident memory, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
