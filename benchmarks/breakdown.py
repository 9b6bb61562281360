"""Time breakdown of a decoding step, with each part run separately."""

import statistics
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.attention import attention_seconds, empty_cache
from benchmarks.machine import seconds
from dalle.models.cpu_linear import PackedLinear, pack_linear_layers
from dalle.models.transformer.model import Transformer
from dalle.sampling.decode import DEFAULTS
from dalle.sampling.gumbel_noise import candidate_noise_keys, gumbel_noise
from dalle.sampling.logits_processors import process_logits

STEPS = 8  # consecutive steps that are timed, in the middle of the image


@dataclass(frozen=True)
class Breakdown:
    """Time of one decoding step and of its parts in milliseconds, each the median of the rounds."""

    total: float
    linears: float  # linear layers: reading weights
    attention: float  # attention: reading keys and values
    sampling: float  # sampling: Gumbel noise and argmax
    rest: float  # norms, sums, casts, and overhead of torch and Python


@torch.inference_mode()
def step_breakdown(model: Transformer, batch: int, precision: str, rounds: int) -> Breakdown:
    """Time the parts of decoding one token of `batch` images of one caption."""
    model = pack_linear_layers(model, batch, getattr(torch, precision))
    config, cache = model.config, empty_cache(model, batch)
    layers = [
        module
        for module in model.modules()
        if isinstance(module, (PackedLinear, nn.Linear)) and module is not model.text_head
    ]
    inputs = {width: torch.randn(batch, 1, width) for width in {layer.weight.shape[1] for layer in layers}}
    keys, previous = candidate_noise_keys(0, torch.arange(batch)), torch.zeros(batch, dtype=torch.int64)
    logits = torch.randn(batch, config.image_vocabulary)
    middle = config.grid**2 // 2

    def linears() -> None:
        for layer in layers:
            layer(inputs[layer.weight.shape[1]])

    def sample(logits: torch.Tensor) -> torch.Tensor:
        return (process_logits(logits, DEFAULTS) + gumbel_noise(keys, middle, logits.shape[-1])).argmax(dim=-1)

    def decode() -> None:
        for step in range(STEPS):
            sample(model.decode_one_token(previous, middle + step - STEPS // 2, cache))

    rows = []
    for _ in range(rounds + 1):
        parts = [
            seconds(decode) / STEPS,
            seconds(linears),
            attention_seconds(cache, config, batch),
            seconds(partial(sample, logits)),
        ]
        rows.append(parts)
    total, *parts = (1e3 * statistics.median(column) for column in zip(*rows[1:], strict=True))
    return Breakdown(total, *parts, rest=total - sum(parts))


def breakdown_table(rows: dict[tuple[int, str], Breakdown]) -> str:
    """Return breakdowns by (batch size, precision) as a Markdown table with one row each."""
    names = list(asdict(next(iter(rows.values()))))
    lines = [f"| one step, ms | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for (batch, precision), row in rows.items():
        values = " | ".join(f"{value:.2f}" for value in asdict(row).values())
        lines.append(f"| batch {batch}, {precision} | {values} |")
    return "\n".join(lines)
