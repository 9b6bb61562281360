"""Gradient reduction over ranks: the exact mean, or PowerSGD's compressed approximation."""

from typing import Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dalle.training.powersgd import CompressionConfig, PowerSGD


class GradientReducer(Protocol):
    """Interface of a reduction of gradients over ranks, done once per update."""

    in_backward: bool  # gradients are reduced in the backward pass of the last micro-batch (`distributed.wrap_ddp`)
    message: str  # description printed when training starts; "" for none

    def reduce(self, step: int) -> None:
        """Reduce gradients over ranks, after the backward passes; `step` is the number of updates done."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors for `load_state_dict`. All ranks must call it."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class AllReduce:
    """Gradient reducer: the exact mean over ranks, computed by DDP or FSDP in the backward pass."""

    in_backward = True
    message = ""

    def reduce(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


def build_gradient_reducer(
    model: nn.Module, config: CompressionConfig, mesh: DeviceMesh | None = None
) -> GradientReducer:
    """Build PowerSGD if `config.rank` is not 0, else the exact all-reduce. `mesh`: that of a sharded model."""
    return PowerSGD(model, config, mesh) if config.rank else AllReduce()
