"""Dynamic gradient scaling against underflow in float16: one scale for the loss, or one per residual branch.

If a gradient overflows, the parameters' gradients are not finite: the update is skipped and the scale is lowered.
Otherwise the scale grows (Sec. 2.4, App. D).
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
    """Initial value of a gradient scale, and its growth and backoff."""

    initial: float
    growth: float  # factor after an update with finite gradients
    backoff: float  # factor after an update with non-finite gradients
    pause: int  # updates after a backoff during which the scale is not lowered again
    lowest: float
    highest: float

    def times(self, factor: int) -> "ScaleRule":
        """Return the rule for gradients that are smaller by `factor`."""
        sizes = {"initial": self.initial * factor, "lowest": self.lowest * factor, "highest": self.highest * factor}
        return replace(self, **sizes)


# as torch's GradScaler, which the paper's dVAE may have used (App. A.2), but with gradual growth
ON_LOSS = ScaleRule(2.0**16, 2 ** (1 / 2000), 0.5, pause=0, lowest=1.0, highest=2.0**32)
# App. D: there, M GPUs divide their loss by the whole batch, and the three sizes are M times these. Here the loss of a
# backward pass is the mean over its micro-batch, divided by the number of micro-batches on the rank; ranks are averaged
# afterwards. So the number of micro-batches takes the place of M.
PER_BRANCH = ScaleRule(2.0**13, 2 ** (1 / 1000), 2**-0.5, pause=125, lowest=2.0**7, highest=2.0**24)


class GradientScales:
    """Dynamic scale of each parameter group, by which its gradients are multiplied in the backward pass.

    Without groups it does nothing.
    """

    def __init__(self, groups: Iterable[Iterable[nn.Parameter]], rule: ScaleRule, device: torch.device):
        self.rule = rule
        self.groups = [[each for each in group if each.requires_grad] for group in groups]
        self.values = torch.full((len(self.groups),), rule.initial, device=device)
        self._quiet = torch.full_like(self.values, rule.pause)  # updates since a scale was last lowered
        self._finite = torch.ones_like(self.values, dtype=torch.bool)  # per group, of the latest gradients

    def of_loss(self, loss: Tensor) -> Tensor:
        """Return the loss to differentiate, scaled if there is a loss scale."""
        return loss

    def unscale(self) -> None:
        """Divide gradients by their scales. All ranks must call it, before gradients are reduced over ranks."""
        for group, scale in zip(self.groups, self.values, strict=True):
            for parameter in group:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        finite = [_are_finite(group) for group in self.groups]
        if finite:
            self._finite = distributed.mean(torch.stack(finite).float()) == 1

    def update(self) -> None:
        """Grow each scale, or lower it if the latest gradients of its group were not finite."""
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
        """Return the state for `restore`, JSON-serialisable."""
        return {"values": self.values.tolist(), "quiet": self._quiet.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self.values.copy_(torch.tensor(state["values"]))
        self._quiet.copy_(torch.tensor(state["quiet"]))


class LossScale(GradientScales):
    """Loss scaling: one scale for all parameters."""

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__([model.parameters()], ON_LOSS, device)

    def of_loss(self, loss: Tensor) -> Tensor:
        return loss * self.values[0]


def _are_finite(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [each.grad for each in parameters if each.grad is not None]
    return get_total_norm(gradients).isfinite()
