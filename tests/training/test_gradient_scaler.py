import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dalle.training.gradient_scaler import BRANCH_SCALE, LOSS_SCALE, GradientScaler, LossScaler

CPU = torch.device("cpu")


def groups(count):
    return [[nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))] for _ in range(count)]


def after(scaler, *finite):
    """Run one update whose groups had finite gradients, or not."""
    for group, good in zip(scaler.parameter_groups, finite, strict=True):
        for parameter in group:
            parameter.grad = torch.ones_like(parameter)
        if not good:
            group[1].grad.fill_(torch.inf)
    scaler.unscale()
    scaler.update()
    return scaler.scales.tolist()


def test_defaults_are_the_papers():
    assert (BRANCH_SCALE.init_scale, BRANCH_SCALE.min_scale, BRANCH_SCALE.max_scale) == (2**13, 2**7, 2**24)
    assert BRANCH_SCALE.growth_factor**1000 == pytest.approx(2)
    assert BRANCH_SCALE.backoff_factor**2 == pytest.approx(1 / 2)
    assert BRANCH_SCALE.backoff_cooldown == 125


def test_each_scale_grows_and_shrinks_independently():
    scaler = GradientScaler(groups(3), BRANCH_SCALE, CPU)
    assert after(scaler, True, False, True) == pytest.approx([2**13.001, 2**12.5, 2**13.001])
    assert after(scaler, False, True, True) == pytest.approx([2**12.501, 2**12.501, 2**13.002])


def test_scale_is_lowered_at_most_once_in_125_updates():
    scaler = GradientScaler(groups(1), BRANCH_SCALE, CPU)
    values = [after(scaler, False)[0] for _ in range(251)]
    assert values[0] == pytest.approx(2**12.5)
    assert values[:125] == [values[0]] * 125
    assert values[125:250] == pytest.approx([2**12.0] * 125)
    assert values[250] == pytest.approx(2**11.5)


def test_scales_are_clamped():
    fast = replace(BRANCH_SCALE, growth_factor=2.0, backoff_factor=0.5, backoff_cooldown=0)
    scaler = GradientScaler(groups(2), fast, CPU)
    for _ in range(30):
        values = after(scaler, True, False)
    assert values == [2.0**24, 2.0**7]


def test_unscale_divides_gradients_by_group_scale():
    scaler = GradientScaler(groups(2), BRANCH_SCALE, CPU)
    after(scaler, True, False)
    after(scaler, True, True)
    grown, lowered = (group[0].grad[0].item() for group in scaler.parameter_groups)
    assert grown == pytest.approx(2**-13.001)
    assert lowered == pytest.approx(2**-12.5)


def test_scaling_then_unscaling_gives_same_gradients():
    model = nn.Linear(3, 1)
    inputs = torch.arange(6.0).reshape(2, 3)
    model(inputs).mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    scaler = LossScaler(model, CPU)
    scaler.scale_loss(model(inputs).mean()).backward()
    assert model.bias.grad.item() == LOSS_SCALE.init_scale
    scaler.unscale()
    assert all(parameter.grad.equal(grad) for parameter, grad in zip(model.parameters(), expected, strict=True))


def test_state_dict_round_trip():
    whole, broken = (GradientScaler(groups(2), replace(BRANCH_SCALE, backoff_cooldown=3), CPU) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        finite = (torch.rand(2, generator=generator) < 0.5).tolist()
        after(whole, *finite)
        again = GradientScaler(broken.parameter_groups, broken.config, CPU)
        again.load_state_dict(broken.state_dict())
        broken = again
        after(broken, *finite)
    assert broken.state_dict() == whole.state_dict()
    assert len(set(whole.scales.tolist())) == 2
    assert whole.metrics() == {"lowest_scale": whole.scales.min(), "highest_scale": whole.scales.max()}


def test_scaler_without_groups_does_nothing():
    scaler = GradientScaler([], BRANCH_SCALE, CPU)
    loss = torch.tensor(math.pi)
    assert scaler.scale_loss(loss) is loss
    scaler.unscale()
    scaler.update()
    assert scaler.metrics() == {}
    scaler.load_state_dict(scaler.state_dict())
