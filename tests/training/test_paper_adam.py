from dataclasses import replace

import pytest
import torch
from torch import nn

from dalle.models.blocks import Float32Linear
from dalle.training.optimizer import OptimizerConfig, build_optimizer
from dalle.training.paper_adam import PaperAdamW
from dalle.training.schedules import Schedule

ONE, ZERO = torch.ones(()), torch.zeros(())
PAPER = OptimizerConfig(Schedule(start=1e-2), betas=(0.9, 0.96), weight_decay=0.045, variance_clip=5.0)
NARROW = replace(PAPER, moments="paper16")


def tiny_model(seed=0):
    torch.manual_seed(seed)
    inner = [nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()]
    return nn.Sequential(nn.Embedding(7, 8), *inner, Float32Linear(16, 7))


def trained(config, updates=60, seed=0, skipped=()):
    """Train a model to predict the next class; return it with its losses."""
    model = tiny_model(seed)
    optimizer = build_optimizer(model, config)
    inputs = torch.arange(7)
    losses = []
    for update in range(updates):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), (inputs * 3 + 1) % 7)
        loss.backward()
        if update in skipped:
            for parameter in model.parameters():
                parameter.grad.fill_(torch.nan if update % 2 else torch.inf)
        optimizer.step_if_finite(ZERO if update in skipped else ONE, 1e-2)
        losses.append(loss.item())
    return model, optimizer, losses


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_without_clipping_matches_torch_adamw():
    fused = trained(replace(PAPER, variance_clip=None))
    ours = trained(PAPER)
    assert isinstance(ours[1], PaperAdamW)
    assert isinstance(fused[1], torch.optim.AdamW)
    torch.testing.assert_close(weights(ours[0]), weights(fused[0]), rtol=1e-4, atol=1e-6)
    for parameter, other in zip(ours[0].parameters(), fused[0].parameters(), strict=True):
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours[1].state[parameter][moment], fused[1].state[other][moment])


def test_second_moment_is_clipped_before_use_and_storage():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    optimizer = build_optimizer(model, replace(PAPER, weight_decay=0.0, eps=0.0))
    model.weight.grad = torch.full((1, 1), 100.0)
    optimizer.step_if_finite(ONE, 0.01)
    assert optimizer.state[model.weight]["exp_avg_sq"].item() == 5.0  # without the clip 0.04 * 100 ** 2 = 400
    step = 0.01 * (0.1 * 100 / 0.1) / (5.0 / 0.04) ** 0.5
    assert model.weight.item() == pytest.approx(-step, rel=1e-5)
    model.weight.grad = torch.zeros(1, 1)
    optimizer.step_if_finite(ONE, 0.01)
    assert optimizer.state[model.weight]["exp_avg_sq"].item() == pytest.approx(0.96 * 5.0)


@pytest.mark.parametrize("config", [PAPER, NARROW], ids=["float32", "paper16"])
def test_skipped_step_changes_neither_weights_nor_moments(config):
    plain, skipping = trained(config, 1), trained(config, 4, skipped=(1, 2, 3))
    assert weights(plain[0]).equal(weights(skipping[0]))
    for one, other in zip(plain[0].parameters(), skipping[0].parameters(), strict=True):
        assert all(tensor.equal(skipping[1].state[other][name]) for name, tensor in plain[1].state[one].items())
    torch.manual_seed(0)
    untouched = weights(tiny_model())
    assert weights(trained(config, 2, skipped=(0, 1))[0]).equal(untouched)  # from the very first on


def test_16_bit_moments_train_like_32_bit_moments():
    """The loss curves differ a hundred times less than those of two seeds."""
    wide, narrow, other = trained(PAPER)[2], trained(NARROW)[2], trained(PAPER, seed=1)[2]
    apart = max(abs(a - b) for a, b in zip(wide, narrow, strict=True))
    assert 0 < apart < 0.001
    assert max(abs(a - b) for a, b in zip(wide, other, strict=True)) > 100 * apart
    assert wide[-1] < wide[0] / 5


def test_only_matrix_moments_are_16_bit_and_use_half_the_memory():
    model, optimizer, _ = trained(NARROW, 1)
    kept = {name: optimizer.state[parameter]["exp_avg_sq"] for name, parameter in model.named_parameters()}
    narrow = {name for name, moment in kept.items() if moment.dtype == torch.int16}
    assert narrow == {"1.weight", "3.weight"}
    assert kept["1.weight"].nbytes == 2 * 8 * 16
    assert {moment.dtype for name, moment in kept.items() if name not in narrow} == {torch.float32}


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match="choose one of float32, paper16"):
        OptimizerConfig(moments="float16")
    with pytest.raises(ValueError, match=r"variance_clip=0\.0 must be above 0; null leaves the variance alone"):
        OptimizerConfig(variance_clip=0.0)
