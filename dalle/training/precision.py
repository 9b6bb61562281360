"""The number format of a run's forward pass: chosen once, and kept when the run resumes."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dalle.precision import FORMATS

# Below, converting weights and activations takes more time than bfloat16 products save (benchmarks/precision.py)
LARGE_ENOUGH = 100_000  # parameters


class Precision(NamedTuple):
    name: str  # float32 | bfloat16 | float16
    reason: str


def resolve(precision: str, model: nn.Module, device: torch.device) -> Precision:
    """The format that `precision` means for training `model` on `device`, and why.

    "auto" is bfloat16 on CUDA. On a CPU it is bfloat16 if the processor multiplies matrices of bfloat16 in hardware
    made for it (AMX) and the model is large enough to gain by it, and float32 otherwise. It depends on nothing else,
    so equal runs on equal machines are equal.

    Raises:
        ValueError: an unknown format.
    """
    if precision != "auto":
        if precision not in FORMATS:
            raise ValueError(f"precision={precision} is unknown; choose auto, {', '.join(FORMATS)}")
        return Precision(precision, "as asked for")
    if device.type == "cuda":
        return Precision("bfloat16", "as on every GPU")
    if device.type != "cpu" or not has_amx():
        return Precision("float32", "the processor has no AMX" if device.type == "cpu" else f"as on {device.type}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters < LARGE_ENOUGH:
        return Precision("float32", f"{parameters:,} parameters gain nothing by bfloat16")
    return Precision("bfloat16", "the processor has AMX")


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell if the processor has Intel's matrix extensions for bfloat16; false where nothing says so."""
    try:
        return "amx_bf16" in cpuinfo.read_text()
    except OSError:  # no Linux
        return False
