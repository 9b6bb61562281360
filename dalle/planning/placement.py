"""Placement of a model on many ranks, tried with torch's fake process group: no other process is needed."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from dalle.training.sharding import init_mesh, local, shard


def count_local_parameters(build: Callable[[], nn.Module], mode: str, shard_size: int | None, world: int) -> int:
    """Shard the model for `world` ranks and return the number of trainable parameters on the first one, the largest.

    build: builds the model; it is called on the meta device.

    Raises ValueError if the ranks do not divide into groups, RuntimeError if there is a process group already.
    """
    if dist.is_initialized():
        raise RuntimeError("a plan needs a process without a process group: run it without torchrun")
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        mesh = init_mesh(mode, shard_size, torch.device("cpu"))
        with torch.device("meta"):
            model = build()
        if mesh is not None:
            shard(model, mesh)
        return sum(local(each).numel() for each in model.parameters() if each.requires_grad)
    finally:
        dist.destroy_process_group()
