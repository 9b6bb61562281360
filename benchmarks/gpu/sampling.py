"""gpu-sampling: sampling speed of demo, `base` and the paper's 12B sizes, compared with eager steps and GPT-2."""

import statistics
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.gpu import hardware
from benchmarks.gpu.part import Options, Part, Results, out_of_memory
from benchmarks.peers import gpt2
from dalle.cli.config import compose
from dalle.models.mixed_precision import to_mixed_precision
from dalle.models.transformer.kv_cache import PrefixCache
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.models.transformer.patterns import image_attend_mask
from dalle.sampling.cuda_graphs import EagerStep
from dalle.sampling.decode import MASKED, sample_all_tokens
from dalle.sampling.memory import DecodingMemory, memory_within_budget
from dalle.sampling.sampling_config import DecodingConfig

# batch sizes: one for interactive use, and the paper's number of candidates
BATCHES = {"demo": (1, 64, 512), "base": (1, 64, 512), "paper-12b": (512,)}
QUICK_BATCHES = {"demo": (2,), "base": (2,), "paper-12b": (2,)}
ROUNDS = 3
LONG = 15  # seconds; longer runs are not repeated
PEER_TOKENS = 32  # tokens that GPT-2 decodes if whole images would take minutes; the time is scaled up
RESERVE = 0.92  # share of free memory to plan with; the rest is CUDA's context and fragmentation


def config_of(name: str, quick: bool) -> TransformerConfig:
    """Return the transformer config of a preset, with the sizes that follow from the data and the dVAE."""
    if quick:
        return TransformerConfig(
            text_positions=8, text_vocabulary=64, image_vocabulary=32, grid=4, width=64, depth=4, heads=2, kernel=3
        )
    if name == "paper-12b":
        return TransformerConfig()
    preset, vocabulary, grid = {"demo": ("tiny", 64, 8), "base": ("base", 8192, 32)}[name]
    chosen = compose("train", ["stage=transformer", f"preset={preset}"]).stage.model
    return replace(chosen, image_vocabulary=vocabulary, grid=grid)


