import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from dalle.models.dvae.config import DVAEConfig
from dalle.stages.dvae import DVAEStageConfig
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.optimizer import OptimizerConfig, PlateauConfig, ReduceOnPlateau, build_optimizer
from dalle.training.schedules import Schedule
from dalle.training.stage import StageConfig

VQ = DVAEConfig(relaxation="vector_quantisation")

CPU = torch.device("cpu")
ONE, ZERO = torch.ones(()), torch.zeros(())


def test_learning_rate_warmup_then_schedule():
    config = OptimizerConfig(Schedule("linear", 1.0, 0.0, steps=100), warmup_steps=10)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(9) == pytest.approx(0.91)
    assert config.learning_rate_at(50) == pytest.approx(0.5)
    assert OptimizerConfig(Schedule(start=0.3)).learning_rate_at(0) == 0.3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"learning_rate": Schedule(start=-0.1)}, "optimizer.learning_rate from -0.1"),
        ({"learning_rate": Schedule("linear", 0.1, math.inf)}, "optimizer.learning_rate from 0.1 to inf"),
        ({"warmup_steps": -5}, "optimizer.warmup_steps=-5"),
        ({"betas": (1.5, 0.9)}, "optimizer.betas="),
        ({"betas": (0.9, 1.0)}, "optimizer.betas="),
        ({"betas": (0.9,)}, "optimizer.betas="),
        ({"eps": -1.0}, "optimizer.eps=-1.0"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1"),
        ({"weight_decay": math.nan}, "optimizer.weight_decay=nan"),
    ],
)
def test_settings_that_would_train_in_the_wrong_direction_raise(settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("config", "settings", "named"),
    [
        (PlateauConfig, {"threshold": -3.0}, "threshold >= 0, not 0, 5000, 3 and -3.0"),
        (TransformerStageConfig, {"text_weight": 8.0}, "text_weight=8.0 must lie between 0 and 1"),
        (TransformerStageConfig, {"bpe_dropout": 1.5}, "bpe_dropout=1.5 must be at least 0"),
        (TransformerStageConfig, {"precision": "fp16"}, "precision=fp16 is unknown; choose auto, float32"),
        (
            DVAEStageConfig,
            {"temperature": Schedule("cosine", 1.0, 0.0, 10)},
            "temperature from 1.0 to 0.0 must be",
        ),
        (DVAEStageConfig, {"model": VQ, "commitment": -1.0}, "commitment=-1.0 must be above 0"),
        (
            DVAEStageConfig,
            {"model": VQ, "commitment": 0.0},
            "commitment=0.0 must be above 0: it weights the only loss that trains",
        ),
        (DVAEStageConfig, {"model": VQ, "commitment": math.nan}, "commitment=nan must be above 0"),
    ],
)
def test_settings_that_would_reverse_a_loss_or_end_in_nan_raise(config, settings, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        config(**settings)


@pytest.mark.parametrize("job", ["log", "validate", "preview", "save", "keep"])
def test_a_negative_number_of_updates_between_two_jobs_raises(job):
    with pytest.raises(ValueError, match=f"{job}_every=-5 must be at least 0"):
        StageConfig(**{f"{job}_every": -5})


def test_dvae_learning_rate_defaults_are_the_papers():
    config = OptimizerConfig()
    assert (config.learning_rate_at(0), config.learning_rate_at(1_200_000)) == (1e-4, 1.25e-6)


def test_weight_decay_can_exclude_gains_biases_and_temperature():
    model = nn.ModuleDict({"linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    model.register_parameter("temperature", nn.Parameter(torch.zeros(())))
    decayed, spared = build_optimizer(model, OptimizerConfig(weight_decay=0.2, decay="matrices")).param_groups
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 3)]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.2, 0.0)
    assert len(spared["params"]) == 4
    (everything,) = build_optimizer(model, OptimizerConfig()).param_groups
    assert len(everything["params"]) == 5
    with pytest.raises(ValueError, match="matrices"):
        OptimizerConfig(decay="some")


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    (group,) = build_optimizer(model, OptimizerConfig()).param_groups
    assert group["params"] == [model.weight]


def test_skipped_step_changes_neither_weights_nor_moments():
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step_if_finite(ONE, 0.1)
    weights = [weight.clone() for weight in model.parameters()]
    moments = [tensor.clone() for state in optimizer.state.values() for tensor in state.values()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step_if_finite(ZERO, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    now = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))


