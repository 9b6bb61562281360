"""PowerSGD: ranks exchange low-rank factors of their gradients instead of the gradients (Sec. 2.5, App. E).

G_i is the gradient of rank i, divided by the number of ranks, plus its error buffer: the part that earlier updates did
not send. The sum G of all G_i is approximated by P Q^T:

    P = orthonormal(sum of G_i basis)     first all-reduce     basis: a fixed Gaussian matrix
    Q = sum of G_i^T P                    second all-reduce
    G_i - P Q^T / ranks                   error buffer of rank i for the next update

Each matrix is divided into blocks that are compressed separately, as the paper does on the GPUs of a machine (Table 2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dalle import distributed
from dalle.device_transfer import to_device
from dalle.seeds import torch_generator
from dalle.training.matrices import matrices

BASES = ("fixed", "warm", "resampled")


@dataclass(frozen=True)
class CompressionConfig:
    """Gradient compression by PowerSGD."""

    rank: int = 0  # total rank of a matrix's blocks; 0: no compression (paper: 896 at 12B; Table 1)
    blocks: int = 8  # blocks per matrix, with equal shares of the rank (paper: GPUs of a machine)
    basis: str = "fixed"  # "fixed" Gaussian | "warm": Q of the previous update | "resampled" at each update (fn. 10)

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ValueError(f"compression.basis={self.basis} is unknown; choose one of {', '.join(BASES)}")
        if self.rank < 0 or self.blocks < 1 or self.rank % self.blocks:
            raise ValueError(
                f"compression.rank={self.rank} must be a multiple of compression.blocks={self.blocks}, which is at"
                " least 1; rank 0 turns compression off"
            )


class Cut:
    """Partition of a matrix into blocks along its longer side, and each block's share of the rank.

    A fused layer counts as `parts` matrices, such as queries, keys and values (Table 2).
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
        """Number of elements of the matrix."""
        return math.prod(self.shape)

    @property
    def compressed(self) -> int:
        """Number of elements that a rank sends instead."""
        return self.parts * self.blocks * self.rank * sum(self.sides)

    def split(self, matrix: Tensor) -> Tensor:
        """Split a matrix into blocks: (rows, ...) -> (parts * blocks, shorter side, longer side)."""
        parts = rearrange(matrix.flatten(1), "(parts rows) columns -> parts rows columns", parts=self.parts)
        parts = parts.mT if self._wide else parts
        blocks = rearrange(parts, "parts (blocks long) short -> (parts blocks) long short", blocks=self.blocks)
        return blocks.mT if self._tall_blocks else blocks

    def join(self, blocks: Tensor) -> Tensor:
        """Invert `split`."""
        blocks = blocks.mT if self._tall_blocks else blocks
        parts = rearrange(blocks, "(parts blocks) long short -> parts (blocks long) short", blocks=self.blocks)
        parts = parts.mT if self._wide else parts
        return rearrange(parts, "parts rows columns -> (parts rows) columns").reshape(self.shape)


def cuts(model: nn.Module, config: CompressionConfig) -> dict[str, Cut]:
    """Return the partitions of the matrices of `model` that compression makes smaller, by name."""
    found = {name: Cut(tuple(weight.shape), config, parts) for name, (weight, parts) in matrices(model).items()}
    return {name: cut for name, cut in found.items() if 0 < cut.compressed < cut.uncompressed}


def compression_rate(cuts: Mapping[str, Cut]) -> float:
    """Compute 1 - compressed / uncompressed size of the compressed matrices, as in Table 1; 0 if there are none."""
    uncompressed = sum(cut.uncompressed for cut in cuts.values())
    return 1 - sum(cut.compressed for cut in cuts.values()) / uncompressed if cuts else 0.0


class Compressed:
    """A compressed matrix, with its error buffer and basis."""

    def __init__(self, number: int, name: str, parameter: nn.Parameter, cut: Cut):
        self.number, self.name, self.parameter, self.cut = number, name, parameter, cut
        self.error = torch.zeros_like(cut.split(parameter.detach()))  # this rank's error buffer: what was not sent yet
        self.basis = self.gaussian(0)

    def gaussian(self, step: int) -> Tensor:
        """Draw a Gaussian basis, (blocks, longer side, rank), the same on all ranks and in every run."""
        generator = torch_generator("PowerSGD", self.number, step)
        shape = self.cut.parts * self.cut.blocks, self.cut.sides[1], self.cut.rank
        return to_device(torch.randn(shape, generator=generator), self.parameter.device)


class PowerSGD:
    """Gradient reduction by PowerSGD: compressed for large matrices, exact for all other parameters.

    Also works with one rank, for experiments. If any rank has a non-finite value, error buffers and bases are left
    unchanged.
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
        """Replace gradients by their (approximate) mean over ranks; `step` is the number of updates done."""
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
        """Return the tensors for `restore`, valid for any number of ranks. All ranks must call it.

        Error buffers are summed over ranks. Each rank continues with an equal share of the sum, as after `restore`, so
        an interrupted run gives bit-identical results.
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
    """Return the gradient, or zeros for a parameter without one, since all ranks must send the same parameters."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _orthonormal(sketches: Tensor) -> Tensor:
    """Orthonormalise the columns of (blocks, side, rank) by Householder QR, also if they are linearly dependent."""
    sketches = sketches.nan_to_num() + 1e-6 * torch.eye(*sketches.shape[1:], device=sketches.device)
    return torch.linalg.qr(sketches).Q
