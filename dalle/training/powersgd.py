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
from dalle.training.weight_matrices import weight_matrices

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


class MatrixPartition:
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


def partitions(model: nn.Module, config: CompressionConfig) -> dict[str, MatrixPartition]:
    """Return the partitions of the matrices of `model` that compression makes smaller, by name."""
    found = {
        name: MatrixPartition(tuple(weight.shape), config, parts)
        for name, (weight, parts) in weight_matrices(model).items()
    }
    return {name: each for name, each in found.items() if 0 < each.compressed < each.uncompressed}


def compression_rate(partitions: Mapping[str, MatrixPartition]) -> float:
    """Compute 1 - compressed / uncompressed size of the compressed matrices, as in Table 1; 0 if there are none."""
    uncompressed = sum(each.uncompressed for each in partitions.values())
    return 1 - sum(each.compressed for each in partitions.values()) / uncompressed if partitions else 0.0


class CompressedMatrix:
    """A compressed matrix, with its error buffer and basis."""

    def __init__(self, number: int, name: str, parameter: nn.Parameter, partition: MatrixPartition):
        self.number, self.name, self.parameter, self.partition = number, name, parameter, partition
        self.error = torch.zeros_like(partition.split(parameter.detach()))  # this rank's error buffer
        self.basis = self.gaussian(0)

    def gaussian(self, step: int) -> Tensor:
        """Draw a Gaussian basis, (blocks, longer side, rank), the same on all ranks and in every run."""
        generator = torch_generator("PowerSGD", self.number, step)
        shape = self.partition.parts * self.partition.blocks, self.partition.sides[1], self.partition.rank
        return to_device(torch.randn(shape, generator=generator), self.parameter.device)


class PowerSGD:
    """Gradient reduction by PowerSGD: compressed for large matrices, exact for all other parameters.

    Also works with one rank, for experiments. If any rank has a non-finite value, error buffers and bases are left
    unchanged.
    """

    in_backward = False

    def __init__(self, model: nn.Module, config: CompressionConfig):
        self.basis = config.basis
        self.partitions = partitions(model, config)
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._matrices = [
            CompressedMatrix(number, name, trained[name], partition)
            for number, (name, partition) in enumerate(self.partitions.items())
        ]
        self._others = [each for name, each in trained.items() if name not in self.partitions]
        count, rate = len(self.partitions), compression_rate(self.partitions)
        self.message = f"PowerSGD of rank {config.rank} compresses the gradients of {count} matrices by {rate:.1%}"
        if not count:
            self.message = f"PowerSGD of rank {config.rank} compresses no gradient of this model"

    @torch.no_grad()
    def reduce(self, step: int) -> None:
        """Replace gradients by their (approximate) mean over ranks; `step` is the number of updates done."""
        world_size, matrices = distributed.get_world_size(), self._matrices
        corrected = [each.partition.split(_gradient(each.parameter)) / world_size + each.error for each in matrices]
        bases = [each.gaussian(step) if self.basis == "resampled" else each.basis for each in matrices]

        sketches = distributed.all_reduce_sum(
            [gradient @ basis for gradient, basis in zip(corrected, bases, strict=True)]
        )
        p_factors = [_orthonormal(sketch) for sketch in sketches]
        q_factors = distributed.all_reduce_sum(
            [gradient.mT @ p for gradient, p in zip(corrected, p_factors, strict=True)]
        )
        others = distributed.all_reduce_sum([_gradient(each) / world_size for each in self._others])
        finite = get_total_norm([*sketches, *q_factors, *others]).isfinite()

        for each, gradient, p, q in zip(matrices, corrected, p_factors, q_factors, strict=True):
            mean = p @ q.mT
            each.error = torch.where(finite, gradient - mean / world_size, each.error)
            each.basis = torch.where(finite, q, each.basis) if self.basis == "warm" else each.basis
            _gradient(each.parameter).copy_(torch.where(finite, each.partition.join(mean), torch.nan))
        for parameter, mean in zip(self._others, others, strict=True):
            _gradient(parameter).copy_(mean)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors for `load_state_dict`, valid for any number of ranks. All ranks must call it.

        Error buffers are summed over ranks. Each rank continues with an equal share of the sum, as after
        `load_state_dict`, so an interrupted run gives bit-identical results.
        """
        errors = distributed.all_reduce_sum([each.error for each in self._matrices])
        state = {f"error.{each.name}": error for each, error in zip(self._matrices, errors, strict=True)}
        if self.basis == "warm":
            state |= {f"basis.{each.name}": each.basis for each in self._matrices}
        self.load_state_dict(state)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for each in self._matrices:
            each.error = state[f"error.{each.name}"].to(each.error.device) / distributed.get_world_size()
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
