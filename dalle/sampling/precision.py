"""In which number format images are drawn."""

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve(precision: str, device: torch.device) -> torch.dtype:
    """The number format that `precision` means on `device`: "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: there is none of that name.
    """
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision} is unknown; choose auto, {' or '.join(PRECISIONS)}")
    return PRECISIONS[precision]
