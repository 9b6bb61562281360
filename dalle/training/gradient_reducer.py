"""Gradient reduction over ranks: the exact mean, or PowerSGD's compressed approximation."""

from typing import Protocol

from torch import Tensor, nn

from dalle.training.powersgd import CompressionConfig, PowerSGD


class GradientReducer(Protocol):
    """Reduction of gradients over ranks, once per update."""

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
    """Exact mean of the gradients, computed by DDP in the backward pass."""

    in_backward = True
    message = ""

    def reduce(self, step: int) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


def build_gradient_reducer(model: nn.Module, config: CompressionConfig) -> GradientReducer:
    """Build PowerSGD if `config.rank` is not 0, else the exact all-reduce."""
    return PowerSGD(model, config) if config.rank else AllReduce()
