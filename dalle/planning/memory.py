"""Memory of one rank during training: parameters, gradients, moments, EMA and activations."""

import math
from dataclasses import dataclass

from torch import nn

from dalle.planning.activations import FLOAT32, targets_bytes
from dalle.planning.placement import Placement
from dalle.training.compression import CompressionConfig
from dalle.training.flops import EncodingCost
from dalle.training.muon import batches
from dalle.training.optimizer import uses_fused_adamw
from dalle.training.parameter_storage import bfloat16_matrices
from dalle.training.sharding import sharding_units
from dalle.training.stage import StageConfig
from dalle.training.weight_matrices import weight_matrices

MOMENT16 = ERROR16 = BFLOAT16 = 2  # bytes
# temporary float32 tensors of an update, in sizes of a parameter; measured in tests/planning
# of AdamW with a clipped variance, by storage of parameters and of moments, which are converted to float32 and back
UPDATE_COPIES = {
    ("float32", "float32"): 3.0,
    ("float32", "paper16"): 12.25,
    ("bfloat16", "float32"): 5.75,
    ("bfloat16", "paper16"): 13.25,
}
COMPRESSION_COPIES = {"float32": 4.0, "paper16": 12.0}  # of PowerSGD's update of a matrix, by precision
SENT_COPIES = {"float32": 1.0, "paper16": 1.5}  # of P and Q, by precision
MUON_COPIES = 6  # of the matrices that Muon orthogonalises together


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank, by what they hold."""

    parameters: int
    gradients: int
    moments: int
    errors: int  # error buffers of PowerSGD
    bases: int  # of PowerSGD
    ema: int
    buffers: int  # masks and tables, of the model and of its EMA
    gathered: int  # whole EMA weights of a sharded model, for validation by other methods than the forward pass
    unsharded: int  # whole parameters and gradients of the sharded blocks in use
    activations: int  # of one micro-batch, with its logits and temporary tensors
    encoder: int  # the frozen dVAE
    encoding: int  # temporary tensors of the frozen dVAE, which encodes a micro-batch
    targets: int  # distributions over the codes, of all micro-batches
    update: int  # temporary tensors of the optimizer or of PowerSGD
    accumulates: bool = False  # gradients over several micro-batches
    has_buckets: bool = False  # of DDP, which hold the gradients, and exist before them too

    @property
    def peak(self) -> int:
        """Largest sum at any time.

        It is reached near the start of the backward pass, with most activations, in the update, with all gradients, or
        while images are encoded or the model is validated, without gradients. With several micro-batches the gradients
        of the previous ones are there from the second on, outside of DDP's buckets.
        """
        constant = self.parameters + self.moments + self.errors + self.bases + self.ema + self.buffers + self.encoder
        bucket_bytes = self.has_buckets * self.gradients
        backward = self.targets + self.unsharded + self.activations + self.accumulates * self.gradients + bucket_bytes
        update = self.targets + self.gradients + self.update
        # validation encodes images too, while it holds gathered weights
        encoding = bucket_bytes + self.encoding + max(self.gathered, self.targets)
        return constant + max(backward, update, encoding)


def rank_memory(
    model: nn.Module,
    config: StageConfig,
    activations: int,
    encoding: EncodingCost,
    images: int,
    placement: Placement,
    shards: int,
    replicas: int,
) -> RankMemory:
    """Compute the memory of one rank that trains on micro-batches of `images` images.

    model: may be on the meta device.
    activations: most bytes that a micro-batch needs at a time, without weights and their gradients.
    encoding: of the frozen dVAE.
    placement: part of the model on this rank, one of `shards`.
    replicas: copies of the model.
    """
    share = placement.parameters / count_trainable(model)
    parameters = round(share * parameter_bytes(model, config))
    matrices = placement.partitions.values()  # that are compressed
    error_bytes = ERROR16 if config.compression.precision == "paper16" else FLOAT32
    has_ema = config.ema.decay > 0  # else the average shares the memory of the model
    return RankMemory(
        parameters=parameters,
        gradients=parameters,
        moments=round(share * moment_bytes(model, config)),
        errors=error_bytes * sum(partition.uncompressed for partition in matrices),
        bases=FLOAT32 * sum(math.prod(partition.basis_shape) for partition in matrices),
        ema=round(share * FLOAT32 * count_trainable(model)) if has_ema else 0,
        buffers=(1 + has_ema) * sum(buffer.nbytes for buffer in model.buffers()),
        gathered=FLOAT32 * count_trainable(model) if shards > 1 and not config.validates_sharded else 0,
        unsharded=unsharded_bytes(model) if shards > 1 else 0,
        activations=activations,
        encoder=encoding.weight_bytes,
        encoding=images * encoding.peak_bytes,
        targets=targets_bytes(model, config, images),
        update=max(update_bytes(model, config, share), compression_bytes(placement, config.compression)),
        accumulates=config.accumulate > 1,
        has_buckets=shards == 1 and replicas > 1 and not config.compression.rank,
    )


def count_trainable(module: nn.Module) -> int:
    """Count the parameters of a module that require gradients."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def parameter_bytes(model: nn.Module, config: StageConfig) -> int:
    """Return the bytes of the trained parameters; their gradients are as large."""
    matrices = bfloat16_matrices(model).values() if config.parameters == "bfloat16" else ()
    bfloat16_elements = sum(matrix.weight.numel() for matrix in matrices)
    return FLOAT32 * (count_trainable(model) - bfloat16_elements) + BFLOAT16 * bfloat16_elements


