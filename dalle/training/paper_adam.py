"""AdamW of the paper's transformer, with a clipped variance and 16-bit moments (App. B.2, D)."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dalle.training.small_floats import MEAN, VARIANCE, SmallFloat


class PaperAdamW(torch.optim.Optimizer):
    """AdamW with options that torch's fused version lacks.

    narrow: parameters whose moments are stored in 16 bits, as codes of `small_floats`; updates compute in float32.
    variance_clip: maximum of the running variance, when used and when stored (App. B.2).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        variance_clip: float | None = None,
        narrow: Collection[nn.Parameter] = (),
    ):
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": weight_decay, "lr": 0.0})
        self.variance_clip = variance_clip
        self.narrow = set(narrow)

    @torch.no_grad()
    def step_if_finite(self, finite: Tensor, learning_rate: float) -> None:
        """Step if `finite` is 1, else leave weights and moments unchanged. Does not synchronise with the device."""
        for group in self.param_groups:
            group["lr"] = learning_rate
            # non-finite gradients must not reach the moments, not even times 0
            gradients = {
                parameter: torch.where(finite.bool(), parameter.grad, 0.0)
                for parameter in group["params"]
                if parameter.grad is not None
            }
            self._update_group(gradients, finite, group)

    def _update_group(self, gradients: dict[nn.Parameter, Tensor], finite: Tensor, group: dict[str, Any]) -> None:
        for parameter, gradient in gradients.items():
            self._update(parameter, gradient, finite, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, finite: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._begin(parameter)
        beta1, beta2 = group["betas"]
        steps = state["step"] + 1

        mean = _read(state["exp_avg"], MEAN).lerp_(gradient, finite * (1 - beta1))
        variance = _read(state["exp_avg_sq"], VARIANCE).mul_(1 - finite * (1 - beta2))
        variance.addcmul_(gradient, gradient, value=1 - beta2)
        if self.variance_clip is not None:
            variance.clamp_(max=self.variance_clip)

        spread = (variance / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - finite * group["lr"] * group["weight_decay"])
        parameter.addcmul_(mean / spread, finite * group["lr"] / (1 - beta1**steps), value=-1)

        state["step"] += finite
        _write(state["exp_avg"], mean, MEAN)
        _write(state["exp_avg_sq"], variance, VARIANCE)

    def _begin(self, parameter: nn.Parameter) -> dict[str, Any]:
        kept_as = torch.int16 if parameter in self.narrow else torch.float32  # code 0 is also the number 0
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, dtype=kept_as)
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=kept_as)
        return state


def _read(kept: Tensor, format: SmallFloat) -> Tensor:
    """Return a moment in float32; a float32 moment is returned itself, and updated in place."""
    return format.decode(kept) if kept.dtype == torch.int16 else kept


def _write(kept: Tensor, values: Tensor, format: SmallFloat) -> None:
    if kept.dtype == torch.int16:
        kept.copy_(format.encode(values))
