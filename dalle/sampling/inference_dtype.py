"""Number format (dtype) of the transformer in sampling."""

import torch

from dalle.precision import FORMATS, has_bfloat16

NAMES = ("float32", "bfloat16")


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of `precision` on `device`: "auto" is bfloat16 on a GPU and float32 on a CPU.

    On a GPU that would only emulate bfloat16, "auto" is float32.

    Raises:
        ValueError: an unknown format.
    """
    if precision == "auto":
        emulated = device.type == "cuda" and not has_bfloat16(device)
        return torch.float32 if device.type == "cpu" or emulated else torch.bfloat16
    if precision not in NAMES:
        raise ValueError(f"precision={precision} is unknown; choose auto, {' or '.join(NAMES)}")
    return FORMATS[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number format as the option `precision` takes it."""
    return str(dtype).removeprefix("torch.")
