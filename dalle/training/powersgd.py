"""PowerSGD: ranks exchange low-rank factors of their gradients instead of the gradients (Sec. 2.5, App. E).

G_i is the gradient of rank i, divided by the number of ranks, plus its error buffer: the part that earlier updates did
not send. The sum G of all G_i is approximated by P Q^T:

    P = orthonormal(sum of G_i basis)     first all-reduce     basis: a fixed Gaussian matrix
    Q = sum of G_i^T P                    second all-reduce
    G_i - P Q^T / ranks                   error buffer of rank i for the next update

Each matrix is divided into blocks that are compressed separately, as the paper does on the GPUs of a machine (Table 2).
If weights are sharded over groups of ranks (distributed=hsdp), each rank compresses the blocks of its own shard, and
"ranks" above are those with the same shard in all groups, as in the paper.

With compression.precision=paper16, error buffers, P and Q are rounded to the format 1-6-9. What a rank loses by
rounding its P and Q stays in its error buffer. The paper divides by hand-tuned constants before the all-reduces, but
does not give them. Here gradients are means over ranks; P and Q are far below the limit of 1-6-9, just under 16.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import get_total_norm

from dalle import distributed
from dalle.device_transfer import to_device
from dalle.seeds import torch_generator
from dalle.training.all_reduce_16bit import all_reduce_sum_encoded
from dalle.training.compression import CompressionConfig, MatrixPartition, compression_rate, partitions
from dalle.training.float_formats import FLOAT_1_6_9
from dalle.training.sharding import REPLICATE, SHARD, from_local, local, own_shard
from dalle.training.weight_matrices import weight_matrices


class CompressedMatrix:
    """Weight matrix whose gradient is compressed, with this rank's error buffer and the basis of its blocks."""

    def __init__(self, number: int, name: str, parameter: nn.Parameter, partition: MatrixPartition, precision: str):
        self.number, self.name, self.parameter, self.partition = number, name, parameter, partition
        dtype = torch.int16 if precision == "paper16" else torch.float32  # code 0 is also the number 0
        self.stored_error = torch.zeros_like(partition.split(local(parameter.detach())), dtype=dtype)
        self.basis = self.gaussian(0)

    @property
    def error(self) -> Tensor:
        """This rank's error buffer in float32, (parts * blocks, shorter side, longer side)."""
        return _decoded(self.stored_error)

    @error.setter
    def error(self, values: Tensor) -> None:
        half = self.stored_error.dtype == torch.int16
        self.stored_error = FLOAT_1_6_9.encode(values) if half else values

    def gaussian(self, step: int) -> Tensor:
        """Draw a Gaussian basis, (parts * blocks, longer side, rank).

        It depends on the matrix's number and `step` alone, so it is the same on all ranks and in every run.
        """
        generator = torch_generator("PowerSGD", self.number, step)
        return to_device(torch.randn(self.partition.basis_shape, generator=generator), self.parameter.device)


