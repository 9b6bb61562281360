"""Automatic choice of the precision of a run's forward pass; a resumed run keeps its precision."""

from typing import NamedTuple

import torch
from torch import nn

from dalle.precision import check_precision, has_amx, has_bfloat16

# below this size, casting weights and activations costs more time than bfloat16 saves (benchmarks/precision.py)
MIN_PARAMETERS_FOR_BFLOAT16 = 100_000  # parameters


class Precision(NamedTuple):
    name: str  # float32 | bfloat16 | float16
    reason: str


def choose_precision(precision: str, model: nn.Module, device: torch.device) -> Precision:
    """Choose the precision for training `model` on `device`, with the reason.

    "auto" is bfloat16 on a GPU that computes in it, else float16, with loss scaling. On a CPU it is bfloat16 if the
    processor has matrix instructions for it (AMX) and the model is large enough to benefit, otherwise float32. It
    depends on nothing else, so runs on equal machines are reproducible.

    Raises:
        ValueError: an unknown precision.
    """
    if precision != "auto":
        check_precision(precision)
        return Precision(precision, "set by the config")
    if device.type == "cuda":
        if has_bfloat16(device):
            return Precision("bfloat16", "the default on a GPU")
        major, minor = torch.cuda.get_device_capability(device)
        return Precision("float16", f"a GPU of compute capability {major}.{minor} has no bfloat16, which begins at 8.0")
    if device.type != "cpu" or not has_amx():
        return Precision(
            "float32", "the processor has no AMX" if device.type == "cpu" else f"the default on {device.type}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters < MIN_PARAMETERS_FOR_BFLOAT16:
        return Precision("float32", f"{parameters:,} parameters are too few to gain speed by bfloat16")
    return Precision("bfloat16", "the processor has AMX")
