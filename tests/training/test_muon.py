from dataclasses import replace

import pytest
import torch
from torch import nn

from dalle.models.attention import FusedLinear
from dalle.models.blocks import Float32Linear
from dalle.training.muon import newton_schulz
from dalle.training.optimizer import OptimizerConfig, build_optimizer
from dalle.training.schedules import Schedule

ONE, ZERO = torch.ones(()), torch.zeros(())
MUON = OptimizerConfig(kind="muon", learning_rate=Schedule(start=1e-2), betas=(0.9, 0.96), weight_decay=0.0)


def model_with_every_kind_of_weight():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 2), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 4), Float32Linear(4, 5))


def backward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(6, 3, 2, 2, generator=generator)).square().mean().backward()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 128, 32), (2, 16, 80)])
def test_orthogonalization_keeps_singular_vectors_and_sets_singular_values_near_1(shape, dtype, tolerance):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ newton_schulz(matrices, dtype) @ v.mT
    off_diagonal = values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < tolerance
    spectrum = values.diagonal(dim1=1, dim2=2)
    assert spectrum.max() < 1.3
    assert spectrum.median() > 0.65


def test_update_rms_matches_adamw_for_any_gradient_scale():
    for scale in (1e-3, 1e3):
        layer = nn.Linear(64, 256, bias=False)
        before = layer.weight.detach().clone()
        optimizer = build_optimizer(layer, MUON)
        layer.weight.grad = scale * torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
        optimizer.step_if_finite(ONE, 1e-2)
        assert (layer.weight - before).square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.2)


def test_only_layer_matrices_are_orthogonalized():
    model = model_with_every_kind_of_weight()
    optimizer = build_optimizer(model, MUON)
    backward(model)
    optimizer.step_if_finite(ONE, 1e-2)
    kept = {name: set(optimizer.state[parameter]) for name, parameter in model.named_parameters()}
    assert {name for name, moments in kept.items() if moments == {"momentum"}} == {"0.weight", "3.weight"}
    assert {name for name, moments in kept.items() if "exp_avg" in moments} == kept.keys() - {"0.weight", "3.weight"}


def test_other_parameters_use_adamw():
    ours, theirs = model_with_every_kind_of_weight(), model_with_every_kind_of_weight()
    for model, config in ((ours, MUON), (theirs, replace(MUON, kind="adamw"))):
        optimizer = build_optimizer(model, config)
        backward(model)
        optimizer.step_if_finite(ONE, 1e-2)
    for name, parameter in theirs.named_parameters():
        same = torch.allclose(ours.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)
        assert same == (name not in ("0.weight", "3.weight")), name


def test_fused_qkv_updates_match_separate_matrices():
    torch.manual_seed(0)
    together, apart = FusedLinear(16, 8, parts=3), nn.ModuleList(nn.Linear(16, 8) for _ in range(3))
    gradient = torch.randn(24, 16) * torch.tensor([1.0, 10.0, 100.0]).repeat_interleave(8)[:, None]
    together.weight.grad = gradient
    for layer, weight, part in zip(apart, together.weight.detach().chunk(3), gradient.chunk(3), strict=True):
        layer.weight.data, layer.weight.grad = weight.clone(), part
    for model in (together, apart):
        build_optimizer(model, MUON).step_if_finite(ONE, 1e-2)
    torch.testing.assert_close(together.weight.detach(), torch.cat([layer.weight.detach() for layer in apart]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_skipped_step_changes_nothing(bad):
    model = model_with_every_kind_of_weight()
    optimizer = build_optimizer(model, replace(MUON, weight_decay=0.1))
    backward(model)
    optimizer.step_if_finite(ONE, 1e-2)
    before = [weight.detach().clone() for weight in model.parameters()]
    momentum = optimizer.state[model[3].weight]["momentum"].clone()
    for parameter in model.parameters():
        parameter.grad.fill_(bad)
    optimizer.step_if_finite(ZERO, 1e-2)
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(momentum, optimizer.state[model[3].weight]["momentum"])


def test_weight_decay_is_decoupled():
    layer = nn.Linear(4, 4, bias=False)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(layer, replace(MUON, weight_decay=0.5))
    layer.weight.grad = torch.zeros(4, 4)
    optimizer.step_if_finite(ONE, 0.1)
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.5))


def test_unknown_optimizer_raises():
    with pytest.raises(ValueError, match="optimizer.kind='lion' is unknown; choose one of adamw, muon"):
        OptimizerConfig(kind="lion")


def test_unsupported_moment_formats_raise():
    with pytest.raises(ValueError, match="kind=muon has no variance of matrices to keep in 16 bits"):
        OptimizerConfig(kind="muon", moments="paper16")
