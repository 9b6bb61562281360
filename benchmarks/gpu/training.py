"""gpu-training: time training updates of every stage at `small` and `base`, and of the transformer at `paper-1b`."""

import itertools
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import hardware
from benchmarks.gpu.part import Options, Part, Results, out_of_memory
from benchmarks.gpu.sampling import limits
from dalle.cli.config import compose
from dalle.models.dvae.model import DiscreteVAE
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext
from dalle.training.loop import Trainer
from dalle.training.run import Run

PIXELS = {"small": 128, "base": 256, "paper-1b": 256}
TOY = {  # settings on top of tiny, for a run without a GPU
    "dvae": ["model.width=16", "model.vocabulary=32", "batch_size=4"],
    "clip": ["model.image_width=32", "model.text_width=32", "model.image_depth=1", "model.text_depth=1"],
    "transformer": ["model.width=32", "model.depth=2", "batch_size=4"],
}
UPDATES = 8  # number of updates, timed individually
KERNELS = 10
COMPILED, FLEX = "stage.compile=true", "stage.model.attention=flex"
KERNEL_CHOICES = {"compiled": (COMPILED,), "flex": (FLEX,), "compiled, flex": (COMPILED, FLEX)}


def overrides_of(stage: str, preset: str, options: Options) -> list[str]:
    """Return the command-line overrides with which train.py trains a stage at a preset."""
    common = ["workers=0", "log_every=0", "validate_every=0", "preview_every=0", "save_every=0"]
    if options.quick:
        data = ["data=blocks", "data.image_size=32", "data.train=16", "data.val=2"]
        return [f"stage={stage}", "preset=tiny", *data, *(f"stage.{override}" for override in (*common, *TOY[stage]))]
    data = ["data=blocks", f"data.image_size={PIXELS[preset]}", "data.train=2048", "data.val=16"]
    return [f"stage={stage}", f"preset={preset}", *data, *(f"stage.{override}" for override in common)]


def train(
    stage_name: str, preset: str, options: Options, batch: int | None = None, changes: tuple[str, ...] = ()
) -> Results:
    """Time updates of one stage as in train.py, on images loaded beforehand.

    batch: images per update, in one micro-batch; None: batch size and micro-batches of the preset.
    changes: further overrides.
    """
    overrides = [*overrides_of(stage_name, preset, options), *changes]
    if batch is not None and not options.quick:
        overrides += [f"stage.batch_size={batch}", "stage.accumulate=1"]
    config = compose("train", overrides)
    dvae = _random_dvae(preset, options) if stage_name == "transformer" else None
    free = hardware.memory_bytes(options.device)
    context = StageContext(0, options.device, dvae)
    stage = STAGES[stage_name].build(config.stage, config.data, context)
    needed = state_bytes(stage.model)
    if needed > free:
        numbers = f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise out_of_memory(f"weights, gradients, moments and averages take {numbers}", free, options.device)
    trainer = Trainer(stage, config.stage, Run(options.folder / "run", {}, 0, options.device, config.wandb))
    some = [next(trainer.batches) for _ in range(config.stage.accumulate)]
    trainer.batches = itertools.cycle(some)
    try:
        with hardware.PeakMemory(options.device) as peak:
            for _ in range(2):
                trainer.update()
    except torch.OutOfMemoryError:
        state, batch = f"{needed / 1e9:.1f} GB of weights, gradients, moments and averages", config.stage.batch_size
        reason = (
            f"the activations of {batch // config.stage.accumulate} pictures beside {state} do not fit into the "
            f"{free / 1e9:.1f} GB that are free"
        )
        raise out_of_memory(reason, free, options.device) from None
    counter = FlopCounterMode(display=False)
    with counter:
        trainer.update()
    elapsed = statistics.median(hardware.seconds(trainer.update, options.device) for _ in range(UPDATES))
    pictures = config.stage.batch_size
    positions = stage.model.sequence.positions if stage_name == "transformer" else None
    precision = trainer.state.precision
    rates = limits(options)["matmul_per_second"]
    return {
        "overrides": overrides,
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in stage.model.parameters()),
        "batch": pictures,
        "micro_batches": config.stage.accumulate,
        "seconds_an_update": elapsed,
        "images_per_second": pictures / elapsed,
        "tokens_per_second": None if positions is None else pictures * positions / elapsed,
        "flops_per_second": counter.get_total_flops() / elapsed,
        "share_of_matmul_rate": counter.get_total_flops() / elapsed / rates[precision],
        "memory": {"state_bytes": needed, "peak_bytes": peak.bytes},
        "kernels": longest_kernels(trainer),
    }


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of the training state of a model in float32: weights, gradients, two moments and the EMA."""
    return 4 * 5 * sum(parameter.numel() for parameter in model.parameters())


def longest_kernels(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the kernels (operators on a CPU) with the largest shares of an update's time, with these shares."""
    cuda = trainer.run.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        trainer.update()
        hardware.synchronize(trainer.run.device)
    events = profiler.key_averages()
    if cuda:
        on_gpu = [event for event in events if event.device_type.name == "CUDA"]
        kernels = [event for event in on_gpu if not getattr(event, "is_user_annotation", False)]
        times = {kernel.key: kernel.self_device_time_total for kernel in kernels}
    else:
        times = {event.key: event.self_cpu_time_total for event in events}
    total = sum(times.values())
    longest = sorted(times, key=lambda name: -times[name])[:KERNELS]
    return [{"name": name, "milliseconds": times[name] / 1e3, "share": times[name] / total} for name in longest]


