"""Process group, collectives and DDP wrapper for distributed training. No-ops without a process group.

The processes are started by `torchrun`. Only the main process, rank 0, writes files.
"""

import gc
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dalle.precision import use_deterministic_algorithms, use_exact_float32

T = TypeVar("T")
# messages of collectives without an answer from another rank; gloo's are RuntimeErrors that name a file of gloo
LOST_GLOO = re.compile(
    r"gloo/transport/.*(by peer|broken pipe|timed? ?out)|Application timeout caused pair closure", re.I
)
LOST_OTHER = re.compile(r"connection|remote|aborted|timed? ?out", re.I)  # NCCL's, and those of the store


def init_process_group(
    device: str = "auto", deterministic: bool = False, timeout_minutes: float | None = None
) -> torch.device:
    """Initialise the process group, if torchrun started this process, and return this rank's device.

    "auto" is this rank's GPU if there is one, else the CPU. Disables TF32 on GPUs, and with `deterministic` enables
    deterministic algorithms. Raises ValueError for a device that does not exist, or that all ranks would share, for a
    port in use, and if there is no connection to rank 0.

    timeout_minutes: a rank that waits longer for the others in a collective fails; None: torch's default, 30.
    """
    use_exact_float32()
    if deterministic:
        use_deterministic_algorithms()
    chosen = _choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if is_launched() and not dist.is_initialized():
        # gloo in addition to nccl: small values can be exchanged without synchronising with the GPU
        timeout = None if timeout_minutes is None else timedelta(minutes=timeout_minutes)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
        except dist.DistNetworkError as error:
            raise ValueError(_explain_no_connection(str(error))) from error
    return chosen


def is_launched() -> bool:
    """Return True if torchrun started this process, or something else that sets its environment variables."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 or dist.is_torchelastic_launched()


def check_single_process(command: str, differing: str) -> None:
    """Raise ValueError if torchrun started several processes of a command that would do the same work in each.

    differing: settings that divide the work between processes that are started one by one.
    """
    if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(
            f"{command} works in one process, and torchrun started {count}, which would all do the same: for several "
            f"GPUs, start one process for each, with its own CUDA_VISIBLE_DEVICES and {differing}"
        )


def destroy_process_group() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        gc.collect()  # a wrapped model in a reference cycle keeps gloo's threads alive, which abort at exit
        dist.destroy_process_group()


def is_lost_rank(error: BaseException | None) -> bool:
    """Return True if `error`, or its cause, is that of a collective because another rank ended or did not answer."""
    if error is None:
        return False
    if isinstance(error, dist.DistError):
        return LOST_OTHER.search(str(error)) is not None
    gloo = type(error) is RuntimeError and LOST_GLOO.search(str(error)) is not None
    return gloo or is_lost_rank(error.__cause__)


def is_distributed() -> bool:
    """Return True if there is a process group, possibly of one rank only."""
    return dist.is_initialized()


def get_rank() -> int:
    """Return the rank of this process, from 0. It is 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def get_world_size() -> int:
    """Return the number of ranks: 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def is_main_process() -> bool:
    """Return True if this process is rank 0, the only one that writes files."""
    return get_rank() == 0


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait until all ranks, or those of `group`, reach this call."""
    all_reduce_any(False, group)


def broadcast_object(value: T) -> T:
    """Return rank 0's `value`, which must be picklable, on every rank. All ranks must call it."""
    if not is_distributed():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


@torch.no_grad()
def broadcast_to_all(tensor: Tensor) -> None:
    """Replace the values of `tensor`, of equal shape on all ranks, by those of rank 0. All ranks must call it."""
    if is_distributed():
        values = tensor.detach().contiguous()  # gloo ignores strides
        dist.broadcast(values, src=0)
        tensor.copy_(values)


