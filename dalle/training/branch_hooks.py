"""Training hooks on residual branches: gradient scaling and activation checkpointing (Sec. 2.4, App. D)."""

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle.models.blocks import ResidualBranch, TransformerBlock
from dalle.training.float_formats import FloatFormat, ieee
from dalle.training.gradient_scaler import BRANCH_SCALE, GradientScaler, LossScaler
from dalle.training.stage import StageConfig


class Handle(Protocol):
    """Interface of a handle whose `remove` undoes a hook, as torch's hook registration returns."""

    def remove(self) -> None: ...


def attach_hooks(
    model: nn.Module, config: StageConfig, precision: str, device: torch.device
) -> tuple[GradientScaler, list[Handle]]:
    """Attach gradient scaling and activation checkpointing to the residual branches of `model`, as `config` says.

    Returns the gradient scaler, and handles that remove the hooks. Call it after the model was copied for the EMA,
    since a copy would keep the hooks.

    Raises ValueError if `config` requires residual branches and the model has none.
    """
    branches = [module for module in model.modules() if isinstance(module, ResidualBranch)]
    needs_branches = config.recompute or config.gradient_scaling == "resblock" or config.gradient_exponent is not None
    if needs_branches and not branches:
        raise ValueError(
            "this model has no residual branches, which gradient_scaling=resblock, gradient_exponent and recompute=true"
            " need: set gradient_scaling=global, gradient_exponent=null and recompute=false"
        )
    format = None if config.gradient_exponent is None else ieee(config.gradient_exponent, significand_bits=10)
    needs_scaling = precision == "float16" or format is not None
    per_branch = needs_scaling and config.gradient_scaling == "resblock"

    scaler = GradientScaler([], BRANCH_SCALE, device)
    if per_branch:
        branch_scale = BRANCH_SCALE.scaled_by(config.accumulate)
        scaler = GradientScaler([branch.parameters() for branch in branches], branch_scale, device)
    elif needs_scaling:
        scaler = LossScaler(model, device)
    handles: list[Handle] = []
    if config.recompute:
        handles += [ActivationCheckpointing(branch) for branch in recomputed_branches(model, config.recompute_layers)]
    if per_branch or format is not None:
        scales = scaler.scales if per_branch else torch.ones(len(branches), device=device)
        for branch, scale in zip(branches, scales, strict=True):
            handles += scale_gradients(branch, scale, format)
    return scaler, handles


def recomputed_branches(model: nn.Module, layers: int | None) -> list[ResidualBranch]:
    """Return the residual branches of the first `layers` transformer blocks of `model`; of all if it is None.

    Those of the last blocks would be recomputed first in the backward pass, when most is still stored. Raises
    ValueError if the model has fewer blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, TransformerBlock)]
    if layers is not None and layers > len(blocks):
        raise ValueError(f"recompute_layers={layers} must be at most {len(blocks)}, the number of transformer blocks")
    part = model.modules() if layers is None else (module for block in blocks[:layers] for module in block.modules())
    return [module for module in part if isinstance(module, ResidualBranch)]


class ActivationCheckpointing:
    """Handle of activation checkpointing of one residual branch, which ends when `remove` is called."""

    def __init__(self, branch: nn.Module):
        self.branch = branch
        branch.forward = partial(checkpoint, branch.forward, use_reentrant=False)

    def remove(self) -> None:
        del self.branch.forward  # restores the method of the class


def scale_gradients(branch: nn.Module, scale: Tensor, format: FloatFormat | None = None) -> list[Handle]:
    """Register hooks that multiply gradients by `scale` inside the branch only, and return them (App. D; Fig. 4).

    The branch includes its norm, according to a description of Figure 4. Non-finite gradients are set to 0 where they
    leave the branch; otherwise an overflow in one branch would lower the scales of all branches before it.

    scale: scalar tensor, which may be modified between updates.
    format: number format to simulate; gradients are rounded to it where they enter and leave the branch.
    """

    def before_forward(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *context = arguments
        return (_BranchInput.apply(x, scale, format), *context)

    def after_forward(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return _BranchOutput.apply(output, scale, format)

    return [branch.register_forward_pre_hook(before_forward), branch.register_forward_hook(after_forward)]


class _BranchInput(torch.autograd.Function):
    """Identity at the input of a residual branch; the backward pass divides the gradient by the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, format: FloatFormat | None) -> Tensor:
        ctx.scale, ctx.format = scale, format
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _zero_nonfinite(_round(gradients[0].float(), ctx.format) / ctx.scale), None, None


class _BranchOutput(torch.autograd.Function):
    """Cast of a residual branch's output to float32; the backward pass scales the gradient and casts it back."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: Tensor, format: FloatFormat | None) -> Tensor:
        ctx.dtype, ctx.scale, ctx.format = output.dtype, scale, format
        return output.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # before the cast: an overflow in the cast must show in the gradients of the branch's parameters
        scaled = _zero_nonfinite(gradients[0] * ctx.scale)
        return _round(scaled, ctx.format).to(ctx.dtype), None, None


def _zero_nonfinite(gradient: Tensor) -> Tensor:
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _round(gradient: Tensor, format: FloatFormat | None) -> Tensor:
    return gradient if format is None else format.round(gradient)