def _random_dvae(preset: str, options: Options) -> Path:
    """Write a dVAE of the preset with random weights and return its folder: the time does not depend on the tokens."""
    folder = options.folder / f"dvae-{'toy' if options.quick else preset}"
    if not (folder / "config.json").exists():  # config.json is written last
        config = compose("train", overrides_of("dvae", preset, options))
        DiscreteVAE(config.stage.model).save(folder)
    return folder


def measurements(quick: bool) -> dict[str, Any]:
    stages: Iterator[tuple[str, str]] = itertools.product(["transformer", "dvae", "clip"], ["small", "base"])
    found: dict[str, Any] = {f"{stage}, {preset}": partial(train, stage, preset) for stage, preset in stages}
    found["transformer, paper-1b"] = partial(train, "transformer", "paper-1b", batch=16)
    # their kernels do not count as FLOPs: compare images/s
    for preset, (name, changes) in itertools.product(("base", "paper-1b"), KERNEL_CHOICES.items()):
        batch = 16 if preset == "paper-1b" else None
        found[f"transformer, {preset}, {name}"] = partial(train, "transformer", preset, batch=batch, changes=changes)
    return {name: found[name] for name in list(found)[::2][:3]} if quick else found


def page(found: dict[str, Results]) -> list[str]:
    lines = [
        "| stage, preset | parameters | batch | images/s | tokens/s | TFLOP/s (% of matmul rate) | GB (state alone) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        memory = result["memory"]
        peak = "-" if memory["peak_bytes"] is None else f"{memory['peak_bytes'] / 1e9:.1f}"
        tokens = "-" if result["tokens_per_second"] is None else f"{result['tokens_per_second']:,.0f}"
        lines.append(
            f"| {name} ({result['precision']}) | {result['parameters'] / 1e6:.3g}M | {result['batch']} in "
            f"{result['micro_batches']} | {result['images_per_second']:.4g} | {tokens} "
            f"| {result['flops_per_second'] / 1e12:.3g} ({result['share_of_matmul_rate']:.0%}) "
            f"| {peak} ({memory['state_bytes'] / 1e9:.1f}) |"
        )
    for name, result in found.items():
        lines += ["", f"Longest kernels of an update, {name}:", "", "| kernel | ms | share |", "|---|---|---|"]
        for kernel in result["kernels"]:
            shown = kernel["name"].replace("|", "\\|")[:90]
            lines.append(f"| `{shown}` | {kernel['milliseconds']:.3g} | {kernel['share']:.1%} |")
    return lines


PART = Part("training", measurements, page)
