"""Number format (dtype) of the transformer in sampling."""

import torch

from dalle.precision import FORMATS

NAMES = ("float32", "bfloat16")


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of `precision` on `device`: "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: an unknown format.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if precision not in NAMES:
        raise ValueError(f"precision={precision} is unknown; choose auto, {' or '.join(NAMES)}")
    return FORMATS[precision]
