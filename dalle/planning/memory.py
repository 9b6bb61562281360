"""Memory of one rank during training: parameters, gradients, moments, EMA and activations."""

from dataclasses import dataclass

from torch import nn

from dalle.planning.activations import FLOAT32, logits_bytes
from dalle.training.sharding import sharding_units
from dalle.training.stage import TrainingConfig
from dalle.training.weight_matrices import weight_matrices

MOMENT16 = 2  # bytes


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, by what they hold."""

    parameters: int
    gradients: int
    moments: int
    ema: int
    buffers: int  # masks and tables, of the model and of its EMA
    unsharded: int  # whole parameters and gradients of the sharded blocks in use
    activations: int  # of one micro-batch
    logits: int  # and their gradient
    gradient_copies: int  # made by the optimizer
    accumulates: bool = False  # gradients over several micro-batches

    @property
    def peak(self) -> int:
        """Largest sum at any time.

        It is reached when the backward pass begins, with all activations, or in the update, with all gradients. With
        several micro-batches the gradients of the previous ones are there from the second on.
        """
        always = self.parameters + self.moments + self.ema + self.buffers
        earlier = self.gradients if self.accumulates else 0
        backward = self.unsharded + self.activations + self.logits + earlier
        return always + max(backward, self.gradients + self.gradient_copies)


def rank_memory(
    model: nn.Module, config: TrainingConfig, activations: int, images: int, local_parameters: int | None = None
) -> RankMemory:
    """Compute the memory of one rank that trains on micro-batches of `images` images.

    model: may be on the meta device.
    activations: bytes that a micro-batch's forward pass saves.
    local_parameters: number of parameters in this rank's shard; None: all, without sharding.
    """
    share = 1.0 if local_parameters is None else local_parameters / count_trainable(model)
    parameters = round(share * FLOAT32 * count_trainable(model))
    return RankMemory(
        parameters=parameters,
        gradients=parameters,
        moments=round(share * moment_bytes(model, config)),
        ema=parameters,
        buffers=2 * sum(each.nbytes for each in model.buffers()),
        unsharded=0 if local_parameters is None else unsharded_bytes(model),
        activations=activations,
        logits=logits_bytes(model, images),
        gradient_copies=parameters,
        accumulates=config.accumulate > 1,
    )


def count_trainable(module: nn.Module) -> int:
    """Count the parameters of a module that require gradients."""
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


def moment_bytes(model: nn.Module, config: TrainingConfig) -> int:
    """Return the bytes of the optimizer's moments: two per parameter, for Muon one per matrix."""
    matrices = sum(matrix.weight.numel() for matrix in weight_matrices(model).values())
    others = count_trainable(model) - matrices
    if config.optimizer.kind == "muon":
        return FLOAT32 * (matrices + 2 * others)
    return 2 * ((MOMENT16 if config.optimizer.moments == "paper16" else FLOAT32) * matrices + FLOAT32 * others)


def unsharded_bytes(model: nn.Module) -> int:
    """Return the bytes of whole weights and gradients that a rank of sharded training needs at a time.

    The weights of the root, two blocks (one is gathered while the other computes), and the gradients of one block.
    """
    units = [count_trainable(unit) for unit in sharding_units(model)]
    return FLOAT32 * (count_trainable(model) - sum(units) + 3 * max(units, default=0))
