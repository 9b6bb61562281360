"""PowerSGD: ranks exchange low-rank factors of their gradients instead of all of them (Sec. 2.5, App. E).

G, the sum of the ranks' gradients and of what earlier updates left unsent, becomes P Q^T:

    P = orthonormal(sum of G_i basis)     one exchange     basis: a Gaussian that stays the same forever
    Q = sum of G_i^T P                    another
    G_i - P Q^T / ranks                   is kept by rank i for the next update

Each matrix is cut into as many blocks as the paper spreads it over GPUs, which compress theirs alone (Table 2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dalle import distributed
from dalle.seeds import torch_generator
from dalle.training.matrices import matrices
from dalle.transfer import to_device

BASES = ("fixed", "warm", "resampled")


@dataclass(frozen=True)
class CompressionConfig:
    """How ranks share gradients."""

    rank: int = 0  # of all blocks of a matrix together; 0: nothing is compressed (paper: 896 at 12B; Table 1)
    blocks: int = 8  # into which each matrix is cut, with an equal share of the rank (paper: a machine's GPUs)
    basis: str = "fixed"  # a Gaussian kept forever | "warm": the Q of the update before | "resampled" for each (fn. 10)

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ValueError(f"compression.basis={self.basis} is unknown; choose one of {', '.join(BASES)}")
        if self.rank < 0 or self.blocks < 1 or self.rank % self.blocks:
            raise ValueError(
                f"compression.rank={self.rank} must be a multiple of compression.blocks={self.blocks}, which is at"
                " least 1; rank 0 turns compression off"
            )


class Cut:
    """How a matrix is cut into blocks, and their share of the rank.

    Queries, keys and values are a matrix each, though one layer makes them (Table 2). Blocks lie along the longer side.
    """

    def __init__(self, shape: tuple[int, ...], config: CompressionConfig, parts: int = 1):
        self.shape = shape
        self.parts = parts
        rows, columns = shape[0] // self.parts, math.prod(shape[1:])
        longer, shorter = max(rows, columns), min(rows, columns)
        self.blocks = math.gcd(longer, config.blocks)
        self.rank = config.rank // self.blocks
        self.sides = min(longer // self.blocks, shorter), max(longer // self.blocks, shorter)
        self._wide, self._tall_blocks = rows < columns, longer // self.blocks > shorter

    @property
    def uncompressed(self) -> int:
        """Numbers in the matrix."""
        return math.prod(self.shape)

    @property
    def compressed(self) -> int:
        """Numbers that a rank sends instead."""
        return self.parts * self.blocks * self.rank * sum(self.sides)

    def split(self, matrix: Tensor) -> Tensor:
        """(rows, ...) -> (blocks of all parts, shorter side, longer side)."""
        parts = rearrange(matrix.flatten(1), "(parts rows) columns -> parts rows columns", parts=self.parts)
        parts = parts.mT if self._wide else parts
        blocks = rearrange(parts, "parts (blocks long) short -> (parts blocks) long short", blocks=self.blocks)
        return blocks.mT if self._tall_blocks else blocks

    def join(self, blocks: Tensor) -> Tensor:
        """What `split` has cut, whole again."""
        blocks = blocks.mT if self._tall_blocks else blocks
        parts = rearrange(blocks, "(parts blocks) long short -> parts (blocks long) short", blocks=self.blocks)
        parts = parts.mT if self._wide else parts
        return rearrange(parts, "parts rows columns -> (parts rows) columns").reshape(self.shape)


def cuts(model: nn.Module, config: CompressionConfig) -> dict[str, Cut]:
    """The matrices of `model` that compression makes smaller, by name."""
    found = {name: Cut(tuple(weight.shape), config, parts) for name, (weight, parts) in matrices(model).items()}
    return {name: cut for name, cut in found.items() if 0 < cut.compressed < cut.uncompressed}


def compression_rate(cuts: Mapping[str, Cut]) -> float:
    """1 - compressed / uncompressed, of the matrices that are compressed: as in Table 1. 0 where there are none."""
    uncompressed = sum(cut.uncompressed for cut in cuts.values())
    return 1 - sum(cut.compressed for cut in cuts.values()) / uncompressed if cuts else 0.0


class Compressed:
    """A matrix whose gradient is compressed, and what is remembered of it between updates."""

    def __init__(self, number: int, name: str, parameter: nn.Parameter, cut: Cut):
        self.number, self.name, self.parameter, self.cut = number, name, parameter, cut
        self.error = torch.zeros_like(cut.split(parameter.detach()))  # this rank's share of what was not sent yet
        self.basis = self.gaussian(0)

    def gaussian(self, step: int) -> Tensor:
        """(blocks, longer side, rank), the same on all ranks and in every run."""
        generator = torch_generator("PowerSGD", self.number, step)
        shape = self.cut.parts * self.cut.blocks, self.cut.sides[1], self.cut.rank
        return to_device(torch.randn(shape, generator=generator), self.parameter.device)


class PowerSGD:
    """Means of the ranks' gradients, those of large matrices approximate; with one rank too, to try it out.

    An update with anything in it that is not finite, on any rank, leaves everything that is remembered as it was.
    """

    in_backward = False

    def __init__(self, model: nn.Module, config: CompressionConfig):
        self.basis = config.basis
        self.cuts = cuts(model, config)
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._matrices = [
            Compressed(number, name, trained[name], cut) for number, (name, cut) in enumerate(self.cuts.items())
        ]
        self._others = [each for name, each in trained.items() if name not in self.cuts]
        count, rate = len(self.cuts), compression_rate(self.cuts)
        self.note = f"PowerSGD of rank {config.rank} shortens the gradients of {count} matrices by {rate:.1%}"
        if not count:
            self.note = f"PowerSGD of rank {config.rank} would make no gradient shorter: all are sent as they are"

    @torch.no_grad()
    def combine(self, step: int) -> None:
        """Replace each rank's gradients by their mean over ranks, in the update that follows `step` others."""
        world, matrices = distributed.world(), self._matrices
        unsent = [each.cut.split(_gradient(each.parameter)) / world + each.error for each in matrices]
        bases = [each.gaussian(step) if self.basis == "resampled" else each.basis for each in matrices]

        sketches = distributed.total([own @ basis for own, basis in zip(unsent, bases, strict=True)])
        lefts = [_orthonormal(sketch) for sketch in sketches]
        rights = distributed.total([own.mT @ left for own, left in zip(unsent, lefts, strict=True)])
        others = distributed.total([_gradient(each) / world for each in self._others])
        finite = get_total_norm([*sketches, *rights, *others]).isfinite()

        for each, own, left, right in zip(matrices, unsent, lefts, rights, strict=True):
            mean = left @ right.mT
            each.error = torch.where(finite, own - mean / world, each.error)
            each.basis = torch.where(finite, right, each.basis) if self.basis == "warm" else each.basis
            _gradient(each.parameter).copy_(torch.where(finite, each.cut.join(mean), torch.nan))
        for parameter, mean in zip(self._others, others, strict=True):
            _gradient(parameter).copy_(mean)

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, for any number of ranks. All ranks call it.

        Of the errors that is their sum. Each rank goes on with an equal share of it, as it would after `restore`, so
        that a run is the same to the bit whether it was interrupted here or not.
        """
        errors = distributed.total([each.error for each in self._matrices])
        state = {f"error.{each.name}": error for each, error in zip(self._matrices, errors, strict=True)}
        if self.basis == "warm":
            state |= {f"basis.{each.name}": each.basis for each in self._matrices}
        self.restore(state)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        for each in self._matrices:
            each.error = state[f"error.{each.name}"].to(each.error.device) / distributed.world()
            each.basis = state.get(f"basis.{each.name}", each.basis).to(each.basis.device)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """All ranks send the same parameters' gradients: one that took no part in the loss sends zeros."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _orthonormal(sketches: Tensor) -> Tensor:
    """Bases of the columns' spans, (blocks, side, rank): by Householder's reflections, whatever the columns are."""
    sketches = sketches.nan_to_num() + 1e-6 * torch.eye(*sketches.shape[1:], device=sketches.device)
    return torch.linalg.qr(sketches).Q