def all_gather_object(value: T) -> list[T]:
    """Return the `value` of each rank, which must be picklable, on every rank. All ranks must call it."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_any(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """Return True if `flag` is true on any rank, or any of `group`, all of which must call it.

    Does not synchronise with the GPU.
    """
    if not is_distributed():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=group)
    return bool(flags)


def all_reduce_mean(values: Tensor) -> Tensor:
    """Compute the element-wise mean of `values` over ranks, of the same shape and without gradients."""
    if not is_distributed():
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / get_world_size()


def all_reduce_sum(tensors: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Compute the sum of each of `tensors` over all ranks or those of `group`, in one all-reduce, without gradients."""
    if not is_distributed() or not tensors:
        return list(tensors)
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def all_reduce_sums(numbers: Mapping[str, float]) -> dict[str, float]:
    """Compute the sums of numbers over all ranks, in float64. All ranks must call it, with the same names in order."""
    (sums,) = all_reduce_sum([torch.tensor(list(numbers.values()), dtype=torch.float64)])
    return dict(zip(numbers, sums.tolist(), strict=True))


def all_gather(values: Tensor) -> Tensor:
    """All-gather `values`, of equal shape on all ranks: (b, ...) -> (world_size * b, ...). Differentiable."""
    return _AllGather.apply(values) if is_distributed() else values


def wrap_ddp(model: nn.Module, average_gradients: bool = True) -> nn.Module:
    """Wrap `model` in DistributedDataParallel, which averages its gradients over ranks in the backward pass.

    The result can be called like `model` but does not have its attributes. Returns `model` itself without a process
    group.

    average_gradients: if False, `model` itself is returned too, without the buckets for all gradients that DDP keeps.
    """
    if not is_distributed() or not average_gradients:
        return model
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
    with warnings.catch_warnings():  # about the successor of broadcast_buffers, not in torch 2.6
        warnings.simplefilter("ignore", FutureWarning)
        # buffers are masks, tables and batch-norm statistics, which are equal on all ranks
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Return a context without gradient all-reduce, for all micro-batches of an update except the last.

    Gradients of a sharded model are still reduce-scattered within its group, since whole ones take more memory.
    """
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return _no_all_reduce(model) if hasattr(model, "set_requires_all_reduce") else nullcontext()


@contextmanager
def _no_all_reduce(model: Any) -> Iterator[None]:
    model.set_requires_all_reduce(False)
    try:
        yield
    finally:
        model.set_requires_all_reduce(True)


def parse_device(device: str | torch.device) -> torch.device:
    """Return the device that `device` names: "cpu", "cuda", "cuda:0", or "auto": a GPU if there is one, else the CPU.

    Raises ValueError for another kind of device, and for a GPU that does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device} is unknown; choose auto, cpu, cuda or cuda:0") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device} is not supported; choose auto, cpu, cuda or cuda:0")
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        cpu_only = "" if torch.backends.cuda.is_built() else " (and this PyTorch is built for CPUs only)"
        raise ValueError(f"device={device} is not there: this machine has {count} CUDA devices{cpu_only}")
    return chosen


def _explain_no_connection(message: str) -> str:
    """Explain in one sentence why the ranks do not connect. `message` is torch's."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if "EADDRINUSE" in message:
        return (
            f"port {port} (MASTER_PORT) is in use, perhaps by another run on this machine: start the ranks with "
            "torchrun --standalone, which finds a free port, or choose another one with torchrun --master-port"
        )
    reason = message.splitlines()[0].rstrip(".")
    return f"no connection to rank 0 at {host}:{port} (MASTER_ADDR, MASTER_PORT): {reason}"


def _choose_device(device: str) -> torch.device:
    chosen = parse_device(device)
    if chosen.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise ValueError(f"device={device} would be that of all ranks of this machine: set device={chosen.type}")
    if chosen.type == "cuda" and chosen.index is None:
        return parse_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    return chosen


class _AllGather(torch.autograd.Function):
    """Autograd function of `all_gather`.

    The backward pass sums the gradients of all ranks' losses with respect to this rank's values.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(get_world_size())[get_rank()]
