import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dalle.training.gradient_scales import ON_LOSS, PER_BRANCH, GradientScales, LossScale

CPU = torch.device("cpu")


def groups(count):
    return [[nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))] for _ in range(count)]


def after(scales, *finite):
    """One update in which the groups' gradients were finite, or not."""
    for group, good in zip(scales.groups, finite, strict=True):
        for parameter in group:
            parameter.grad = torch.ones_like(parameter)
        if not good:
            group[1].grad.fill_(torch.inf)
    scales.unscale()
    scales.update()
    return scales.values.tolist()


def test_the_numbers_are_the_papers():
    assert (PER_BRANCH.initial, PER_BRANCH.lowest, PER_BRANCH.highest) == (2**13, 2**7, 2**24)
    assert PER_BRANCH.growth**1000 == pytest.approx(2)
    assert PER_BRANCH.backoff**2 == pytest.approx(1 / 2)
    assert PER_BRANCH.pause == 125


def test_each_scale_grows_by_itself_and_is_lowered_by_itself():
    scales = GradientScales(groups(3), PER_BRANCH, CPU)
    assert after(scales, True, False, True) == pytest.approx([2**13.001, 2**12.5, 2**13.001])
    assert after(scales, False, True, True) == pytest.approx([2**12.501, 2**12.501, 2**13.002])


def test_a_scale_is_not_lowered_twice_within_125_updates():
    scales = GradientScales(groups(1), PER_BRANCH, CPU)
    values = [after(scales, False)[0] for _ in range(251)]
    assert values[0] == pytest.approx(2**12.5)
    assert values[:125] == [values[0]] * 125
    assert values[125:250] == pytest.approx([2**12.0] * 125)
    assert values[250] == pytest.approx(2**11.5)


def test_scales_stay_between_their_ends():
    fast = replace(PER_BRANCH, growth=2.0, backoff=0.5, pause=0)
    scales = GradientScales(groups(2), fast, CPU)
    for _ in range(30):
        values = after(scales, True, False)
    assert values == [2.0**24, 2.0**7]


def test_gradients_are_divided_by_the_scale_of_their_group():
    scales = GradientScales(groups(2), PER_BRANCH, CPU)
    after(scales, True, False)
    after(scales, True, True)
    grown, lowered = (group[0].grad[0].item() for group in scales.groups)
    assert grown == pytest.approx(2**-13.001)
    assert lowered == pytest.approx(2**-12.5)


def test_scaling_the_loss_leaves_the_gradients_as_they_were():
    model = nn.Linear(3, 1)
    inputs = torch.arange(6.0).reshape(2, 3)
    model(inputs).mean().backward()
    expected = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    scales = LossScale(model, CPU)
    scales.of_loss(model(inputs).mean()).backward()
    assert model.bias.grad.item() == ON_LOSS.initial
    scales.unscale()
    assert all(each.grad.equal(grad) for each, grad in zip(model.parameters(), expected, strict=True))


def test_scales_go_on_from_their_saved_state():
    whole, broken = (GradientScales(groups(2), replace(PER_BRANCH, pause=3), CPU) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        finite = (torch.rand(2, generator=generator) < 0.5).tolist()
        after(whole, *finite)
        again = GradientScales(broken.groups, broken.rule, CPU)
        again.restore(broken.state())
        broken = again
        after(broken, *finite)
    assert broken.state() == whole.state()
    assert len(set(whole.values.tolist())) == 2
    assert whole.metrics() == {"lowest_scale": whole.values.min(), "highest_scale": whole.values.max()}


def test_without_groups_all_is_idle():
    scales = GradientScales([], PER_BRANCH, CPU)
    loss = torch.tensor(math.pi)
    assert scales.of_loss(loss) is loss
    scales.unscale()
    scales.update()
    assert scales.metrics() == {}
    scales.restore(scales.state())
