"""Planned and measured peak memory of a few updates on a CPU, in bytes of torch's allocator."""

import tempfile
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from random_tokens_stage import RandomTokensStage
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dalle.models.transformer.model import TransformerConfig
from dalle.planning.cards import find_card
from dalle.planning.plan import Planner
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.ema import EMAConfig
from dalle.training.loop import train
from dalle.training.optimizer import OptimizerConfig, build_optimizer
from dalle.training.run import Run

MODEL = TransformerConfig(  # with the attention that is planned, that of GPUs
    text_positions=32,
    text_vocabulary=500,
    image_vocabulary=512,
    grid=16,
    width=128,
    depth=4,
    heads=2,
    attention="dense",
)


def planned_and_measured(**changes: Any) -> tuple[int, int]:
    """Return the planned peak of training with changed settings, and that of two updates by the training loop."""
    config = TransformerStageConfig(
        model=MODEL, steps=2, batch_size=8, precision="float32", ema=EMAConfig(0.9), save_every=0, log_every=0
    )
    config = replace(config, **changes)
    planned = Planner(128, 1, find_card("h100")).plan(config, "ddp").memory.peak
    stage = RandomTokensStage(config)
    model = sum(each.nbytes for each in (*stage.model.parameters(), *stage.model.buffers()))
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run,
    ):
        train(stage, config, Run(Path(folder), {"stage": {"steps": config.steps}}))
    return planned, model + peak_of(run)


def peak_of_update(model: nn.Module, optimizer: OptimizerConfig) -> int:
    """Return the largest memory of temporary tensors in the second update of `model`."""
    built = build_optimizer(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    built.step_if_finite(torch.ones(()), 1e-3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        built.step_if_finite(torch.ones(()), 1e-3)
    return peak_of(run)


def peak_of(run: profile) -> int:
    """Return the largest sum of allocations minus releases during a profile."""
    assert run.profiler is not None and run.profiler.kineto_results is not None
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))
