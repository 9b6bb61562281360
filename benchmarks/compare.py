"""Compare decoders, interleaved in rounds, so that other load on the machine affects all of them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.machine import Clock, decoding_work, matmul_rate, peak_memory, read_bandwidth, seconds
from dalle.models.transformer.config import TransformerConfig

# Limits for peers that are much slower: they would take hours.
MAX_UNCACHED_BATCH = 4  # maximum batch size of a decoder without a cache
MAX_WHOLE_IMAGE_BATCH = 16  # batch size; above it, peers decode `PARTIAL_TOKENS` tokens, and the time is scaled up
PARTIAL_TOKENS = 16
MAX_REPEATED_BATCH = 64  # batch size; above it there is one round, which is long enough


@dataclass(frozen=True)
class Decoder:
    """A decoder to be timed: a model, and a function that decodes some image tokens with it."""

    name: str
    precision: str  # float32 or bfloat16
    model: nn.Module
    decode: Callable[[int, int], object]  # (number of images, tokens of each)
    ours: bool = False
    dense: bool = True  # every token attends to all before it, which the roofline assumes
    cached: bool = True  # False: each token costs a forward pass over the whole sequence


@dataclass(frozen=True)
class DecoderResult:
    """Speed and memory of one decoder at one batch size."""

    name: str
    precision: str
    ours: bool
    batch: int
    images_per_second: float  # from the median of the rounds
    share_of_roofline: float | None  # share of the images per second at the roofline; None for sparse attention
    memory_bytes: int | None  # weights, plus the increase of resident memory; None unless all tokens are decoded
    tokens_timed: int  # of each image; if not all, the time is scaled up


Roofline = dict[str, float]
"""Images per second at the limits of the machine's memory bandwidth and matmul throughput, by precision."""


def compare(
    decoders: list[Decoder], config: TransformerConfig, batch: int, rounds: int
) -> tuple[list[DecoderResult], Roofline]:
    """Time all decoders at one batch size, and the machine's limits in the same rounds."""
    runners = [candidate for candidate in decoders if candidate.cached or batch <= MAX_UNCACHED_BATCH]
    times: list[list[float]] = [[] for _ in runners]
    memory = [0] * len(runners)
    limits: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for decoder in runners:
        # warm-up; a compiled decoder compiles for each batch size, which must not happen while it is timed
        decoder.decode(batch if decoder.cached else min(batch, MAX_REPEATED_BATCH), 2)
    for _ in range(rounds if batch <= MAX_REPEATED_BATCH else 1):
        for precision, limit in limits.items():
            limit.append(roofline_seconds(config, batch, precision))
        for index, decoder in enumerate(runners):
            elapsed, rise = peak_memory(lambda decoder=decoder: batch_seconds(decoder, batch, config.grid**2))
            times[index].append(elapsed)
            memory[index] = max(memory[index], rise)

    roofline = {precision: batch / statistics.median(limit) for precision, limit in limits.items()}
    results = []
    for decoder, elapsed, rise in zip(runners, times, memory, strict=True):
        speed = batch / statistics.median(elapsed)
        weights = sum(parameter.nbytes for parameter in decoder.model.parameters())
        timed = tokens_timed(decoder, batch, config.grid**2)
        results.append(
            DecoderResult(
                decoder.name,
                decoder.precision,
                decoder.ours,
                batch,
                images_per_second=speed,
                share_of_roofline=speed / roofline[decoder.precision] if decoder.dense else None,
                memory_bytes=weights + rise if timed == config.grid**2 else None,
                tokens_timed=timed,
            )
        )
    return results, roofline


def tokens_timed(decoder: Decoder, batch: int, image_tokens: int) -> int:
    """Return the number of tokens to decode per image when `decoder` is timed; at most `image_tokens`."""
    if decoder.ours or (decoder.cached and batch <= MAX_WHOLE_IMAGE_BATCH):
        return image_tokens
    return min(PARTIAL_TOKENS, image_tokens // 2)


def batch_seconds(decoder: Decoder, batch: int, image_tokens: int) -> float:
    """Time `decoder` and return the seconds for `batch` whole images, scaled up if only some tokens are timed."""
    tokens = tokens_timed(decoder, batch, image_tokens)
    elapsed = seconds(lambda: decoder.decode(batch, tokens))
    if tokens == image_tokens:
        return elapsed
    if not decoder.cached:  # it starts in the middle of the image, where a token has the mean cost
        return elapsed / tokens * image_tokens
    # Scaling from the first tokens, with short caches, favours the peer. The caption's time is not scaled.
    first = seconds(lambda: decoder.decode(batch, 1))
    return first + (elapsed - first) / (tokens - 1) * (image_tokens - 1)


def roofline_seconds(config: TransformerConfig, batch: int, precision: str) -> float:
    """Measure a lower bound in seconds for decoding `batch` images token by token."""
    work = decoding_work(config, batch, precision)
    return lower_bound(work, machine_rates(work[0] // config.grid**2, precision))


def machine_rates(bytes_per_pass: int, precision: str, clock: Clock = time.perf_counter) -> tuple[float, float]:
    """Measure the bytes per second of repeated reading, and the operations per second of large products."""
    return read_bandwidth(bytes_per_pass, clock=clock), matmul_rate(precision, clock=clock)


def lower_bound(work: tuple[int, int], rates: tuple[float, float]) -> float:
    """Return the seconds to read all bytes or to compute all operations, whichever takes longer."""
    return max(amount / rate for amount, rate in zip(work, rates, strict=True))