class PowerSGD:
    """Gradient reduction by PowerSGD: compressed for large matrices, exact for all other parameters.

    Also works with one rank, for experiments. If any rank has a non-finite value, error buffers and bases are left
    unchanged.
    """

    in_backward = False

    def __init__(self, model: nn.Module, config: CompressionConfig, mesh: DeviceMesh | None = None):
        """Initialise for `model`, sharded within the groups of `mesh` if there is one.

        Raises ValueError for settings that shards do not allow.
        """
        self.config, self.basis, self._mesh = config, config.basis, mesh
        if mesh is not None:
            config.check_sharding()
        self._group = None if mesh is None else mesh.get_group(REPLICATE)  # ranks with the same shard
        self.error_buffers = distributed.get_world_size() if mesh is None else mesh[REPLICATE].size()
        self._replica = distributed.get_rank() if mesh is None else mesh.get_local_rank(REPLICATE)
        self.partitions = partitions(model, config, 1 if mesh is None else mesh[SHARD].size())
        self._layers = weight_matrices(model)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._matrices = [
            CompressedMatrix(number, name, trained[name], partition, config.precision)
            for number, (name, partition) in enumerate(self.partitions.items())
        ]
        self._others = [parameter for name, parameter in trained.items() if name not in self.partitions]
        count, rate = len(self.partitions), compression_rate(self.partitions)
        self.message = f"PowerSGD of rank {config.rank} compresses the gradients of {count} matrices by {rate:.1%}"
        if not count:
            self.message = f"PowerSGD of rank {config.rank} compresses no gradient of this model"

    @torch.no_grad()
    def reduce(self, step: int) -> None:
        """Replace gradients by their (approximate) mean over ranks; `step` is the number of updates done."""
        replicas, group, matrices = self.error_buffers, self._group, self._matrices
        corrected = [
            matrix.partition.split(_gradient(matrix.parameter)).float() / replicas + matrix.error for matrix in matrices
        ]
        bases = [matrix.gaussian(step) if self.basis == "resampled" else matrix.basis for matrix in matrices]

        sketches = self._all_reduce([gradient @ basis for gradient, basis in zip(corrected, bases, strict=True)])
        p_factors = [_orthonormal(sketch) for sketch in sketches]
        q_factors = self._all_reduce([gradient.mT @ p for gradient, p in zip(corrected, p_factors, strict=True)])
        others = [_gradient(other) / replicas for other in self._others]
        if self.config.precision == "paper16" and corrected:  # its codes have no NaN, so send whether there is one
            others.append(torch.where(get_total_norm(corrected).isfinite(), 0.0, torch.nan))
        others = distributed.all_reduce_sum(others, group)
        finite = get_total_norm([*sketches, *q_factors, *others]).isfinite()
        if self._mesh is not None:  # all shards must agree
            finite = distributed.all_reduce_mean(finite.float()) == 1

        for matrix, gradient, p, q in zip(matrices, corrected, p_factors, q_factors, strict=True):
            mean = p @ q.mT
            matrix.error = torch.where(finite, gradient - mean / replicas, matrix.error)
            matrix.basis = torch.where(finite, q, matrix.basis) if self.basis == "warm" else matrix.basis
            _gradient(matrix.parameter).copy_(torch.where(finite, matrix.partition.join(mean), torch.nan))
        for parameter, mean in zip(self._others, others[: len(self._others)], strict=True):
            _gradient(parameter).copy_(mean)

    def _all_reduce(self, factors: list[Tensor]) -> list[Tensor]:
        """Sum P or Q of all matrices over ranks."""
        if self.config.precision == "paper16":
            return all_reduce_sum_encoded(factors, FLOAT_1_6_9, self._group)
        return distributed.all_reduce_sum(factors, self._group)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that this rank saves for `load_state_dict`. Changes nothing.

        Error buffers are named by the rank, or the group of ranks that share a copy of the weights: error_3.<matrix>.
        Those of shards have the form of the matrix, others that of its blocks. The first rank saves what is equal on
        all.
        """
        state = {}
        for matrix in self._matrices:
            error = matrix.stored_error
            if self._mesh is not None:
                error = from_local(matrix.partition.join(error).contiguous(), matrix.parameter)
            state[f"error_{self._replica}.{matrix.name}"] = error
        if self.basis == "warm" and self._replica == 0:
            state |= {f"basis.{matrix.name}": matrix.basis for matrix in self._matrices}
        return state

    def load_state_dict(self, read: Callable[[str], dict[str, Tensor]], error_buffers: int) -> None:
        """Load the state of a run with so many `error_buffers`. All ranks must call it.

        With as many as now, each rank continues with its own; else all continue with equal shares of the sum, so that
        what was not sent is still sent.

        read: returns the saved tensors of a kind, such as error_3 or basis, by name of the matrix; all ranks call it.
        """
        kinds = [f"error_{number}" for number in range(error_buffers)]
        same_count = error_buffers == self.error_buffers
        if not same_count:
            self.message += f"; the sum of {error_buffers} saved error buffers is divided among {self.error_buffers}"
        sums: dict[str, Tensor] = {}
        for kind in [kinds[self._replica]] if same_count else kinds:  # one at a time: all would take too much memory
            saved = read(kind)
            for matrix in self._matrices:
                if matrix.name in saved:
                    error = self._own_error(matrix, saved[matrix.name])
                    sums[matrix.name] = sums[matrix.name] + error if matrix.name in sums else error
        bases = read("basis")
        for matrix in self._matrices:
            total = sums.pop(matrix.name, None)  # None: the matrix was not compressed before
            share = torch.zeros_like(matrix.error) if total is None else total
            matrix.error = share if same_count else share / self.error_buffers
            matrix.basis = bases.get(matrix.name, matrix.basis).to(matrix.basis.device)

    def _own_error(self, matrix: CompressedMatrix, saved: Tensor) -> Tensor:
        """Return the blocks of this rank's shard of a saved error buffer, in float32."""
        if saved.shape != matrix.parameter.shape and self._mesh is not None:  # blocks of the whole matrix
            shape, parts = tuple(matrix.parameter.shape), self._layers[matrix.name].parts
            saved = MatrixPartition(shape, self.config, parts).join(saved)
        if saved.shape == matrix.parameter.shape:
            saved = matrix.partition.split(own_shard(saved, matrix.parameter))
        return _decoded(saved.to(matrix.parameter.device))


def _decoded(stored: Tensor) -> Tensor:
    """Return an error buffer in float32."""
    return FLOAT_1_6_9.decode(stored) if stored.dtype == torch.int16 else stored


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of this rank's shard, or zeros, since all ranks must send the same parameters."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local(parameter.grad)


def _orthonormal(sketches: Tensor) -> Tensor:
    """Orthonormalise the columns of (blocks, side, rank) by Householder QR, also if they are linearly dependent."""
    sketches = sketches.nan_to_num()
    size = torch.linalg.vector_norm(sketches, dim=(1, 2), keepdim=True) / math.sqrt(sketches.shape[2])  # of a column
    size = torch.where(size > 0, size, 1.0).clamp(max=1.0)
    return torch.linalg.qr(sketches + 1e-6 * size * torch.eye(*sketches.shape[1:], device=sketches.device)).Q