def moment_bytes(model: nn.Module, config: StageConfig) -> int:
    """Return the bytes of the optimizer's moments: two per parameter, for Muon one per matrix."""
    matrix_elements = sum(matrix.weight.numel() for matrix in weight_matrices(model).values())
    other_elements = count_trainable(model) - matrix_elements
    if config.optimizer.kind == "muon":
        return FLOAT32 * (matrix_elements + 2 * other_elements)
    return 2 * (
        (MOMENT16 if config.optimizer.moments == "paper16" else FLOAT32) * matrix_elements + FLOAT32 * other_elements
    )


def update_bytes(model: nn.Module, config: StageConfig, share: float = 1.0) -> int:
    """Return the bytes of the optimizer's largest temporary tensors: it updates one parameter at a time.

    Muon orthogonalises several whole matrices at a time. `share`: of each parameter in this rank's shard.
    """
    if uses_fused_adamw(config.optimizer) and config.parameters == "float32":
        return 0
    matrices = weight_matrices(model).values()
    largest_matrix = max((matrix.weight.numel() for matrix in matrices), default=0)
    largest = max((parameter.numel() for parameter in model.parameters() if parameter.requires_grad), default=0)
    matrix_copies = UPDATE_COPIES[config.parameters, config.optimizer.moments]
    temporary = FLOAT32 * share * max(UPDATE_COPIES["float32", "float32"] * largest, matrix_copies * largest_matrix)
    if config.optimizer.kind == "muon":
        for parts in {matrix.parts for matrix in matrices}:
            weights = [matrix.weight for matrix in matrices if matrix.parts == parts]
            sizes = [sum(weight.numel() for weight in batch) for batch in batches(weights)]
            temporary = max(temporary, FLOAT32 * MUON_COPIES * max(sizes))
    return round(temporary)


def compression_bytes(placement: Placement, config: CompressionConfig) -> int:
    """Return the bytes of PowerSGD's temporary tensors, 0 without compression.

    They are copies of the gradients of all matrices, P and Q, and the largest of these: P and Q as they are sent, the
    gradients of all other parameters twice, or what the update of the largest matrix needs.
    """
    if not config.rank:
        return 0
    matrices = placement.partitions.values()
    gradients = sum(partition.uncompressed for partition in matrices)
    factors = sum(partition.compressed for partition in matrices)
    update_copies = COMPRESSION_COPIES[config.precision] * max(
        (partition.uncompressed for partition in matrices), default=0
    )
    sent_copies = SENT_COPIES[config.precision] * factors
    return round(
        FLOAT32 * (gradients + factors + max(sent_copies, 2 * (placement.parameters - gradients), update_copies))
    )


def unsharded_bytes(model: nn.Module) -> int:
    """Return the bytes of whole weights and gradients that a rank of sharded training needs at a time.

    The weights of the root, two blocks (one is gathered while the other computes), and the gradients of one block. The
    gradients of the root stay until the end of the backward pass, but its logits, which are counted, are freed first.
    """
    units = [count_trainable(unit) for unit in sharding_units(model)]
    return FLOAT32 * (count_trainable(model) - sum(units) + 3 * max(units, default=0))
