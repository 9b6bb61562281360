"""AdamW of the paper's transformer, with a clipped variance and 16-bit moments (App. B.2, D)."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dalle.training.float_formats import FLOAT_0_6_10, FLOAT_1_6_9, FloatFormat
from dalle.training.sharding import local


class PaperAdamW(torch.optim.Optimizer):
    """AdamW with options that torch's fused version lacks.

    sixteen_bit: parameters whose moments are stored in 16 bits, as codes of `float_formats`; computed in float32.
    variance_clip: maximum of the running variance, when used and when stored (App. B.2).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        variance_clip: float | None = None,
        sixteen_bit: Collection[nn.Parameter] = (),
    ):
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": weight_decay, "lr": 0.0})
        self.variance_clip = variance_clip
        self.sixteen_bit = set(sixteen_bit)

    @torch.no_grad()
    def step_if_finite(self, finite: Tensor, learning_rate: float) -> None:
        """Step if `finite` is 1, else leave weights and moments unchanged. Does not synchronise with the device."""
        for group in self.param_groups:
            group["lr"] = learning_rate
            # non-finite gradients must not reach the moments, not even times 0
            gradients = {
                parameter: torch.where(finite.bool(), local(parameter.grad), 0.0)
                for parameter in group["params"]
                if parameter.grad is not None
            }
            self._update_group(gradients, finite, group)

    def _update_group(self, gradients: dict[nn.Parameter, Tensor], finite: Tensor, group: dict[str, Any]) -> None:
        for parameter, gradient in gradients.items():
            self._update(parameter, gradient, finite, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, finite: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter] or self._init_state(parameter)
        beta1, beta2 = group["betas"]
        steps = state["step"] + 1

        weights, stored_mean, stored_variance = map(local, (parameter, state["exp_avg"], state["exp_avg_sq"]))
        mean = _load_moment(stored_mean, FLOAT_1_6_9).lerp_(gradient, finite * (1 - beta1))
        variance = _load_moment(stored_variance, FLOAT_0_6_10).mul_(1 - finite * (1 - beta2))
        variance.addcmul_(gradient, gradient, value=1 - beta2)
        if self.variance_clip is not None:
            variance.clamp_(max=self.variance_clip)

        denominator = (variance / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        weights.mul_(1 - finite * group["lr"] * group["weight_decay"])
        weights.addcmul_(mean / denominator, finite * group["lr"] / (1 - beta1**steps), value=-1)

        state["step"] += finite
        _store_moment(stored_mean, mean, FLOAT_1_6_9)
        _store_moment(stored_variance, variance, FLOAT_0_6_10)

    def _init_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        dtype = torch.int16 if parameter in self.sixteen_bit else torch.float32  # code 0 is also the number 0
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
        return state


def _load_moment(stored: Tensor, format: FloatFormat) -> Tensor:
    """Return a moment in float32; a float32 moment is returned itself, and updated in place."""
    return format.decode(stored) if stored.dtype == torch.int16 else stored


def _store_moment(stored: Tensor, values: Tensor, format: FloatFormat) -> None:
    if stored.dtype == torch.int16:
        stored.copy_(format.encode(values))
