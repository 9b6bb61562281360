"""Training hooks on residual branches: gradient scaling and activation recomputation (Sec. 2.4, App. D)."""

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.models.blocks import ResidualBranch
from dalle.training.gradient_scales import PER_BRANCH, GradientScales, LossScale
from dalle.training.small_floats import SmallFloat, ieee
from dalle.training.stage import TrainingConfig


class Handle(Protocol):
    """Handle with `remove`, as returned by torch's hook registration."""

    def remove(self) -> None: ...


def attach(
    model: nn.Module, config: TrainingConfig, precision: str, device: torch.device
) -> tuple[GradientScales, list[Handle]]:
    """Attach gradient scaling and recomputation to the residual branches of `model`, according to `config`.

    Returns the gradient scales, and handles that remove the hooks. Call it after the model was copied for the EMA,
    since a copy would keep the hooks.

    Raises ValueError if `config` requires residual branches and the model has none.
    """
    branches = [module for module in model.modules() if isinstance(module, ResidualBranch)]
    asked = config.recompute or config.gradient_scaling == "resblock" or config.gradient_exponent is not None
    if asked and not branches:
        raise ValueError(
            "this model has no residual branches of the kind that gradient_scaling=resblock, gradient_exponent and"
            " recompute=true are for: choose gradient_scaling=global, gradient_exponent=null, recompute=false"
        )
    format = None if config.gradient_exponent is None else ieee(config.gradient_exponent, significand_bits=10)
    narrow = precision == "float16" or format is not None
    by_branch = narrow and config.gradient_scaling == "resblock"

    scales = GradientScales([], PER_BRANCH, device)
    if by_branch:
        scales = GradientScales([each.parameters() for each in branches], PER_BRANCH.times(config.accumulate), device)
    elif narrow:
        scales = LossScale(model, device)
    handles: list[Handle] = []
    if config.recompute:
        handles += [Recomputation(branch) for branch in branches]
    if by_branch or format is not None:
        own = scales.values if by_branch else torch.ones(len(branches), device=device)
        for branch, scale in zip(branches, own, strict=True):
            handles += scale_gradients(branch, scale, format)
    return scales, handles


class Recomputation:
    """Activation checkpointing of one branch, until `remove` is called."""

    def __init__(self, branch: nn.Module):
        self.branch = branch
        branch.forward = partial(checkpoint, branch.forward, use_reentrant=False)

    def remove(self) -> None:
        del self.branch.forward  # restores the method of the class


def scale_gradients(branch: nn.Module, scale: Tensor, format: SmallFloat | None = None) -> list[Handle]:
    """Register hooks that multiply gradients by `scale` inside the branch only (App. D; Fig. 4).

    The branch includes its norm, according to a description of Figure 4. Non-finite gradients are set to 0 where they
    leave the branch; otherwise an overflow in one branch would lower the scales of all branches before it.

    scale: scalar tensor, which may be modified between updates.
    format: number format to simulate; gradients are rounded to it where they enter and leave the branch.
    """

    def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *context = arguments
        return (_Entrance.apply(x, scale, format), *context)

    def leave(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return _Exit.apply(output, scale, format)

    return [branch.register_forward_pre_hook(enter), branch.register_forward_hook(leave)]


class _Entrance(torch.autograd.Function):
    """Identity at the branch's input; the backward pass divides the gradient by the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, format: SmallFloat | None) -> Tensor:
        ctx.scale, ctx.format = scale, format
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _filtered(_rounded(gradients[0].float(), ctx.format) / ctx.scale), None, None


class _Exit(torch.autograd.Function):
    """Cast of the branch's output to float32; the backward pass scales the gradient and casts it back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: Tensor, format: SmallFloat | None) -> Tensor:
        ctx.dtype, ctx.scale, ctx.format = output.dtype, scale, format
        return output.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # filter before the cast: an overflow in the cast must show in the gradients of the branch's parameters
        scaled = _filtered(gradients[0] * ctx.scale)
        return _rounded(scaled, ctx.format).to(ctx.dtype), None, None


def _filtered(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _rounded(gradient: Tensor, format: SmallFloat | None) -> Tensor:
    return gradient if format is None else format.round(gradient)
