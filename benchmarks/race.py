"""Decoders timed in turn, round after round, so that a busy moment of the machine hits all of them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.machine import decoding_work, matmul_rate, peak_memory, read_bandwidth, seconds
from dalle.models.transformer.model import TransformerConfig

# What takes us minutes takes some peers hours.
UNCACHED_UP_TO = 4  # images at a time, of a decoder without a cache
WHOLE_IMAGES_UP_TO = 16  # at a time; of more, peers decode `SOME_TOKENS` tokens, and the time is scaled up
SOME_TOKENS = 16
ROUNDS_UP_TO = 64  # images at a time; more of them have one turn, long enough to be its own average


@dataclass(frozen=True)
class Decoder:
    """Something that draws images."""

    name: str
    precision: str  # float32 or bfloat16
    model: nn.Module
    decode: Callable[[int, int], object]  # (images, tokens): so many images, so many tokens of each
    ours: bool = False
    cached: bool = True  # False: each token costs the whole stream again


@dataclass(frozen=True)
class Measured:
    """One decoder at one batch size."""

    name: str
    precision: str
    ours: bool
    batch: int
    images_per_second: float  # by the median of the rounds
    share_of_floor: float  # of the images per second that the machine's limit allows
    memory_bytes: int  # its weights, and what resident memory rose by beside them
    tokens_timed: int  # of each image; where not all, the time is scaled up from theirs


Floor = dict[str, float]
"""Images per second that the machine's limit allows, by precision."""


def race(decoders: list[Decoder], config: TransformerConfig, batch: int, rounds: int) -> tuple[list[Measured], Floor]:
    """Everybody at one batch size, and the machine's limit as it was at the same time."""
    runners = [each for each in decoders if each.cached or batch <= UNCACHED_UP_TO]
    times: list[list[float]] = [[] for _ in runners]
    memory = [0] * len(runners)
    limits: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for decoder in runners:
        decoder.decode(min(batch, ROUNDS_UP_TO), 2)  # warms up
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
    """How many tokens of each image are decoded."""
    if decoder.ours or (decoder.cached and batch <= WHOLE_IMAGES_UP_TO):
        return image_tokens
    return min(SOME_TOKENS, image_tokens // 2)


def batch_seconds(decoder: Decoder, batch: int, image_tokens: int) -> float:
    """Seconds for `batch` whole images, or what they would be if all tokens were as those that are timed."""
    tokens = tokens_timed(decoder, batch, image_tokens)
    taken = seconds(lambda: decoder.decode(batch, tokens))
    if tokens == image_tokens:
        return taken
    if not decoder.cached:  # it starts in the middle of the image, where a token costs the mean of all
        return taken / tokens * image_tokens
    # The first tokens, whose caches are short, stand for all, which flatters the peer. The caption is not scaled.
    first = seconds(lambda: decoder.decode(batch, 1))
    return first + (taken - first) / (tokens - 1) * (image_tokens - 1)


def floor_seconds(config: TransformerConfig, batch: int, precision: str) -> float:
    """Seconds that no decoder of this model goes below here: all must be read, and all must be computed."""
    size, operations = decoding_work(config, batch, precision)
    for_a_token = size // config.grid**2
    return max(size / read_bandwidth(for_a_token), operations / matmul_rate(precision))
