"""When the dVAE stage restarts unused codes, with how many images at a time, and schedules that are refused."""

from dataclasses import replace

import pytest
import torch
from tiny_stages import CONFIGS, build

from dalle.stages.dvae import DVAEStageConfig


def test_unused_codes_are_restarted_on_schedule_and_reproducibly():
    settings = {"restart_codes_every": 10, "restart_codes_from": 20, "restart_codes_until": 40}
    stage, other = build("dvae", **settings), build("dvae", **settings)
    with torch.no_grad():
        for changed in (stage, other):
            changed.model.encoder.output.bias[2:] -= 100  # all codes but two are unused
    before = stage.model.encoder.output.weight.clone()
    for step in (0, 10, 25, 40, 50):
        stage.before_update(step, [])
    assert torch.equal(stage.model.encoder.output.weight, before)
    stage.before_update(30, [])
    other.before_update(30, [])
    assert not torch.equal(stage.model.encoder.output.weight, before)
    assert torch.equal(stage.model.encoder.output.weight, other.model.encoder.output.weight)


def test_restarts_take_no_more_images_at_a_time_than_a_micro_batch():
    stage = build("dvae", restart_codes_every=10, steps=1000, batch_size=8, accumulate=2)
    passes = []
    for layer in (stage.model.encoder.input, stage.model.decoder.groups[0]):
        layer.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    stage.before_update(10, [])
    assert max(passes) == 4
    assert sum(passes) == 2 * len(stage.data.train)


def test_codes_are_not_restarted_by_default():
    stage = build("dvae")
    with torch.no_grad():
        stage.model.encoder.output.bias[2:] -= 100
    before = stage.model.encoder.output.weight.clone()
    for step in range(0, 1000, 50):
        stage.before_update(step, [])
    assert torch.equal(stage.model.encoder.output.weight, before)


@pytest.mark.parametrize("model", [{"relaxation": "vector_quantisation"}, {"bottleneck_kernel": 3}])
def test_restarts_without_logits_of_single_positions_are_refused(model):
    with pytest.raises(ValueError, match="restart_codes_every=10 needs bottleneck_kernel=1"):
        DVAEStageConfig(model=replace(CONFIGS["dvae"].model, **model), restart_codes_every=10)


def test_codes_are_restarted_to_the_end_without_a_last_update():
    """As the FAQ says, restart_codes_every alone restarts codes."""
    stage = build("dvae", restart_codes_every=10, steps=1000)
    with torch.no_grad():
        stage.model.encoder.output.bias[2:] -= 100
    before = stage.model.encoder.output.weight.clone()
    stage.before_update(1000, [])
    assert torch.equal(stage.model.encoder.output.weight, before)
    stage.before_update(990, [])
    assert not torch.equal(stage.model.encoder.output.weight, before)


def test_restarts_that_would_never_happen_are_refused():
    with pytest.raises(ValueError, match="restart_codes_until=20 must be above restart_codes_from=30"):
        replace(CONFIGS["dvae"], restart_codes_every=10, restart_codes_from=30, restart_codes_until=20)
