"""Hooks on residual branches: scaled gradients equal unscaled ones, and do not underflow where unscaled ones do."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.models.blocks import BlockConfig, ResidualBranch, TransformerBlock
from dalle.precision import autocast
from dalle.training.branch_hooks import ActivationCheckpointing, attach_hooks, scale_gradients
from dalle.training.float_formats import ieee
from dalle.training.gradient_scaler import BRANCH_SCALE, GradientScaler, LossScaler
from dalle.training.stage import StageConfig

CPU = torch.device("cpu")
RESBLOCK = StageConfig(gradient_scaling="resblock")
WIDTH = 16


class Stack(nn.Module):
    """Residual blocks whose gradients shrink from each block to the one before."""

    def __init__(self, depth: int = 4, fading: float = 1.0, **block: Any):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(TransformerBlock(BlockConfig(WIDTH, heads=2, **block)) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 11)
        self.fading = fading

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(self.fading * x + (1 - self.fading) * x.detach())
        with torch.autocast("cpu", enabled=False):
            return self.head(x)


def gradients(model: nn.Module, scaler: GradientScaler | None = None, precision: str = "float32") -> dict[str, Tensor]:
    ids = torch.arange(22).reshape(2, 11) % 11
    model.zero_grad()
    with autocast(precision, CPU):
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), (3 * ids.flatten() + 1) % 11)
    (loss if scaler is None else scaler.scale_loss(loss)).backward()
    if scaler is not None:
        scaler.unscale()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def attached(model: nn.Module, config: StageConfig, precision: str, device: torch.device) -> GradientScaler:
    return attach_hooks(model, config, precision, device)[0]


def parts(found: dict[str, Tensor]) -> list[Tensor]:
    """Return the gradients of each residual branch's matrices, first branch first."""
    names = dict.fromkeys(".".join(name.split(".")[:3]) for name in found if name.startswith("blocks"))
    return [
        torch.cat(
            [
                gradient.flatten()
                for key, gradient in found.items()
                if key.startswith(f"{name}.branch") and gradient.ndim > 1
            ]
        )
        for name in names
    ]


def test_one_scale_per_residual_branch():
    model = Stack(depth=4)
    scaler = attached(model, RESBLOCK, "float16", CPU)
    assert scaler.scales.tolist() == [2.0**13] * 8
    inside = {id(parameter) for group in scaler.parameter_groups for parameter in group}
    assert {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) not in inside} == {
        "embed",
        "head",
    }
    assert isinstance(attached(model, StageConfig(), "float16", CPU), LossScaler)
    for config, precision in ((RESBLOCK, "bfloat16"), (RESBLOCK, "float32"), (StageConfig(), "bfloat16")):
        assert attached(model, config, precision, CPU).parameter_groups == []


def test_scales_are_multiplied_by_gradient_accumulation_steps():
    scaler = attached(Stack(), replace(RESBLOCK, accumulate=4), "float16", CPU)
    assert scaler.scales.tolist() == [2.0**15] * 8
    assert (scaler.config.min_scale, scaler.config.max_scale) == (2**9, 2**26)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("block", [{}, {"qk_norm": True, "mlp": "swiglu"}, {"dropout": 0.3}], ids=str)
