"""Sharding of a model for many ranks in one process, with torch's fake process group, to count what a rank holds."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from dalle.training.compression import CompressionConfig, MatrixPartition, partitions
from dalle.training.sharding import SHARD, init_mesh, local, mesh_of_backward, shard


class Placement(NamedTuple):
    """Part of a model on one rank."""

    parameters: int  # trainable ones
    partitions: dict[str, MatrixPartition]  # of the matrices whose gradients are compressed


def place_model(
    build: Callable[[], nn.Module], mode: str, shard_size: int | None, world: int, compression: CompressionConfig
) -> Placement:
    """Shard the model for `world` ranks as training does, and return the part of the first rank, the largest.

    build: builds the model; it is called on the meta device.

    Raises ValueError for settings that training refuses: ranks or blocks that do not divide into groups, or compression
    without several copies of the weights; and if there is a process group already.
    """
    if dist.is_initialized():
        raise ValueError("a plan needs a process without a process group: run plan=true without torchrun")
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        mesh = init_mesh(mode, shard_size, torch.device("cpu"))
        is_compressed = compression.rank > 0
        with torch.device("meta"):
            model = build()
        if mesh is not None:
            compression.check_sharding()
            shard(model, mesh_of_backward(mesh, is_compressed))
        shards = 1 if mesh is None else mesh[SHARD].size()
        matrix_partitions = partitions(model, compression, shards) if is_compressed else {}
        return Placement(
            sum(local(parameter).numel() for parameter in model.parameters() if parameter.requires_grad),
            matrix_partitions,
        )
    finally:
        dist.destroy_process_group()
