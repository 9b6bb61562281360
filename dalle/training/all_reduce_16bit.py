"""All-reduce of numbers sent in a 16-bit format that no backend knows, such as the paper's 1-6-9 (App. E)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dalle import distributed
from dalle.training.float_formats import FloatFormat

MAX_DECODED = 2**18  # numbers, of all ranks


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
    if not distributed.is_distributed():
        return [format.round(tensor.detach().float()).nan_to_num(nan=0.0) for tensor in tensors]
    ranks = dist.get_world_size(group)
    # conversion takes a multiple of the memory, so only one tensor, or MAX_DECODED numbers, is converted at a time
    codes = torch.cat([format.encode(tensor.detach().flatten()) for tensor in tensors])
    codes = torch.nn.functional.pad(codes, (0, -len(codes) % ranks))
    received = torch.empty_like(codes)
    dist.all_to_all_single(_bytes(received), _bytes(codes), group=group)  # part i of each rank to rank i
    columns = received.view(ranks, -1).split(max(1, MAX_DECODED // ranks), dim=1)
    total = torch.cat([format.encode(format.decode(chunk).sum(dim=0)) for chunk in columns])
    del received, columns
    dist.all_gather_into_tensor(_bytes(codes), _bytes(total), group=group)
    sizes = [tensor.numel() for tensor in tensors]
    parts = codes[: sum(sizes)].split(sizes)
    return [format.decode(part).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _bytes(codes: Tensor) -> Tensor:
    """Return int16 codes as bytes, which all backends can send."""
    return codes.view(torch.uint8)
