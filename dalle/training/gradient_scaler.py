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
from dalle.training.sharding import local


@dataclass(frozen=True)
class GradientScalerConfig:
    """Initial value of a gradient scale, and its growth and backoff."""

    init_scale: float
    growth_factor: float  # factor after an update with finite gradients
    backoff_factor: float  # factor after an update with non-finite gradients
    backoff_cooldown: int  # updates after a backoff during which the scale is not lowered again
    min_scale: float  # lower bound of the scale
    max_scale: float  # upper bound of the scale

    def scaled_by(self, factor: int) -> "GradientScalerConfig":
        """Return the config for gradients smaller by `factor`: all scales in it are multiplied by `factor`."""
        scaled = {
            "init_scale": self.init_scale * factor,
            "min_scale": self.min_scale * factor,
            "max_scale": self.max_scale * factor,
        }
        return replace(self, **scaled)


# as torch's GradScaler, which the paper's dVAE may have used (App. A.2), but with gradual growth
LOSS_SCALE = GradientScalerConfig(2.0**16, 2 ** (1 / 2000), 0.5, backoff_cooldown=0, min_scale=1.0, max_scale=2.0**32)
# App. D: there, M GPUs divide their loss by the whole batch, and the initial, lowest and highest scales are M times
# these. Here the loss of a backward pass is the mean over its micro-batch, divided by the number of micro-batches on
# the rank; ranks are averaged afterwards. So the number of micro-batches takes the place of M.
BRANCH_SCALE = GradientScalerConfig(
    2.0**13, 2 ** (1 / 1000), 2**-0.5, backoff_cooldown=125, min_scale=2.0**7, max_scale=2.0**24
)


class GradientScaler:
    """Dynamic scale of each parameter group, by which its gradients are multiplied in the backward pass.

    Without groups it does nothing.
    """

    def __init__(self, groups: Iterable[Iterable[nn.Parameter]], config: GradientScalerConfig, device: torch.device):
        self.config = config
        self.parameter_groups = [[parameter for parameter in group if parameter.requires_grad] for group in groups]
        self.scales = torch.full((len(self.parameter_groups),), config.init_scale, device=device)
        self._since_backoff = torch.full_like(self.scales, config.backoff_cooldown)  # updates since the last backoff
        self._finite = torch.ones_like(self.scales, dtype=torch.bool)  # per group, of the latest gradients

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return `loss` multiplied by the loss scale; unchanged if scales are per branch, or there are none."""
        return loss

    def unscale(self) -> None:
        """Divide gradients by their scales. All ranks must call it, before gradients are reduced over ranks."""
        for group, scale in zip(self.parameter_groups, self.scales, strict=True):
            for parameter in group:
                if parameter.grad is not None:
                    local(parameter.grad).div_(scale)
        finite = [_all_finite(group) for group in self.parameter_groups]
        if finite:
            self._finite = distributed.all_reduce_mean(torch.stack(finite).float()) == 1

    def update(self) -> None:
        """Grow each scale, or lower it if the latest gradients of its group were not finite."""
        config = self.config
        lowered = ~self._finite & (self._since_backoff >= config.backoff_cooldown)
        factors = torch.where(self._finite, config.growth_factor, torch.where(lowered, config.backoff_factor, 1.0))
        self.scales.mul_(factors).clamp_(config.min_scale, config.max_scale)
        self._since_backoff = torch.where(lowered, 0.0, self._since_backoff) + 1

    def advice(self, max_skipped_steps: int) -> str:
        """Return advice if a run ends after so few consecutive skipped updates that a scale is lowered only once.

        Empty if there is nothing to change.
        """
        wait = self.config.backoff_cooldown
        if not self.parameter_groups or max_skipped_steps > 2 * wait:
            return ""
        return (
            f"a gradient scale is lowered every {wait} updates at most, and a run ends after {max_skipped_steps}"
            f" skipped ones: set stage.max_skipped_steps above {2 * wait}"
        )

    def metrics(self) -> dict[str, float | Tensor]:
        """Return the lowest and the highest scale as metrics for the log; empty without groups."""
        if not self.parameter_groups:
            return {}
        return {"lowest_scale": self.scales.min(), "highest_scale": self.scales.max()}

    def state_dict(self) -> dict[str, Any]:
        """Return the scales and the updates since the last backoff of each, JSON-serialisable."""
        return {"values": self.scales.tolist(), "quiet": self._since_backoff.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.scales.copy_(torch.tensor(state["values"]))
        self._since_backoff.copy_(torch.tensor(state["quiet"]))


class LossScaler(GradientScaler):
    """Gradient scaler with one scale for all parameters, by which the loss is multiplied."""

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__([model.parameters()], LOSS_SCALE, device)

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss * self.scales[0]


def _all_finite(parameters: list[nn.Parameter]) -> Tensor:
    """Return a boolean scalar: True if all gradients of `parameters` on this rank are finite."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return get_total_norm(gradients).isfinite()