def test_plateau_halves_learning_rate_within_limits():
    plateau = ReduceOnPlateau(PlateauConfig(max_reductions=2, window=4, threshold=0.01, patience=1), CPU)
    halved = []
    for step in range(1, 61):
        loss = torch.tensor(max(1.0, 3.0 - 0.25 * step))  # falls until step 8
        if plateau.update(loss, ONE, step):
            halved.append(step)
    # 9 to 12 are still below 5 to 8, and two windows more are not; then one to compare with, and two that are no better
    assert halved == [20, 32]
    assert plateau.factor == 0.25


def windows_of_reductions(loss: Callable[[float, float], float], config: PlateauConfig) -> list[int]:
    """Return the windows (of 5,000 updates in the paper's run) at whose end the learning rate is halved.

    loss: a function from the window's number and the learning rate's remaining fraction to the window's loss."""
    plateau = ReduceOnPlateau(replace(config, window=1), CPU)
    return [
        window
        for window in range(1, 430_000 // config.window + 1)
        if plateau.update(torch.tensor(loss(window, plateau.factor)), ONE, window)
    ]


PAPER = TransformerStageConfig().optimizer.plateau


@pytest.mark.parametrize(("scale", "power", "floor"), [(12.0, 0.076, 0.0), (30.0, 0.3, 1.5), (200.0, 0.5, 2.0)])
def test_smoothly_falling_loss_does_not_use_up_the_halvings(scale, power, floor):
    halved = windows_of_reductions(lambda window, _: floor + scale * (5000 * window) ** -power, PAPER)
    assert all(window > 60 for window in halved)  # of 86: not while it falls by a 200th in four windows
    assert all(later - sooner > PAPER.patience for sooner, later in pairwise(halved))


@pytest.mark.parametrize(("noise", "windows"), [(0.3, 2.0), (0.1, 6.0)])
def test_each_halving_waits_until_the_loss_stops_falling(noise, windows):
    """The loss approaches a floor proportional to the learning rate, as with gradient noise."""
    before = [6.0]

    def loss(_: float, share: float) -> float:
        floor = 2.0 + noise * share
        before.append(floor + (before[-1] - floor) * math.exp(-1 / windows))
        return before[-1]

    halved = windows_of_reductions(loss, PAPER)
    assert len(halved) == 5
    assert all(later - sooner > PAPER.patience for sooner, later in pairwise(halved))
    assert halved[1] - halved[0] > 2 * PAPER.patience  # the first gains most


def test_constant_loss_halves_learning_rate_at_regular_windows():
    assert windows_of_reductions(lambda *_: 2.0, PAPER) == [5, 10, 15, 20, 25]


def test_noise_within_a_window_is_not_a_plateau():
    generator = torch.Generator().manual_seed(0)
    noise = (0.003 * torch.randn(200, generator=generator)).tolist()
    assert windows_of_reductions(lambda window, _: 5 - 0.03 * window + noise[int(window)], PAPER) == []


def test_plateau_handles_negative_losses_and_skipped_updates():
    plateau = ReduceOnPlateau(PlateauConfig(max_reductions=5, window=2, threshold=0.01, patience=0), CPU)
    for step, loss in enumerate((-1.0, -1.0, -1.2, -1.2), start=1):
        assert not plateau.update(torch.tensor(loss), ONE, step)
    assert not plateau.update(torch.tensor(torch.nan), ZERO, 5)
    assert not plateau.update(torch.tensor(-1.3), ONE, 6)
    assert not plateau.update(torch.tensor(torch.nan), ZERO, 7)
    assert not plateau.update(torch.tensor(torch.nan), ZERO, 8)  # nothing to judge by
    assert not plateau.update(torch.tensor(-1.3), ONE, 9)
    assert plateau.update(torch.tensor(-1.3), ONE, 10)


def test_plateau_state_dict_round_trip():
    config = PlateauConfig(max_reductions=3, window=2, threshold=0.0, patience=1)
    losses = [torch.tensor(float(loss)) for loss in (5, 4, 4, 6, 6, 6, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5)]
    whole, broken = ReduceOnPlateau(config, CPU), ReduceOnPlateau(config, CPU)
    for step, loss in enumerate(losses, start=1):
        whole.update(loss, ONE, step)
        broken.update(loss, ONE, step)
        again = ReduceOnPlateau(config, CPU)
        again.load_state_dict(broken.state_dict())
        broken = again
    assert broken.state_dict() == whole.state_dict()
    assert whole.reductions == 2
    assert whole.bad_windows == 1
