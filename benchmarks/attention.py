"""Attention time per decoded token with the small KV caches of the sparse patterns, without the rest of the model."""

import statistics
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from benchmarks.machine import seconds
from dalle.models.transformer.kv_cache import Cache
from dalle.models.transformer.model import Transformer, TransformerConfig
from dalle.models.transformer.patterns import PATTERNS

ORDERS = (*PATTERNS, "paper")  # each pattern in all layers, and the paper's order of them
EVERY = 37  # every 37th position is timed, which covers all image columns


@dataclass(frozen=True)
class AttentionTime:
    """Attention time and cache size of one attention pattern, summed over all layers."""

    pattern: str
    milliseconds: float  # per token, for the whole batch
    times_dense: float  # speed-up over the dense pattern
    cache_bytes: int  # per candidate


def attention_times(config: TransformerConfig, batch: int, rounds: int) -> list[AttentionTime]:
    """Time each pattern for `batch` images, interleaved over the rounds. Returns one row per pattern."""
    caches: dict[str, Cache] = {}
    for pattern in ORDERS:
        model = Transformer(replace(config, patterns=[pattern])).eval()
        caches[pattern] = empty_cache(model, batch)
    times: dict[str, list[float]] = {pattern: [] for pattern in ORDERS}
    for round_number in range(rounds + 1):
        for pattern, cache in caches.items():
            elapsed = attention_seconds(cache, config, batch)
            if round_number > 0:  # the first round is a warm-up
                times[pattern].append(elapsed)

    medians = {pattern: statistics.median(elapsed) for pattern, elapsed in times.items()}
    return [
        AttentionTime(
            pattern,
            milliseconds=1e3 * medians[pattern],
            times_dense=medians["dense"] / medians[pattern],
            cache_bytes=sum(layer.nbytes for layer in cache) // batch,
        )
        for pattern, cache in caches.items()
    ]


@torch.inference_mode()
def empty_cache(model: Transformer, batch: int) -> Cache:
    """Return a KV cache with one caption for `batch` images, without image tokens yet."""
    return model.new_cache(model.prefill(model.sequence.pad_captions([[1]])), batch)


@torch.inference_mode()
def attention_seconds(cache: Cache, config: TransformerConfig, batch: int) -> float:
    """Return mean seconds per token of `batch` images over positions, with queries, keys and values given."""
    q, k, v = torch.randn(3, batch, config.heads, 1, config.width // config.heads)
    attention = SimpleNamespace(project=lambda x: (q, k, v))
    x = torch.randn(batch, 1, config.width)
    positions = range(0, config.grid**2, EVERY)

    def decode() -> None:
        for position in positions:
            for layer in cache:
                layer.attend(position, x, attention)  # type: ignore[arg-type]

    return seconds(decode) / len(positions)
