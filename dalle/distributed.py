"""Several processes that train one model: which is this one, and how they speak. Alone, all of it is idle.

The processes come from `torchrun`. Ranks count from 0; only the first writes files.
"""

import gc
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dalle.precision import use_deterministic_algorithms, use_exact_float32

T = TypeVar("T")


def start(device: str = "auto", deterministic: bool = False) -> torch.device:
    """Join the other ranks, if torchrun started this process, and return the device this rank computes on.

    "auto" is this rank's GPU where there is one, and the CPU otherwise. From then on GPUs compute float32 as such, and
    with `deterministic` the same bits each time. Raises ValueError for a device that this machine does not have.
    """
    use_exact_float32()
    if deterministic:
        use_deterministic_algorithms()
    chosen = _choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 or dist.is_torchelastic_launched()
    if launched and not dist.is_initialized():
        # gloo beside nccl: small facts can be agreed on without making the GPU wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    return chosen


def stop() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        gc.collect()  # a wrapped model that lingers in a cycle keeps gloo's threads, which abort at the exit
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Return whether torchrun started this process: there may still be one rank alone."""
    return dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    any_rank(False)


def broadcast(value: T) -> T:
    """What the first rank passes, on every rank; anything that can be pickled."""
    if not is_distributed():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank; every rank has to ask. Does not wait for the GPU."""
    if not is_distributed():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over the ranks, without gradients."""
    if not is_distributed():
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world()


def total(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over the ranks of each of `tensors`, all in one message, without gradients."""
    if not is_distributed() or not tensors:
        return list(tensors)
    message = torch.cat([each.detach().flatten() for each in tensors])
    dist.all_reduce(message)
    parts = message.split([each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]


def gather(values: Tensor) -> Tensor:
    """Every rank's `values` (b, ...), alike in shape, as (world * b, ...); gradients flow back to all."""
    return _Gather.apply(values) if is_distributed() else values


def wrap(model: nn.Module) -> nn.Module:
    """`model`, averaging its gradients over the ranks; call the result, its attributes are other ones.

    Its batch norms see the batches of all ranks from now on.
    """
    if not is_distributed():
        return model
    _synchronise_batch_norms(model)
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else None
    with warnings.catch_warnings():  # of a successor to broadcast_buffers, which torch 2.6 does not have
        warnings.simplefilter("ignore", FutureWarning)
        # buffers are masks, tables and the statistics of batch norms, which are alike on every rank
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def without_sharing(model: nn.Module) -> AbstractContextManager:
    """A context in which gradients stay on their rank: for all micro-batches of an update but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _choose_device(device: str) -> torch.device:
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device} is unknown; choose auto, cpu, cuda or cuda:0") from error
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local_rank if chosen.index is None else chosen.index)
        if chosen.index >= torch.cuda.device_count():
            raise ValueError(f"device={chosen} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen


def _synchronise_batch_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SyncBatchNorm):
            setattr(module, name, SyncBatchNorm.of(child))
        else:
            _synchronise_batch_norms(child)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks, as if one rank had them; torch's own works on GPUs alone."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SyncBatchNorm":
        """A norm that shares the parameters and the running statistics of `norm`."""
        made = cls(norm.num_features, norm.eps, norm.momentum)
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, h, w) -> the same."""
        if not self.training or world() == 1:
            return super().forward(input)
        x = input.float()
        own = torch.stack([x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)])  # (2, c)
        means, variances = gather(own.unsqueeze(0)).unbind(dim=1)  # (ranks, c)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        self._follow(mean.detach(), variance.detach(), count=world() * x.numel() // x.shape[1])
        gain = self.weight * (variance + self.eps).rsqrt()
        normed = (x - mean[:, None, None]) * gain[:, None, None] + self.bias[:, None, None]
        return normed.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Let the running statistics follow those of a batch of `count` numbers a channel."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _Gather(torch.autograd.Function):
    """All-gather whose backward adds up what every rank's loss says about this rank's values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(world())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(world())[rank()]
