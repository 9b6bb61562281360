"""AdamW of the paper's transformer, with a clipped variance and 16-bit moments (App. B.2, D)."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dalle.seeds import torch_generator
from dalle.training.float_formats import FLOAT_0_6_10, FLOAT_1_6_9, FloatFormat
from dalle.training.parameter_storage import round_stochastically
from dalle.training.sharding import local


class PaperAdamW(torch.optim.Optimizer):
    """AdamW with options that torch's fused version lacks.

    sixteen_bit: parameters whose moments are stored as 16-bit codes of `float_formats`, and updated in float32.
    variance_clip: maximum of the running variance, when used and when stored (App. B.2).

    Parameters in bfloat16 are updated in float32 and rounded stochastically, see `parameter_storage`.
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
        self._seeds: tuple[int, ...] = ()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._numbers = {parameter: number for number, parameter in enumerate(parameters)}

    @torch.no_grad()
    def step_if_finite(self, finite: Tensor, learning_rate: float, seeds: tuple[int, ...] = ()) -> None:
        """Step if `finite` is 1, else leave weights and moments unchanged. Does not synchronise with the device.

        seeds: of the stochastic rounding of bfloat16 weights, the run's seed and the step; equal on all ranks.
        """
        self._seeds = seeds
        for group in self.param_groups:
            group["lr"] = learning_rate
            self._update_group(
                [parameter for parameter in group["params"] if parameter.grad is not None], finite, group
            )

    def _update_group(self, parameters: list[nn.Parameter], finite: Tensor, group: dict[str, Any]) -> None:
        for parameter in parameters:  # one at a time, so that temporary tensors have the size of one parameter
            self._update(parameter, finite, group)

    def _update(self, parameter: nn.Parameter, finite: Tensor, group: dict[str, Any]) -> None:
        gradient = finite_gradient(parameter, finite)
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
        updated = weights.float()  # float32 weights are updated in place
        updated.mul_(1 - finite * group["lr"] * group["weight_decay"])
        updated.addcmul_(mean / denominator, finite * group["lr"] / (1 - beta1**steps), value=-1)
        if updated is not weights:
            weights.copy_(round_stochastically(updated, self._generator(parameter)))

        state["step"] += finite
        _store_moment(stored_mean, mean, FLOAT_1_6_9)
        _store_moment(stored_variance, variance, FLOAT_0_6_10)

    def _generator(self, parameter: nn.Parameter) -> torch.Generator:
        number = self._numbers[parameter]
        return torch_generator("stochastic rounding", *self._seeds, number, device=parameter.device)

    def _init_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        dtype = torch.int16 if parameter in self.sixteen_bit else torch.float32  # code 0 is also the number 0
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
        return state


def finite_gradient(parameter: nn.Parameter, finite: Tensor) -> Tensor:
    """Return a float32 copy of the gradient of this rank's shard, or zeros if `finite` is 0.

    Non-finite gradients must not reach the moments, not even times 0.
    """
    assert parameter.grad is not None
    return torch.where(finite.bool(), local(parameter.grad), 0.0).float()


def _load_moment(stored: Tensor, format: FloatFormat) -> Tensor:
    """Return a moment in float32; a float32 moment is returned itself, and updated in place."""
    return format.decode(stored) if stored.dtype == torch.int16 else stored


def _store_moment(stored: Tensor, values: Tensor, format: FloatFormat) -> None:
    if stored.dtype == torch.int16:
        stored.copy_(format.encode(values))
