"""Schedules in the config of a stage: their length in its run, and the warning about one of another length."""

from dataclasses import replace

import pytest

from dalle.stages.clip import CLIPStageConfig
from dalle.stages.dvae import DVAEStageConfig
from dalle.training.optimizer import OptimizerConfig
from dalle.training.schedules import Schedule
from dalle.training.stage import StageConfig


def with_rate(run: int, **length: int | None) -> StageConfig:
    return StageConfig(steps=run, optimizer=OptimizerConfig(Schedule("linear", 1.0, 0.0, **length)))


def test_schedules_of_a_stage_get_the_length_of_its_run():
    schedule = Schedule("cosine", 1.0, 0.5, delay=20)
    stage = DVAEStageConfig(
        steps=100, kl_weight=schedule, temperature=schedule, optimizer=OptimizerConfig(learning_rate=schedule)
    )
    expected = Schedule("cosine", 1.0, 0.5, steps=80, delay=20)
    assert (stage.kl_weight, stage.temperature, stage.optimizer.learning_rate) == (expected,) * 3
    assert stage.last_temperature == 0.5
    assert CLIPStageConfig(steps=100).optimizer.learning_rate.value(100) == 0.0


@pytest.mark.parametrize(
    ("length", "warns"),
    [
        ({}, False),
        ({"steps": 100}, False),
        ({"steps": 90}, False),
        ({"steps": 89}, True),
        ({"steps": 50, "delay": 40}, False),
        ({"steps": 50, "delay": 60}, True),
        ({"steps": 101}, True),
    ],
)
def test_a_learning_rate_of_another_length_than_the_run_is_a_warning(length, warns):
    assert (with_rate(100, **length).schedule_warning() is not None) == warns


def test_the_papers_lengths_and_constant_learning_rates_are_no_warning():
    paper = DVAEStageConfig()
    assert paper.optimizer.learning_rate.last_step == 1_200_000 < paper.steps
    assert paper.schedule_warning() is None
    assert replace(paper, steps=1000).schedule_warning() == (
        "the schedule of the learning rate ends after 1,200,000 updates, the run after 1,000; with "
        "optimizer.learning_rate.steps=null both end together"
    )
    assert StageConfig(steps=5, optimizer=OptimizerConfig(Schedule(start=0.1))).schedule_warning() is None
