"""All-reduce of numbers sent in a 16-bit format that no backend knows, such as the paper's 1-6-9 (App. E)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dalle import distributed
from dalle.training.float_formats import FloatFormat


def all_reduce_sum_encoded(
    tensors: Sequence[Tensor], format: FloatFormat, group: dist.ProcessGroup | None = None
) -> list[Tensor]:
    """Compute the sum of each of `tensors` over all ranks or those of `group`, sent as codes of `format`.

    Each rank rounds its tensors and sends one part of them to each other rank. A rank adds the parts that it receives
    in float32, rounds the sum, and sends it to all: 2 bytes for each number in both directions. The result, in float32,
    is equal on all ranks. Large values become the largest number of the format, and NaN becomes 0.
    """
    if not tensors:
        return []
    flat = torch.cat([each.detach().flatten().float() for each in tensors])
    if distributed.is_distributed():
        ranks = dist.get_world_size(group)
        codes = format.encode(torch.nn.functional.pad(flat, (0, -len(flat) % ranks)))
        received = torch.empty_like(codes)
        dist.all_to_all_single(_bytes(received), _bytes(codes), group=group)  # part i of each rank to rank i
        total = format.encode(format.decode(received).view(ranks, -1).sum(dim=0))
        dist.all_gather_into_tensor(_bytes(codes), _bytes(total), group=group)
        flat = format.decode(codes)[: len(flat)]
    else:
        flat = format.round(flat).nan_to_num(nan=0.0)
    parts = flat.split([each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]


def _bytes(codes: Tensor) -> Tensor:
    """Return int16 codes as bytes, which all backends can send."""
    return codes.view(torch.uint8)
