"""Compression of gradients: its settings, and the blocks into which weight matrices are divided for it (App. E).

`dalle.training.powersgd` compresses the blocks of a matrix separately, as the paper does on the GPUs of a machine
(Table 2). If weights are sharded over groups of ranks (distributed=hsdp), each rank compresses the blocks of
its own shard.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from einops import rearrange
from torch import Tensor, nn

from dalle.training.sharding import local
from dalle.training.weight_matrices import weight_matrices

PRECISIONS = ("float32", "paper16")
BASES = ("fixed", "warm", "resampled")


@dataclass(frozen=True)
class CompressionConfig:
    """Settings of gradient compression by PowerSGD."""

    rank: int = 0  # total rank of a matrix's blocks; 0: no compression (paper: 896 at 12B; Table 1)
    blocks: int = 8  # blocks per matrix, with equal shares of the rank (paper: GPUs of a machine)
    basis: str = "fixed"  # "fixed" Gaussian | "warm": Q of the previous update | "resampled" at each update (fn. 10)
    precision: str = "float32"  # of error buffers, and of P and Q as they are sent: float32 | paper16: 1-6-9 (App. E)

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ValueError(f"compression.basis={self.basis} is unknown; choose one of {', '.join(BASES)}")
        if self.precision not in PRECISIONS:
            choices = " or ".join(PRECISIONS)
            raise ValueError(f"compression.precision={self.precision} is unknown; choose {choices}")
        if self.rank < 0 or self.blocks < 1 or self.rank % self.blocks:
            raise ValueError(
                f"compression.rank={self.rank} must be a multiple of compression.blocks={self.blocks}, which is at"
                " least 1; rank 0 turns compression off"
            )

    def check_sharding(self) -> None:
        """Raise ValueError for settings with which gradients of sharded weights cannot be compressed."""
        if self.rank and self.basis == "warm":
            raise ValueError("compression.basis=warm does not work with distributed=hsdp: choose fixed or resampled")


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
        """Number of elements of the matrix, which a rank sends without compression."""
        return math.prod(self.shape)

    @property
    def compressed(self) -> int:
        """Number of elements that a rank sends with compression: the factors P and Q of all blocks."""
        return self.parts * self.blocks * self.rank * sum(self.sides)

    @property
    def basis_shape(self) -> tuple[int, int, int]:
        """Shape of the bases of all blocks: (parts * blocks, longer side, rank)."""
        return self.parts * self.blocks, self.sides[1], self.rank

    def split(self, matrix: Tensor) -> Tensor:
        """Split a matrix of `shape` into blocks: (rows, ...) -> (parts * blocks, shorter side, longer side)."""
        parts = rearrange(matrix.flatten(1), "(parts rows) columns -> parts rows columns", parts=self.parts)
        parts = parts.mT if self._wide else parts
        blocks = rearrange(parts, "parts (blocks long) short -> (parts blocks) long short", blocks=self.blocks)
        return blocks.mT if self._tall_blocks else blocks

    def join(self, blocks: Tensor) -> Tensor:
        """Join the blocks that `split` returns: (parts * blocks, shorter side, longer side) -> `shape`."""
        blocks = blocks.mT if self._tall_blocks else blocks
        parts = rearrange(blocks, "(parts blocks) long short -> parts (blocks long) short", blocks=self.blocks)
        parts = parts.mT if self._wide else parts
        return rearrange(parts, "parts rows columns -> (parts rows) columns").reshape(self.shape)


def partitions(model: nn.Module, config: CompressionConfig, shards: int = 1) -> dict[str, MatrixPartition]:
    """Return the partition of each weight matrix of `model` that compression makes smaller, by parameter name.

    If weights are sharded over `shards` ranks, it is the partition of this rank's shard, into 1 / `shards` of the
    blocks. Raises ValueError if blocks do not divide into shards.
    """
    if config.blocks % shards:
        raise ValueError(f"compression.blocks={config.blocks} must be a multiple of shard_size={shards}")
    config = replace(config, rank=config.rank // shards, blocks=config.blocks // shards)
    partition_by_name = {}
    for name, (weight, parts) in weight_matrices(model).items():
        rows = math.ceil(weight.shape[0] / shards)  # of the first shard; all ranks must choose the same matrices
        first_shard = _partition((rows, *weight.shape[1:]), config, parts)
        shard = local(weight.detach())
        if len(shard) and 0 < first_shard.compressed < first_shard.uncompressed:
            partition_by_name[name] = _partition(tuple(shard.shape), config, parts)
    return partition_by_name


def _partition(shape: tuple[int, ...], config: CompressionConfig, parts: int) -> MatrixPartition:
    # a shard of a fused layer may not divide into equal parts
    return MatrixPartition(shape, config, parts if shape[0] % parts == 0 else 1)


def compression_rate(partitions: Mapping[str, MatrixPartition]) -> float:
    """Compute 1 - compressed / uncompressed size of the compressed matrices, as in Table 1; 0 if there are none."""
    uncompressed = sum(partition.uncompressed for partition in partitions.values())
    return 1 - sum(partition.compressed for partition in partitions.values()) / uncompressed if partitions else 0.0
