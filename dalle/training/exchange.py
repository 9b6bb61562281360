"""Gradient reduction over ranks: the exact mean, or PowerSGD's compressed approximation."""

from typing import Protocol

from torch import Tensor, nn

from dalle.training.powersgd import CompressionConfig, PowerSGD


class Exchange(Protocol):
    in_backward: bool  # gradients are reduced in the backward pass of the last micro-batch (`distributed.wrap`)
    note: str  # message for the user; "" for none

    def combine(self, step: int) -> None:
        """Reduce gradients over ranks, after the backward passes; `step` is the number of updates done."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for `restore`. All ranks must call it."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


class Averaging:
    """Exact mean of the gradients, computed in the backward pass."""

    in_backward = True
    note = ""

    def combine(self, step: int) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass


def build_exchange(model: nn.Module, config: CompressionConfig) -> Exchange:
    return PowerSGD(model, config) if config.rank else Averaging()
