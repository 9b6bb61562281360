"""In which number format the forward pass computes: chosen once for a run, and kept when it resumes."""

import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(precision: str, device: torch.device) -> str:
    """The format that `precision` means on `device`: "float32", "bfloat16" or "float16".

    "auto" is bfloat16 on CUDA. On a CPU it is bfloat16 where the processor has instructions for it and wins a
    race of a few milliseconds with them (some advertise them and are slower), and float32 otherwise.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bfloat16"
        fast = device.type == "cpu" and _has_bfloat16_instructions() and _bfloat16_is_faster()
        return "bfloat16" if fast else "float32"
    if precision not in FORMATS:
        raise ValueError(f"precision={precision} is unknown; choose auto, {', '.join(FORMATS)}")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products and convolutions compute in `precision`; weights stay float32."""
    return torch.autocast(device.type, FORMATS[precision], enabled=precision != "float32")


def _has_bfloat16_instructions() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux: float32 is never wrong
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _bfloat16_is_faster(size: int = 512, rounds: int = 4, margin: float = 1.2) -> bool:
    """Whether a linear layer under autocast, weight cast included, beats float32 by more than `margin`."""
    x, weight = torch.ones(size, size), torch.ones(size, size)
    best = {False: float("inf"), True: float("inf")}
    with torch.no_grad():
        for _ in range(rounds):  # taking turns, so that a busy moment of the machine hits both
            for enabled in best:
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    begin = time.perf_counter()
                    F.linear(x, weight)
                    best[enabled] = min(best[enabled], time.perf_counter() - begin)
    return best[False] > margin * best[True]
