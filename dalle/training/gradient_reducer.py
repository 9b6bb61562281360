"""Gradient reduction over ranks: the exact mean, or PowerSGD's compressed approximation."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dalle.training.compression import CompressionConfig
from dalle.training.powersgd import PowerSGD


class GradientReducer(Protocol):
    """Interface of a reduction of gradients over ranks, done once per update."""

    in_backward: bool  # gradients are reduced in the backward pass of the last micro-batch (`distributed.wrap_ddp`)
    error_buffers: int  # ranks, or groups of sharded ranks, that have error buffers of their own; 0: none has
    message: str  # description printed when training starts; "" for none

    def reduce(self, step: int) -> None:
        """Reduce gradients over ranks, after the backward passes; `step` is the number of updates done."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what this rank saves for `load_state_dict`; what ranks save by one name is equal. Changes nothing."""
        ...

    def load_state_dict(self, read: Callable[[str], dict[str, Tensor]], error_buffers: int) -> None:
        """Load the state of a run with so many `error_buffers`.

        read: returns the saved tensors whose names begin with a word and a dot, by the rest of their names. All ranks
        must call both.
        """
        ...


class AllReduce:
    """Gradient reducer: the exact mean over ranks, computed by DDP or FSDP in the backward pass."""

    in_backward = True
    error_buffers = 0
    message = ""

    def reduce(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, read: Callable[[str], dict[str, Tensor]], error_buffers: int) -> None:
        pass


def build_gradient_reducer(
    model: nn.Module, config: CompressionConfig, mesh: DeviceMesh | None = None
) -> GradientReducer:
    """Build PowerSGD if `config.rank` is not 0, else the exact all-reduce. `mesh`: that of a sharded model."""
    return PowerSGD(model, config, mesh) if config.rank else AllReduce()