def test_scaled_branches_give_the_same_gradients(block, recompute):
    """Scales are powers of two, so float32 gradients are bitwise equal."""
    plain = gradients(Stack(**block))  # each stack seeds the global generator, from which dropout draws
    model = Stack(**block)
    found = [module for module in model.modules() if isinstance(module, ResidualBranch)]
    scaler = GradientScaler([module.parameters() for module in found], BRANCH_SCALE, CPU)
    scaler.scales.copy_(2.0 ** torch.arange(7, 15))
    for branch, scale in zip(found, scaler.scales, strict=True):
        if recompute:
            ActivationCheckpointing(branch)
        scale_gradients(branch, scale)
    scaled = gradients(model, scaler)
    assert all(scaled[name].equal(gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_hooks_can_be_removed(precision):
    plain, model = gradients(Stack()), Stack()
    config = replace(RESBLOCK, recompute=True, gradient_exponent=5)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    _, handles = attach_hooks(model, config, precision, CPU)
    assert len(handles) == 8 * 3
    for handle in handles:
        handle.remove()
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert all(gradient.equal(plain[name]) for name, gradient in gradients(model).items())


def test_gradients_are_scaled_only_within_their_branch():
    plain, model = gradients(Stack()), Stack()
    scaler = attached(model, replace(RESBLOCK, gradient_exponent=5), "float32", CPU)
    scaler.unscale = lambda: None
    found = gradients(model, scaler)
    for name, gradient in plain.items():
        scale = 2.0**13 if name.startswith("blocks") else 1.0
        torch.testing.assert_close(found[name], gradient * scale, rtol=0.01, atol=0.01 * scale * gradient.abs().max())


@pytest.mark.parametrize("scaling", ["global", "resblock"])
def test_float16_gradients_match_float32(scaling):
    plain, model = gradients(Stack()), Stack()
    scaler = attached(model, replace(RESBLOCK, gradient_scaling=scaling), "float16", CPU)
    found = gradients(model, scaler, "float16")
    for name, gradient in plain.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() < 0.02 * gradient.norm() + 1e-7, name


def gradients_after_warmup(scaling: str, exponent: int, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients after the scales have settled, which takes a run thousands of updates."""
    config = replace(RESBLOCK, gradient_scaling=scaling, gradient_exponent=exponent)
    scaler = attached(model, config, "float32", CPU)
    scaler.config = replace(scaler.config, growth_factor=2**0.5, backoff_factor=0.5, backoff_cooldown=0)
    found = []
    for _ in range(40):
        found.append(gradients(model, scaler))
        scaler.update()
    return next(
        by_name for by_name in reversed(found) if all(gradient.isfinite().all() for gradient in by_name.values())
    )


def test_per_branch_scales_avoid_underflow_with_3_exponent_bits():
    """With 3 exponent bits the range is 2^-12 to 2^4: one scale cannot fit both the last block and the first."""
    plain = parts(gradients(Stack(4, fading=1 / 64)))
    assert plain[0].norm() < 2**-16 * plain[-1].norm()  # they shrink through depth, from the last block to the first

    def lost(scaling: str) -> list[float]:
        """Return the relative error of each branch's gradient."""
        found = parts(gradients_after_warmup(scaling, 3, Stack(4, fading=1 / 64)))
        return [((ours - true).norm() / true.norm()).item() for ours, true in zip(found, plain, strict=True)]

    under_one, each_its_own = lost("global"), lost("resblock")
    assert under_one[-1] < 0.01
    assert under_one[0] == 1.0  # all of it
    assert max(each_its_own) < 0.01


def test_overflow_in_a_branch_lowers_only_its_own_scale():
    model = Stack()
    scaler = attached(model, RESBLOCK, "float16", CPU)
    scaler.scales[3] = 2.0**40  # far too much for float16
    found = gradients(model, scaler, "float16")
    bad = {name for name, gradient in found.items() if not gradient.isfinite().all()}
    assert bad
    assert all(name.startswith("blocks.1.mlp") for name in bad)
    assert found["embed.weight"].any()
    scaler.update()
    grown = [True, True, True, False, True, True, True, True]
    assert (scaler.scales > BRANCH_SCALE.init_scale).tolist() == [
        value or number == 3 for number, value in enumerate(grown)
    ]
    assert scaler.scales[3] <= BRANCH_SCALE.max_scale


def test_nonfinite_incoming_gradients_are_filtered():
    """A loss that is not finite leaves the scales as they are."""
    model = Stack()
    scaler = attached(model, RESBLOCK, "float16", CPU)
    with autocast("float16", CPU):
        loss = model(torch.arange(11)[None]).sum() * torch.nan
    loss.backward()
    scaler.unscale()
    assert not model.head.weight.grad.isfinite().any()
    assert not torch.cat(parts({name: parameter.grad for name, parameter in model.named_parameters()})).any()
    scaler.update()
    assert (scaler.scales > BRANCH_SCALE.init_scale).all()


def test_recomputation_saves_memory_and_gives_same_gradients():
    def kept(model: nn.Module) -> int:
        """Return the number of values saved for the backward pass."""
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda x: x
        ):
            model(torch.arange(11)[None])
        return sum(sizes)

    plain, recomputing = Stack(), Stack()
    attached(recomputing, StageConfig(recompute=True), "float32", CPU)
    expected = gradients(plain)
    assert all(gradient.equal(expected[name]) for name, gradient in gradients(recomputing).items())
    assert kept(recomputing) < kept(plain) / 4


def test_the_first_layers_can_be_recomputed():
    plain, model = gradients(Stack()), Stack()
    _, handles = attach_hooks(model, StageConfig(recompute=True, recompute_layers=3), "float32", CPU)
    branches = [branch for block in model.blocks[:3] for branch in (block.attention, block.mlp)]
    assert [handle.branch for handle in handles] == branches
    assert all(gradient.equal(plain[name]) for name, gradient in gradients(model).items())


def test_simulated_format_rounds_branch_inputs_and_outputs():
    seen = []

    class Triple(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(lambda gradient: seen.append(("leaving", gradient)))
            output = 3 * x
            output.register_hook(lambda gradient: seen.append(("entering", gradient)))
            return output

    format, triple = ieee(3, 10), Triple()
    scale_gradients(triple, torch.tensor(2.0), format)
    x = torch.full((3,), 1.0, requires_grad=True)
    triple(x).backward(torch.tensor([2.0**-14, 0.10009765625, 100.0]))
    assert seen[0][1].tolist() == [0.0, format.round(torch.tensor(0.2001953125)).item(), torch.inf]
    assert x.grad.tolist() == [0.0, format.round(3 * seen[0][1][1]).item() / 2, 0.0]


def test_models_without_residual_branches_raise():
    for config in (RESBLOCK, StageConfig(recompute=True), StageConfig(gradient_exponent=4)):
        with pytest.raises(ValueError, match="this model has no residual branches"):
            attached(nn.Linear(2, 2), config, "float16", CPU)


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="recompute_layers=5 must be at most 4, the number of transformer blocks"):
        attached(Stack(), StageConfig(recompute=True, recompute_layers=5), "float32", CPU)
    for recompute, layers in ((False, 1), (True, 0)):
        with pytest.raises(ValueError, match=f"recompute_layers={layers} must be at least 1 and needs recompute=true"):
            StageConfig(recompute=recompute, recompute_layers=layers)
    with pytest.raises(ValueError, match="gradient_scaling=local is unknown; choose global or resblock"):
        StageConfig(gradient_scaling="local")
    with pytest.raises(ValueError, match="gradient_exponent=8 must be 2 to 5 bits"):
        StageConfig(gradient_exponent=8)
