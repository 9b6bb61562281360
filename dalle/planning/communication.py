"""Communication of an update: bytes that a rank sends, and the seconds that this takes."""

from dalle.planning.activations import FLOAT32
from dalle.planning.cards import Card
from dalle.planning.placement import Placement
from dalle.training.compression import CompressionConfig

FACTOR16 = 2  # bytes of a number of P or Q in 16 bits


def compressed_bytes(placement: Placement, config: CompressionConfig) -> int | None:
    """Return the bytes of a rank's gradients as PowerSGD sends them: P and Q of matrices, all others in float32.

    None without compression.
    """
    if not config.rank:
        return None
    matrices = placement.partitions.values()
    uncompressed = placement.parameters - sum(partition.uncompressed for partition in matrices)
    factor_elements = sum(partition.compressed for partition in matrices)
    return FLOAT32 * uncompressed + (FACTOR16 if config.precision == "paper16" else FLOAT32) * factor_elements


def communication_cost(
    weight_bytes: int, world: int, shards: int, accumulate: int, card: Card, gradient_bytes: int | None = None
) -> tuple[float, float]:
    """Return the bytes that a rank sends in an update, and the seconds that this takes.

    Weights are gathered before the forward and the backward pass of each micro-batch, and gradients reduce-scattered
    after it, within groups of `shards` ranks. Copies average the gradients of their shards once, by ring all-reduce.

    weight_bytes: bytes of the weights; gradients are as large.
    gradient_bytes: bytes of a shard's gradients as they are sent between copies; None: as many as its weights.
    """
    gathered_bytes = 3 * accumulate * weight_bytes * (shards - 1) / shards
    copies = world // shards
    averaged_bytes = 2 * (weight_bytes / shards if gradient_bytes is None else gradient_bytes) * (copies - 1) / copies
    bandwidth_within = card.link if shards <= card.per_node else card.network
    bandwidth_between = card.link if world <= card.per_node else card.network
    return gathered_bytes + averaged_bytes, gathered_bytes / bandwidth_within + averaged_bytes / bandwidth_between
