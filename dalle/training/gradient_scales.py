"""Scales that keep small gradients above float16's smallest number: one on the loss, or one for each residual branch.

A gradient that overflows shows in its parameters' gradients as something that is not finite: the update is skipped and
the scale lowered. As long as none does, the scale grows. (Sec. 2.4, App. D.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dalle import distributed


@dataclass(frozen=True)
class ScaleRule:
    """Where a scale begins, and how it follows what it meets."""

    initial: float
    growth: float  # factor after an update with finite gradients
    backoff: float  # factor after any other
    pause: int  # updates in which a scale that was lowered is not lowered again
    lowest: float
    highest: float

    def times(self, factor: int) -> "ScaleRule":
        """The rule for gradients that are smaller by `factor`."""
        sizes = {"initial": self.initial * factor, "lowest": self.lowest * factor, "highest": self.highest * factor}
        return replace(self, **sizes)


# as torch's own scaler, which the paper's dVAE could have had (App. A.2), but growing bit by bit
ON_LOSS = ScaleRule(2.0**16, 2 ** (1 / 2000), 0.5, pause=0, lowest=1.0, highest=2.0**32)
# App. D, where M GPUs divide their loss by the whole batch, and all three sizes are M times these. Here a backward pass
# has the mean over its own micro-batch, divided by their number on one rank; ranks are averaged afterwards. So the
# number of micro-batches takes M's place.
PER_BRANCH = ScaleRule(2.0**13, 2 ** (1 / 1000), 2**-0.5, pause=125, lowest=2.0**7, highest=2.0**24)


class GradientScales:
    """A scale for each group of parameters, whose gradients come out of the backward pass multiplied by it.

    Without groups it is idle.
    """

    def __init__(self, groups: Iterable[Iterable[nn.Parameter]], rule: ScaleRule, device: torch.device):
        self.rule = rule
        self.groups = [[each for each in group if each.requires_grad] for group in groups]
        self.values = torch.full((len(self.groups),), rule.initial, device=device)
        self._quiet = torch.full_like(self.values, rule.pause)  # updates since a scale was last lowered
        self._finite = torch.ones_like(self.values, dtype=torch.bool)  # whether a group's latest gradients were

    def of_loss(self, loss: Tensor) -> Tensor:
        """What is to be differentiated instead of the loss."""
        return loss

    def unscale(self) -> None:
        """Turn gradients into what they would be without scales. All ranks call it, before these share gradients."""
        for group, scale in zip(self.groups, self.values, strict=True):
            for parameter in group:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        finite = [_are_finite(group) for group in self.groups]
        if finite:
            self._finite = distributed.mean(torch.stack(finite).float()) == 1

    def update(self) -> None:
        """Grow or lower each scale by what the latest gradients of its group were."""
        rule = self.rule
        lowered = ~self._finite & (self._quiet >= rule.pause)
        factors = torch.where(self._finite, rule.growth, torch.where(lowered, rule.backoff, 1.0))
        self.values.mul_(factors).clamp_(rule.lowest, rule.highest)
        self._quiet = torch.where(lowered, 0.0, self._quiet) + 1

    def metrics(self) -> dict[str, float | Tensor]:
        if not self.groups:
            return {}
        return {"lowest_scale": self.values.min(), "highest_scale": self.values.max()}

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as JSON can hold it."""
        return {"values": self.values.tolist(), "quiet": self._quiet.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self.values.copy_(torch.tensor(state["values"]))
        self._quiet.copy_(torch.tensor(state["quiet"]))


class LossScale(GradientScales):
    """One scale for all parameters, by which the loss is multiplied."""

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__([model.parameters()], ON_LOSS, device)

    def of_loss(self, loss: Tensor) -> Tensor:
        return loss * self.values[0]


def _are_finite(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [each.grad for each in parameters if each.grad is not None]
    return get_total_norm(gradients).isfinite()