def random_transformer(config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> Transformer:
    """Build a transformer on the device with matrices in `dtype`, without a float32 copy."""
    with torch.device("meta"):
        model = to_mixed_precision(Transformer(config), dtype)
    model = model.eval().to_empty(device=device)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        else:
            for weight in module.parameters(recurse=False):
                nn.init.normal_(weight, std=0.02)
    tables = dict(Transformer(narrow(config)).named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(tables[name])
    return model


def narrow(config: TransformerConfig) -> TransformerConfig:
    """Return a narrow config with the same attention masks, which do not depend on the width."""
    return replace(config, width=64, heads=1)


def limits(options: Options) -> Results:
    """Measure the memory bandwidth of the GPU, and its matmul throughput by dtype."""
    side, size = (256, 2**24) if options.quick else (8192, 2**32)
    rates = {
        str(dtype).removeprefix("torch."): hardware.matmul_rate(options.device, dtype, side)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    return {"read_bytes_per_second": hardware.read_bandwidth(options.device, size), "matmul_per_second": rates}


def draw(name: str, batch: int, options: Options) -> Results:
    """Time the sampling of `batch` images, or as many as fit, with the preset `name`; returns results for JSON.

    CUDA graphs and eager steps are interleaved; GPT-2 follows. Adds shares of the limits of the GPU.
    """
    config = config_of(name, options.quick)
    dtype = torch.bfloat16
    free = hardware.memory_bytes(options.device)
    with torch.device("meta"):
        plan = to_mixed_precision(Transformer(config), dtype)
    memory = memory_within_budget(plan, round(RESERVE * free), batch, dtype=dtype, device=options.device)
    fits = memory.candidates_that_fit(round(RESERVE * free))
    if not fits:
        reason = f"one candidate of {name} needs {memory.total(1) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise out_of_memory(reason, free, options.device)
    images = min(batch, fits)

    methods, peak = _compare_methods(config, images, dtype, memory, options)
    found = limits(options)
    needed, operations = step_work(config, images, dtype)
    reading = needed / found["read_bytes_per_second"]
    computing = operations / found["matmul_per_second"]["bfloat16"]
    peers = {} if options.quick and name != "base" else _gpt2(config, min(images, 64), options)
    return {
        "images": images,
        "requested": batch,
        "recompute_kv": memory.recompute_kv,
        "precision": "bfloat16",
        "parameters": sum(parameter.numel() for parameter in plan.parameters()),
        "methods": {
            method: {
                "images_per_second": images / elapsed,
                "seconds_before_the_first_step": start,
                "milliseconds_a_step": 1e3 * (elapsed - start) / config.grid**2,
                "share_of_bandwidth": config.grid**2 * reading / (elapsed - start),
                "share_of_matmul_rate": config.grid**2 * computing / (elapsed - start),
            }
            for method, (elapsed, start) in methods.items()
        },
        "peers": peers,
        "limits": found,
        "memory": {"estimate_bytes": memory.total(images), "peak_bytes": peak, "fit": fits},
    }


def _compare_methods(
    config: TransformerConfig, images: int, dtype: torch.dtype, memory: DecodingMemory, options: Options
) -> tuple[dict[str, tuple[float, float]], int | None]:
    """Return ({decoding method: (seconds for `images` images, seconds before the first token)}, peak bytes or None)."""
    model = random_transformer(config, dtype, options.device)
    caption = model.sequence.pad_captions([[1] * (config.text_positions // 2)])

    def draw(steps: int = config.grid**2) -> None:
        canvas = torch.zeros(config.grid**2, dtype=torch.int64)
        canvas[:steps] = MASKED  # decoding stops after the last masked token
        canvas = canvas.view(config.grid, config.grid)
        sample_all_tokens(
            model, caption, images, DecodingConfig(batch_size=images), canvas=canvas, recompute_kv=memory.recompute_kv
        )

    draw(steps=2)
    ours = "CUDA graphs" if options.device.type == "cuda" else "this project"
    times: dict[str, list[float]] = {ours: [], "eager": []}
    with hardware.PeakMemory(options.device) as peak:
        times[ours].append(hardware.seconds(draw, options.device))
    for _ in range(ROUNDS):
        with eager_steps():
            times["eager"].append(hardware.seconds(draw, options.device))
        if max(times[ours][0], times["eager"][0]) > LONG:  # long enough that one run is sufficient
            break
        times[ours].append(hardware.seconds(draw, options.device))
    # prefill and graph capture
    starts = {ours: hardware.median_seconds(partial(draw, steps=0), options.device, rounds=3)}
    with eager_steps():
        starts["eager"] = hardware.median_seconds(partial(draw, steps=0), options.device, rounds=3)
    return {method: (statistics.median(elapsed), starts[method]) for method, elapsed in times.items()}, peak.bytes


def eager_steps() -> Any:
    """Return a context in which steps run eagerly, kernel by kernel, with the cache layout used on CPUs."""

    def step(model: Transformer, text: PrefixCache, candidates: int, recompute_kv: bool = False) -> EagerStep:
        return EagerStep(model, model.new_cache(text, candidates, recompute_kv))

    return mock.patch("dalle.sampling.decode.decoding_step", step)


def step_work(config: TransformerConfig, images: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return bytes read and operations of an average step: all weights once, plus the keys and values attended to."""
    model = Transformer(narrow(config))
    seen = sum(
        image_attend_mask(model.patterns[name], config.grid).sum(dim=1).double().mean().item()
        for name in model.pattern_names
    )
    text = config.depth * config.text_positions
    weights = 12 * config.depth * config.width**2 + config.width * config.image_vocabulary
    numbers = weights + 2 * config.width * (images * seen + text)  # keys and values; images share the caption's
    operations = 2 * images * (weights + 2 * config.width * (seen + text))
    return round(numbers * dtype.itemsize), round(operations)


def _gpt2(config: TransformerConfig, images: int, options: Options) -> Results:
    """Time `generate` of Hugging Face's GPT-2 of the same size, for some tokens."""
    tokens = min(PEER_TOKENS, config.grid**2)
    images = min(images, 8) if config.width > 2048 else images
    try:
        peer = gpt2(config, "bfloat16", options.device)
        peer.decode(images, 2)
        first = hardware.seconds(lambda: peer.decode(images, 1), options.device)
        elapsed = hardware.seconds(lambda: peer.decode(images, tokens), options.device)
    except ImportError:
        return {"unavailable": "transformers is not installed"}
    except torch.OutOfMemoryError:
        return {"unavailable": f"{images} images do not fit"}
    step = (elapsed - first) / max(1, tokens - 1)
    image_seconds = first + step * (config.grid**2 - 1)  # favours GPT-2: its cache is short during the first tokens
    return {
        "Hugging Face GPT-2, generate": {
            "images": images,
            "images_per_second": images / image_seconds,
            "milliseconds_a_step": 1e3 * step,
            "tokens_timed": tokens,
        }
    }


def measurements(quick: bool) -> dict[str, Any]:
    batches = QUICK_BATCHES if quick else BATCHES
    drawn = {f"{name}, {n} images": partial(draw, name, n) for name, sizes in batches.items() for n in sizes}
    return {"limits": limits, **drawn}


def page(found: dict[str, Results]) -> list[str]:
    lines = []
    if "limits" in found:
        rates = found["limits"]["matmul_per_second"].items()
        lines += [
            f"Reads: {found['limits']['read_bytes_per_second'] / 1e9:.3g} GB/s. Matrix products: "
            + ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in rates)
            + ".",
            "",
        ]
    lines += [
        "| images | method | images/s | start, ms | ms/step | of bandwidth | of matmul rate | peak / estimate, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        if name == "limits":
            continue
        memory = result["memory"]
        peak = "-" if memory["peak_bytes"] is None else f"{memory['peak_bytes'] / 1e9:.2f}"
        fewer = "" if result["images"] == result["requested"] else f" (of {result['requested']}; {memory['fit']} fit)"
        for method, row in result["methods"].items():
            used = f"{peak} / {memory['estimate_bytes'] / 1e9:.2f}" if method != "eager" else ""
            lines.append(
                f"| {name.partition(',')[0]}: {result['images']}{fewer} | {method} | {row['images_per_second']:.3g} "
                f"| {1e3 * row['seconds_before_the_first_step']:.3g} | {row['milliseconds_a_step']:.3g} "
                f"| {100 * row['share_of_bandwidth']:.3g}% "
                f"| {100 * row['share_of_matmul_rate']:.3g}% | {used} |"
            )
        for peer, row in result["peers"].items():
            if peer == "unavailable":
                lines.append(f"| {name.partition(',')[0]} | Hugging Face GPT-2: {row} | | | | | | |")
            else:
                lines.append(
                    f"| {name.partition(',')[0]}: {row['images']} | {peer} (from {row['tokens_timed']} tokens) "
                    f"| {row['images_per_second']:.3g} | | {row['milliseconds_a_step']:.3g} | | | |"
                )
    return lines


PART = Part("sampling", measurements, page, min_seconds={"base, 512 images": 90, "paper-12b, 512 images": 300})
