"""Sharded training by FSDP2: each rank holds a shard of every weight, gradient and moment (Zhao et al. 2023; ZeRO-3).

A weight is a `DTensor`, split along its first dimension. Before a block runs, its weights are gathered; after its
backward pass, gradients are reduce-scattered. Code that works element by element uses `local`, and works for whole
tensors too.

Importing DTensor and FSDP takes a second, so only functions that need them do it; `is_dtensor` looks for a method.

fsdp: one group of all ranks. hsdp: groups of `shard_size` ranks with one copy of the weights each; gradients are
averaged over groups too.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.utils import get_total_norm

from dalle import distributed
from dalle.models.blocks import TransformerBlock
from dalle.models.clip.resnet import Bottleneck
from dalle.models.decoder.unet import ScaleShiftBlock
from dalle.models.dvae.convolutions import ResidualBlock

MODES = ("ddp", "fsdp", "hsdp")
# blocks of all models; the weights of a model without any are gathered all at once
RESIDUAL_BLOCKS = (TransformerBlock, ResidualBlock, Bottleneck, ScaleShiftBlock)
REPLICATE, SHARD = "replicate", "shard"  # dimensions of the mesh


def check_mode(mode: str, shard_size: int | None) -> None:
    """Raise ValueError for an unknown mode, and for a shard_size that is not positive or that the mode does not use."""
    if mode not in MODES:
        raise ValueError(f"distributed={mode} is unknown; choose one of {', '.join(MODES)}")
    if shard_size is not None and mode != "hsdp":
        raise ValueError(f"shard_size={shard_size} is a setting of distributed=hsdp, not of distributed={mode}")
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"shard_size={shard_size} must be at least 1")


def init_mesh(mode: str, shard_size: int | None, device: torch.device) -> DeviceMesh | None:
    """Arrange the ranks for `mode`: ("shard",) for fsdp, ("replicate", "shard") for hsdp, None for ddp.

    Also None with one rank, which has nothing to shard. `shard_size`: ranks per group; None: those of one node, as
    torchrun states them. Raises ValueError if the ranks do not divide into such groups.
    """
    ranks = distributed.get_world_size()
    if mode == "ddp" or ranks == 1:
        return None
    if mode == "fsdp":
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=(SHARD,))
    size = shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if ranks % size:
        raise ValueError(
            f"distributed=hsdp: {ranks} ranks do not divide into groups of shard_size={size}: set shard_size to a "
            f"divisor of {ranks}, or start a multiple of {size} ranks"
        )
    return init_device_mesh(device.type, (ranks // size, size), mesh_dim_names=(REPLICATE, SHARD))


def mesh_of_backward(mesh: DeviceMesh, compressed: bool) -> DeviceMesh:
    """Return the part of `mesh` whose ranks average gradients in the backward pass: all of it, or one group.

    With `compressed` gradients it is the group that shares a copy of the weights; PowerSGD reduces over groups
    afterwards. Raises ValueError if there is one group only.
    """
    if not compressed:
        return mesh
    if mesh.ndim == 1 or mesh[REPLICATE].size() == 1:
        raise ValueError(
            "compression.rank needs several copies of the weights, between which gradients are compressed: set "
            "distributed=hsdp with a shard_size below the number of ranks, distributed=ddp, or compression.rank=0"
        )
    return mesh[SHARD]


def sharding_units(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are sharded as units: transformer, residual and bottleneck blocks.

    The weights of one unit are gathered at a time. All others, such as embeddings, belong to the root module and stay
    gathered from its forward to its backward pass.
    """
    return [module for module in model.modules() if isinstance(module, RESIDUAL_BLOCKS)]


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard `model` in place over `mesh`, and return it. Its weights must be equal on all ranks.

    Scalar parameters become vectors of one number, since FSDP cannot shard scalars.
    """
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            whole = parameter.detach().contiguous()  # FSDP has no channels-last weights
            shape = parameter.shape or (1,)
            setattr(module, name, nn.Parameter(whole.reshape(shape), requires_grad=parameter.requires_grad))
    for unit in [*sharding_units(model), model]:
        fully_shard(unit, mesh=mesh)
    return model


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of the sharded `model`. A forward pass without gradients keeps those of the root."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Return True if the weights of `model` are sharded."""
    return any(is_dtensor(parameter) for parameter in model.parameters())


def is_dtensor(tensor: Tensor) -> bool:
    """Return True for a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, which shares its memory; any other tensor itself."""
    return _dtensor(tensor).to_local() if is_dtensor(tensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """Return a DTensor as a whole tensor on every rank; any other tensor itself. All ranks must call it."""
    return _dtensor(tensor).full_tensor() if is_dtensor(tensor) else tensor


def own_shard(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of `whole`, sharded as the DTensor `like`; without a DTensor, `whole`.

    `whole` may also be a DTensor that is sharded like that.
    """
    if is_dtensor(whole) or not is_dtensor(like):
        return local(whole)
    mesh: DeviceMesh = _dtensor(like).device_mesh
    for dimension, placement in enumerate(_dtensor(like).placements):
        if placement.is_shard():
            chunks = whole.chunk(mesh.size(dimension), dim=placement.dim)
            rank = mesh.get_local_rank(dimension)
            # fewer rows than ranks: the last ranks have none
            whole = chunks[rank] if rank < len(chunks) else whole.narrow(placement.dim, 0, 0)
    return whole


def from_local(shard: Tensor, like: Tensor) -> Tensor:
    """Return the DTensor of all ranks' shards, of the shape of the DTensor `like`; without a DTensor, `shard`."""
    if not is_dtensor(like):
        return shard
    from torch.distributed.tensor import DTensor

    mesh, placements = _dtensor(like).device_mesh, _dtensor(like).placements
    return DTensor.from_local(shard, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


@torch.no_grad()
def copy_to(target: Tensor, source: Tensor) -> None:
    """Copy `source`, whole or sharded as `target`, to `target`; a scalar may be a vector of one number in either."""
    whole = source if is_dtensor(source) else source.reshape(target.shape)
    local(target).copy_(own_shard(whole, target))


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Compute the norm of all gradients, of all shards, in float32. All ranks must call it."""
    if any(gradient.dtype == torch.bfloat16 for gradient in gradients):  # whose norms torch would round to bfloat16
        return torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]).norm()
    return gather(get_total_norm(gradients))


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights and buffers of `source`, sharded or not, to the equal but unsharded model `target`.

    All ranks must call it.
    """
    tensors = source.state_dict()
    for name, tensor in target.state_dict().items():
        copy_to(tensor, gather(tensors[name]))


def _dtensor(tensor: Tensor) -> Any:
    """Return `tensor`, whose type a checker does not know to be a DTensor."""
    return tensor
