"""Memory of one rank during training: weights, gradients, moments, averages and activations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dalle.planning.activations import FLOAT32, Forward, loss_bytes
from dalle.training.sharding import sharding_units
from dalle.training.stage import TrainingConfig
from dalle.training.weight_matrices import weight_matrices

MOMENT16 = 2  # bytes


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, by what they hold."""

    parameters: int
    buffers: int  # masks and tables, of the model and of its average
    gradients: int
    moments: int
    average: int  # EMA of the weights
    gathered: int  # whole weights and gradients of the shards in use
    activations: int  # of one micro-batch
    loss: int  # logits and their gradient
    update: int  # copies that the optimizer makes
    accumulates: bool = False  # over several micro-batches

    @property
    def always(self) -> int:
        """Bytes held during a whole step."""
        return self.parameters + self.buffers + self.moments + self.average

    @property
    def peak(self) -> int:
        """Largest sum at any time.

        It is reached when the backward pass begins, with all activations, or in the update, with all gradients. With
        several micro-batches the gradients of the previous ones are there from the second on.
        """
        earlier = self.gradients if self.accumulates else 0
        backward = self.gathered + self.activations + self.loss + earlier
        return self.always + max(backward, self.gradients + self.update)


def rank_memory(
    build: Callable[[], nn.Module], config: TrainingConfig, forward: Forward, images: int, own: int | None = None
) -> RankMemory:
    """Compute the memory of one rank that trains on micro-batches of `images` images.

    build: builds the model; it is called on the meta device.
    forward: of a micro-batch.
    own: number of parameters in this rank's shard; None: all, without sharding.
    """
    with torch.device("meta"):
        model = build()
    share = 1.0 if own is None else own / trained(model)
    parameters = round(share * FLOAT32 * trained(model))
    return RankMemory(
        parameters=parameters,
        buffers=2 * sum(each.nbytes for each in model.buffers()),
        gradients=parameters,
        moments=round(share * moment_bytes(model, config)),
        average=parameters,
        gathered=0 if own is None else gathered_bytes(model),
        activations=forward.kept + forward.recomputed,
        loss=loss_bytes(model, images),
        update=parameters,
        accumulates=config.accumulate > 1,
    )


def trained(module: nn.Module) -> int:
    """Count the trained parameters of a module."""
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


def moment_bytes(model: nn.Module, config: TrainingConfig) -> int:
    """Return the bytes of the optimizer's moments: two per parameter, for Muon one per matrix."""
    matrices = sum(matrix.weight.numel() for matrix in weight_matrices(model).values())
    others = trained(model) - matrices
    if config.optimizer.kind == "muon":
        return FLOAT32 * (matrices + 2 * others)
    return 2 * ((MOMENT16 if config.optimizer.moments == "paper16" else FLOAT32) * matrices + FLOAT32 * others)


def gathered_bytes(model: nn.Module) -> int:
    """Return the bytes of whole weights and gradients that sharded training needs at a time.

    The weights of the root, two blocks (one is gathered while the other computes), and the gradients of one block.
    """
    units = [trained(unit) for unit in sharding_units(model)]
    return FLOAT32 * (trained(model) - sum(units) + 3 * max(units, default=0))
