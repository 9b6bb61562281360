"""Planned and measured peak memory of a few updates on a CPU, in bytes of torch's allocator.

As a script it measures two ranks with sharded weights: torchrun --nproc-per-node 2 measure_peak.py <folder>
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from random_tokens_stage import RandomTokensStage
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.profiler import ProfilerActivity, profile

from dalle import distributed
from dalle.data.blocks import BlocksConfig
from dalle.models.clip.model import CLIPConfig
from dalle.models.decoder.model import DecoderConfig
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.config import TransformerConfig
from dalle.planning.cards import find_card
from dalle.planning.plan import Planner
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.ema import EMAConfig
from dalle.training.loop import train
from dalle.training.optimizer import OptimizerConfig, build_optimizer
from dalle.training.run import Run
from dalle.training.sharding import init_mesh

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


BLOCKS = BlocksConfig(image_size=64, train=64, val=10)
DVAE = DVAEConfig(vocabulary=64, width=32, groups=3, blocks_per_group=1, decoder_input=32)
CLIP = CLIPConfig(patch=8, image_width=128, image_depth=2, image_heads=2, text_positions=16, text_width=128)
CLIP = replace(CLIP, text_vocabulary=340, text_depth=2, text_heads=2, embedding=64)
STAGE_MODELS: dict[str, Any] = {  # by stage and kind
    "dvae": DVAE,
    "dvae of many codes": replace(DVAE, vocabulary=4096),
    "clip": CLIP,
    "clip resnet": replace(CLIP, image_encoder="resnet", image_width=16, image_blocks=(1, 1, 1, 1), image_heads=8),
    "decoder": DecoderConfig(width=64, levels=2, blocks=1, patch=2),
    "decoder of one step": DecoderConfig(width=64, levels=2, blocks=1, patch=2, one_step=True),
}
TRANSFORMER = TransformerStageConfig(
    model=MODEL, steps=2, batch_size=8, precision="float32", ema=EMAConfig(0.9), save_every=0, log_every=0
)
SHARDED = {
    "small": TRANSFORMER,
    "wide": replace(TRANSFORMER, model=replace(MODEL, width=512), batch_size=4),
    "many codes": replace(TRANSFORMER, model=replace(MODEL, image_vocabulary=8192), batch_size=4),
    "bfloat16": replace(TRANSFORMER, precision="bfloat16"),
    "recompute": replace(TRANSFORMER, recompute=True),
    "accumulate": replace(TRANSFORMER, accumulate=2, batch_size=16),
}


def planned_and_measured(ranks: int = 1, **changes: Any) -> tuple[int, int]:
    """Return the planned peak of training with changed settings, and that of two updates by the training loop.

    ranks: planned ones, if there are several, with as many images each. The measured one is alone in its process group.
    """
    config = replace(TRANSFORMER, **changes)
    of_all = replace(config, batch_size=ranks * config.batch_size)
    planned = planned_peak(of_all, ranks)
    if ranks > 1:
        init_process_group()
    measured = measure(lambda: RandomTokensStage(config))
    distributed.destroy_process_group()
    return planned, measured


def planned_and_measured_stage(name: str, folder: Path, **changes: Any) -> tuple[int, int]:
    """Return the planned peak of a model of `STAGE_MODELS`, and that of two updates of its stage on `blocks`.

    With few images, copies of weights inside of a CPU's convolutions would weigh more, which plans leave out.
    """
    stages = STAGES[name.split()[0]]
    settings = {"steps": 2, "batch_size": 32, "precision": "float32", "ema": EMAConfig(0.9), "workers": 0}
    settings |= {"save_every": 0, "log_every": 0, "validation_images": 2, "transform": "none", **changes}
    config = replace(stages.config(), model=STAGE_MODELS[name], **settings)
    DiscreteVAE(DVAE).save(folder)
    planned_config = replace(config, model=config.model_for(BLOCKS.image_size, DVAE))
    dvae = DVAE if config.trained_on_tokens else None
    planned = planned_peak(planned_config, 1, image_size=BLOCKS.image_size, dvae=dvae)
    return planned, measure(lambda: stages.build(config, BLOCKS, StageContext(0, torch.device("cpu"), folder)))


def planned_peak(
    config: Any, ranks: int, mode: str = "ddp", image_size: int = 128, dvae: DVAEConfig | None = None
) -> int:
    """Return the planned peak on a CPU."""
    planner = Planner(image_size, ranks, find_card("h100"), dvae=dvae, device_type="cpu")
    # of text targets that count, a CPU would choose those that are there, and fake tensors have no values
    with patch("dalle.models.linear_cross_entropy.kernel_device", return_value="cuda"):
        return planner.plan(config, mode).memory.peak


def measure(build: Callable[[], Any], mesh: DeviceMesh | None = None, folder: Path | None = None) -> int:
    """Return the largest memory while the stage that `build` builds is trained, without that of saving its state.

    On a GPU a save copies to the host's memory; on a CPU its copies would count, at times that vary.

    mesh: ranks over which the weights are sharded. folder: of the run, the same on all ranks; None: a temporary one.
    """
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch("dalle.training.loop.Trainer.save"),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run,
    ):
        stage = build()
        train(stage, stage.config, Run(folder or Path(temporary), {"stage": {"steps": stage.config.steps}}, mesh=mesh))
    return peak_of(run)


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


def measure_ranks(folder: Path) -> None:
    """Measure all runs of `SHARDED` on this rank, and write the first rank's peaks to peaks.json."""
    distributed.init_process_group("cpu")
    mesh = init_mesh("fsdp", None, torch.device("cpu"))
    peaks = {
        name: measure(lambda config=config: RandomTokensStage(config, ranks=2), mesh, folder / name)
        for name, config in SHARDED.items()
    }
    if distributed.is_main_process():
        (folder / "peaks.json").write_text(json.dumps(peaks))
    distributed.destroy_process_group()


if __name__ == "__main__":
    measure_ranks(Path(sys.argv[1]))
