"""Planned and measured peak memory of a few updates on a CPU, in bytes of torch's allocator."""

import tempfile
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from random_tokens_stage import RandomTokensStage
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dalle import distributed
from dalle.models.transformer.config import TransformerConfig
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


def planned_and_measured(ranks: int = 1, **changes: Any) -> tuple[int, int]:
    """Return the planned peak of training with changed settings, and that of two updates by the training loop.

    ranks: planned ones, if there are several, with as many images each. The measured one is alone in its process group.
    """
    config = TransformerStageConfig(
        model=MODEL, steps=2, batch_size=8, precision="float32", ema=EMAConfig(0.9), save_every=0, log_every=0
    )
    config = replace(config, **changes)
    of_all = replace(config, batch_size=ranks * config.batch_size)
    planned = Planner(128, ranks, find_card("h100")).plan(of_all, "ddp").memory.peak
    if ranks > 1:
        init_process_group()
    stage = RandomTokensStage(config)
    model = sum(tensor.nbytes for tensor in (*stage.model.parameters(), *stage.model.buffers()))
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run,
    ):
        train(stage, config, Run(Path(folder), {"stage": {"steps": config.steps}}))
    distributed.destroy_process_group()
    return planned, model + peak_of(run)


def init_process_group() -> None:
    """Initialise a process group of this process alone."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())


def peak_of_ddp(model: nn.Module, batch: torch.Tensor) -> int:
    """Return the largest memory of DDP's buckets, gradients and activations in three backward passes of `model`."""
    init_process_group()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        wrapped = distributed.wrap_ddp(model)
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            wrapped(batch).sum().backward()
    del wrapped
    distributed.destroy_process_group()
    return peak_of(run)


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
