"""How ranks come to share one gradient: the mean of theirs, or something near it that is cheaper to send."""

from typing import Protocol

from torch import Tensor, nn

from dalle.training.powersgd import CompressionConfig, PowerSGD


class Exchange(Protocol):
    in_backward: bool  # whether the backward pass of the last micro-batch shares gradients (`distributed.wrap`)
    note: str  # what people should know of it; nothing: ""

    def combine(self, step: int) -> None:
        """After the backward passes of the update that follows `step` others: make the ranks' gradients one."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs. All ranks call it."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


class Averaging:
    """The mean, taken in the backward pass."""

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
