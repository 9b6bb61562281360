"""Measured limits of this machine, which bound the speed of every decoder (roofline model)."""

import ctypes
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dalle.models.cpu_linear import PackedLinear, is_packing_supported
from dalle.models.transformer.config import TransformerConfig
from dalle.models.transformer.patterns import PATTERNS, image_attend_mask, pattern_names

Result = TypeVar("Result")
Clock = Callable[[], float]

BYTES = {"float32": 4, "bfloat16": 2}
ROW_LENGTH = 4096  # numbers per row
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def seconds(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    begin = clock()
    work()
    return clock() - begin


def read_bandwidth(size: int, tries: int = 6, clock: Clock = time.perf_counter) -> float:
    """Return the bytes per second, best of `tries`, of reading `size` bytes repeatedly, as decoding does."""
    rows = torch.ones(max(1, size // (4 * ROW_LENGTH)), ROW_LENGTH)
    one = torch.ones(ROW_LENGTH)
    # both read everything once; the faster one depends on the machine
    best = min(seconds(read, clock) for _ in range(tries) for read in (rows.sum, partial(torch.mv, rows, one)))
    return rows.nbytes / best


def matmul_rate(precision: str, size: int = 1024, tries: int = 6, clock: Clock = time.perf_counter) -> float:
    """Return operations (multiplications and additions) per second of the fastest torch matmul in `precision`."""
    dtype = getattr(torch, precision)
    layer = nn.Linear(size, size, bias=False, dtype=dtype)
    layers = [layer, PackedLinear(layer, size, dtype)] if is_packing_supported(dtype) else [layer]
    x = torch.ones(size, size, dtype=dtype)
    with torch.inference_mode():
        return 2 * size**3 / min(seconds(partial(module, x), clock) for _ in range(tries) for module in layers)


def decoding_work(
    config: TransformerConfig,
    batch: int,
    precision: str,
    *,
    captions: int = 1,
    tokens_per_pass: float = 1.0,
    window: int = 1,
) -> tuple[int, int]:
    """Return the bytes to read and the operations to compute for `batch` images of `captions` captions.

    Read in a pass: the weights of all linear layers, the keys and values of each caption once for all its images, and
    those of the image tokens so far that the layers' patterns attend to; all numbers in `precision`.

    tokens_per_pass: image tokens that a pass adds to each image; 1 without parallel decoding.
    window: image tokens of each image that a pass computes.
    """
    width, passes = config.width, config.grid**2 / tokens_per_pass
    weights = config.depth * 12 * width**2 + width * config.image_vocabulary
    text, attended = config.depth * config.text_positions, attended_positions(config)
    numbers = passes * (weights + 2 * width * (batch * attended + captions * text))
    operations = 2 * passes * batch * window * (weights + 2 * width * (attended + text))
    return round(numbers) * BYTES[precision], round(operations)


def attended_positions(config: TransformerConfig) -> float:
    """Return how many image positions a token attends to on average, itself included, added up over all layers."""
    names = pattern_names(config.patterns, config.depth)
    positions = {
        name: int(image_attend_mask(PATTERNS.lookup(name).build(config.pattern_options), config.grid).sum())
        for name in set(names)
    }
    return sum(positions[name] for name in names) / config.grid**2


def peak_memory(work: Callable[[], Result]) -> tuple[Result, int]:
    """Return the result of `work` and the peak increase of resident memory in bytes (0 if the kernel has no data)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, because its reuse would not be counted
        CLEAR_REFS.write_text("5")  # reset the peak
        before = _status("VmRSS")
    except (OSError, AttributeError):
        return work(), 0
    result = work()
    return result, max(0, _status("VmHWM") - before)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
