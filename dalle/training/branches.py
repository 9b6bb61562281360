"""How residual branches are run while training: gradients scaled, activations recomputed (Sec. 2.4, App. D)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.models.blocks import Residual, Way, directly
from dalle.training.gradient_scales import PER_BRANCH, GradientScales, LossScale
from dalle.training.small_floats import SmallFloat, ieee
from dalle.training.stage import TrainingConfig


def prepare(model: nn.Module, config: TrainingConfig, precision: str, device: torch.device) -> GradientScales:
    """Have the branches of `model` run as `config` says; the scales that its gradients are then multiplied by.

    Raises ValueError if `config` asks for residual branches and there are none.
    """
    residuals = [module for module in model.modules() if isinstance(module, Residual)]
    asked = config.recompute or config.gradient_scaling == "resblock" or config.gradient_exponent is not None
    if asked and not residuals:
        raise ValueError(
            "this model has no residual branches of the kind that gradient_scaling=resblock, gradient_exponent and"
            " recompute=true are for: choose gradient_scaling=global, gradient_exponent=null, recompute=false"
        )
    format = None if config.gradient_exponent is None else ieee(config.gradient_exponent, significand_bits=10)
    narrow = precision == "float16" or format is not None
    by_branch = narrow and config.gradient_scaling == "resblock"

    scales = GradientScales([], PER_BRANCH, device)
    if by_branch:
        scales = GradientScales([each.parameters() for each in residuals], PER_BRANCH.times(config.accumulate), device)
    elif narrow:
        scales = LossScale(model, device)
    own = scales.values if by_branch else torch.ones(len(residuals), device=device)
    for residual, scale in zip(residuals, own, strict=True):
        way = recomputed if config.recompute else directly
        residual.way = Scaled(way, scale, format) if by_branch or format is not None else way
    return scales


def recomputed(branch: Way, x: Tensor, *context: Any) -> Tensor:
    """The branch's activations are forgotten, and computed again when gradients need them."""
    return checkpoint(branch, x, *context, use_reentrant=False)


@dataclass(frozen=True)
class Scaled:
    """A branch whose gradients are larger by a factor within it, and only there (App. D; Fig. 4).

    Its norm lies within: so a description of Figure 4 has it. What is not finite does not leave it: one bad branch
    would drag down the scales of all before it.
    """

    way: Way
    scale: Tensor  # a scalar; whoever made it may change it between updates
    format: SmallFloat | None = None  # simulated: gradients are rounded to it as they enter and leave

    def __call__(self, branch: Way, x: Tensor, *context: Any) -> Tensor:
        x = _Entrance.apply(x, self.scale, self.format)
        return _Exit.apply(self.way(branch, x, *context), self.scale, self.format)


class _Entrance(torch.autograd.Function):
    """x; going backward, its gradient leaves the branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, format: SmallFloat | None) -> Tensor:
        ctx.scale, ctx.format = scale, format
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _filtered(_rounded(gradients[0].float(), ctx.format) / ctx.scale), None, None


class _Exit(torch.autograd.Function):
    """A branch's output in float32; going backward, a gradient enters the branch and takes on its number format."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: Tensor, format: SmallFloat | None) -> Tensor:
        ctx.dtype, ctx.scale, ctx.format = output.dtype, scale, format
        return output.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # filtered before it is converted: what overflows then has to show in the branch's parameters
        scaled = _filtered(gradients[0] * ctx.scale)
        return _rounded(scaled, ctx.format).to(ctx.dtype), None, None


def _filtered(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _rounded(gradient: Tensor, format: SmallFloat | None) -> Tensor:
    return gradient if format is None else format.round(gradient)
