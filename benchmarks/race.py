"""Compare decoders, interleaved in rounds, so that other load on the machine affects all of them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.machine import decoding_work, matmul_rate, peak_memory, read_bandwidth, seconds
from dalle.models.transformer.model import TransformerConfig

# Limits for peers that are much slower: they would take hours.
UNCACHED_UP_TO = 4  # maximum batch size of a decoder without a cache
WHOLE_IMAGES_UP_TO = 16  # batch size; above it, peers decode `SOME_TOKENS` tokens, and the time is scaled up
SOME_TOKENS = 16
ROUNDS_UP_TO = 64  # batch size; above it there is one round, which is long enough


@dataclass(frozen=True)
class Decoder:
    """A decoder of image tokens."""

    name: str
    precision: str  # float32 or bfloat16
    model: nn.Module
    decode: Callable[[int, int], object]  # (number of images, tokens of each)
    ours: bool = False
    cached: bool = True  # False: each token costs a forward pass over the whole sequence


@dataclass(frozen=True)
class Measured:
    """Result of one decoder at one batch size."""

    name: str
    precision: str
    ours: bool
    batch: int
    images_per_second: float  # from the median of the rounds
    share_of_floor: float  # share of the images per second at the machine's limit
    memory_bytes: int  # weights, plus the increase of resident memory
    tokens_timed: int  # of each image; if not all, the time is scaled up


Floor = dict[str, float]
"""Images per second that the machine's limit allows, by precision."""


def race(decoders: list[Decoder], config: TransformerConfig, batch: int, rounds: int) -> tuple[list[Measured], Floor]:
    """Time all decoders at one batch size, and measure the machine's limit at the same time."""
    runners = [each for each in decoders if each.cached or batch <= UNCACHED_UP_TO]
    times: list[list[float]] = [[] for _ in runners]
    memory = [0] * len(runners)
    limits: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for decoder in runners:
        decoder.decode(min(batch, ROUNDS_UP_TO), 2)  # warm-up
    for _ in range(rounds if batch <= ROUNDS_UP_TO else 1):
        for precision, limit in limits.items():
            limit.append(floor_seconds(config, batch, precision))
        for index, decoder in enumerate(runners):
            taken, rise = peak_memory(lambda decoder=decoder: batch_seconds(decoder, batch, config.grid**2))
            times[index].append(taken)
            memory[index] = max(memory[index], rise)

    floor = {precision: batch / statistics.median(limit) for precision, limit in limits.items()}
    measured = []
    for decoder, taken, rise in zip(runners, times, memory, strict=True):
        speed = batch / statistics.median(taken)
        weights = sum(parameter.nbytes for parameter in decoder.model.parameters())
        measured.append(
            Measured(
                decoder.name,
                decoder.precision,
                decoder.ours,
                batch,
                images_per_second=speed,
                share_of_floor=speed / floor[decoder.precision],
                memory_bytes=weights + rise,
                tokens_timed=tokens_timed(decoder, batch, config.grid**2),
            )
        )
    return measured, floor


def tokens_timed(decoder: Decoder, batch: int, image_tokens: int) -> int:
    """Return the number of tokens to decode per image."""
    if decoder.ours or (decoder.cached and batch <= WHOLE_IMAGES_UP_TO):
        return image_tokens
    return min(SOME_TOKENS, image_tokens // 2)


def batch_seconds(decoder: Decoder, batch: int, image_tokens: int) -> float:
    """Return the seconds for `batch` whole images, scaled up if only some tokens are timed."""
    tokens = tokens_timed(decoder, batch, image_tokens)
    taken = seconds(lambda: decoder.decode(batch, tokens))
    if tokens == image_tokens:
        return taken
    if not decoder.cached:  # it starts in the middle of the image, where a token has the mean cost
        return taken / tokens * image_tokens
    # Scaling from the first tokens, with short caches, favours the peer. The caption's time is not scaled.
    first = seconds(lambda: decoder.decode(batch, 1))
    return first + (taken - first) / (tokens - 1) * (image_tokens - 1)


def floor_seconds(config: TransformerConfig, batch: int, precision: str) -> float:
    """Return a lower bound in seconds for any decoder of this model: all data are read, all operations computed."""
    size, operations = decoding_work(config, batch, precision)
    for_a_token = size // config.grid**2
    return max(size / read_bandwidth(for_a_token), operations / matmul_rate(precision))
