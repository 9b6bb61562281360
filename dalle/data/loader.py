"""Data loader: micro-batches that depend only on (seed, number), on any number of ranks.

Position p of the infinite stream is in epoch p // len(source). Each epoch visits every record once, in its own random
order. Micro-batch n takes batch_size * world_size positions, starting at n * batch_size * world_size, split evenly
among the ranks; an update has one or several micro-batches. A run therefore resumes from the number of a micro-batch.
Ranks and DataLoader workers only change which process prepares a batch, never its content.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from dalle.data.collate import Collator, ImageBatch, ImageCollator, ImageSample, TokenBatch, TokenCollator, to_tensor
from dalle.data.prefetch import LoadingError, ReportIndex, prefetch
from dalle.data.source import Source, UnreadableRecord
from dalle.data.token_cache import RecordBlock, TokenCache
from dalle.data.transforms import Transform, inference_crop
from dalle.seeds import numpy_generator

log = logging.getLogger(__name__)


def image_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[ImageBatch]:
    """Yield this rank's training micro-batches without end, from number `start` on.

    `batch_size` is the number of images per rank. The micro-batches of one number on `world_size` ranks together equal
    that of a single rank with batch_size * world_size. All batches are full: the last one of an epoch is filled from
    the next epoch. An unreadable record is replaced by another one of its epoch, far from it in the order, so that a
    batch does not have a record twice unless it is a large part of the epoch. It is listed in the batch, and logged
    once. With `workers` > 0, that many DataLoader workers prepare batches ahead.

    Raises ValueError for an empty source and for invalid arguments, and `LoadingError` if no record can be read, if
    reading a record raises an unexpected exception, or if a worker process dies.
    """
    stream = _BatchLoader(ImageCollator(source, transform), batch_size, seed, rank, world_size)
    if start < 0 or workers < 0:
        raise ValueError(f"start {start} and workers {workers} must be 0 or more")
    return log_unreadable(prefetch(stream, itertools.count(start), workers))


def token_batches(
    source: Source,
    cache: TokenCache,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[TokenBatch]:
    """Yield the batches of `image_batches` without end, with cached tokens instead of images. Opens no image.

    Epoch e uses the cached crops with number e modulo the number of crops (`crops` of the cache's settings). With seed
    0, these epochs use exactly the image crops of `image_batches` until crops are used again.
    """
    stream = _BatchLoader(TokenCollator(source, cache), batch_size, seed, rank, world_size)
    return log_unreadable(prefetch(stream, itertools.count(start), workers=0))


@dataclass(frozen=True)
class EncoderBatch:
    """Image crops of one block of records, to be encoded to tokens by the dVAE."""

    block: RecordBlock
    images: Tensor  # (b, 3, size, size) uint8; black for unreadable records
    readable: np.ndarray  # (b) bool
    unreadable: dict[str, str]  # key -> reason


def encoder_batches(
    source: Source, transform: Transform, blocks: Iterable[RecordBlock], workers: int = 0
) -> Iterator[EncoderBatch]:
    """Yield the image crops of each block as in a run with seed 0, in the epoch given by the block's crop.

    Raises `LoadingError` as `image_batches` does.
    """
    return log_unreadable(prefetch(_CropLoader(ImageCollator(source, transform)), blocks, workers))


def ordered_batches(source: Source, transform: Transform, batch_size: int) -> Iterator[ImageBatch]:
    """Yield every readable record once, in order, with its first caption, for validation and evaluation.

    All batches but the last are full. An unreadable record is left out, listed in the batch that would contain it,
    and logged. The random draws of the transform depend only on the record's index.

    Raises ValueError for an empty source and if no record can be read.
    """
    _check_arguments(source, batch_size)
    return log_unreadable(_ordered(source, transform, batch_size))


def first_batches(source: Source, count: int, batch_size: int) -> Iterator[ImageBatch]:
    """Yield the first `count` readable records of a held-out split as `ordered_batches` does, all if there are fewer.

    Images have the size of the models' (`inference_crop`).
    """
    remaining = count
    for batch in ordered_batches(source, inference_crop, min(batch_size, count)):
        yield ImageBatch(batch.images[:remaining], batch.captions[:remaining], batch.keys[:remaining])
        remaining -= len(batch.captions)
        if remaining <= 0:
            return


def _check_arguments(source: Source, batch_size: int) -> None:
    if len(source) == 0:
        raise ValueError("the data source is empty: there is nothing to load")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")


class _HasUnreadable(Protocol):
    @property
    def unreadable(self) -> dict[str, str]: ...


BatchT = TypeVar("BatchT", bound=_HasUnreadable)


class _BatchLoader(Generic[BatchT]):
    """`BatchLoader` of the training micro-batches of one rank, by number."""

    def __init__(self, collator: Collator[BatchT], batch_size: int, seed: int, rank: int, world_size: int):
        _check_arguments(collator.source, batch_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks, 0 to {world_size - 1}")
        if seed < 0:
            raise ValueError(f"seed {seed} must be 0 or more")
        self.collator = collator
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.records = len(collator.source)
        self.replacement_stride = replacement_stride(self.records)
        self.orders: dict[int, np.ndarray] = {}  # epoch -> permutation of the records; keeps the last two epochs

    def load(self, number: int, report_index: ReportIndex) -> BatchT:
        first = (number * self.world_size + self.rank) * self.batch_size
        samples, unreadable = [], {}
        for position in range(first, first + self.batch_size):
            sample, skipped = self.sample(position, report_index)
            samples.append(sample)
            unreadable |= skipped
        return self.collator.collate(samples, unreadable)

    def key(self, index: int) -> str:
        return self.collator.source.keys()[index]

    def sample(self, position: int, report_index: ReportIndex) -> tuple[Any, dict[str, str]]:
        """Return (sample of the record at `position` or of its replacement, {key: reason} of those skipped)."""
        unreadable: dict[str, str] = {}
        epoch, offset = divmod(position, self.records)
        for attempt in range(self.records):
            index = int(self.order(epoch)[(offset + attempt * self.replacement_stride) % self.records])
            report_index(index)
            try:
                return self.collator.sample(index, epoch, self.seed), unreadable
            except UnreadableRecord as problem:
                unreadable[problem.key] = problem.reason
            except Exception as problem:
                raise LoadingError.from_exception(self.key(index), problem) from problem
        raise none_readable(unreadable)

    def order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            generator = numpy_generator("order of records", self.seed, epoch)
            latest = list(self.orders.items())[-1:]
            self.orders = dict([*latest, (epoch, generator.permutation(self.records))])
        return self.orders[epoch]


def replacement_stride(records: int) -> int:
    """Return the number of positions from an unreadable record to its replacement in the order of an epoch.

    It is close to the golden section of `records`, so that several steps in a row lead far from the start and from each
    other, and has no common divisor with it, so that all records are tried.
    """
    stride = round(0.618 * records)
    return next(candidate for candidate in itertools.count(max(1, stride)) if gcd(candidate, records) == 1)


class _CropLoader:
    """`BatchLoader` of the image crops to be encoded, by block of consecutive records."""

    def __init__(self, collator: ImageCollator):
        self.collator = collator

    def load(self, block: RecordBlock, report_index: ReportIndex) -> EncoderBatch:
        size = self.collator.source.image_size
        pixels = np.zeros((block.last - block.first, size, size, 3), np.uint8)
        readable = np.ones(len(pixels), bool)
        unreadable = {}
        for row, index in enumerate(range(block.first, block.last)):
            report_index(index)
            try:
                pixels[row] = self.collator.sample(index, block.crop, seed=0).pixels
            except UnreadableRecord as problem:
                readable[row] = False
                unreadable[problem.key] = problem.reason
            except Exception as problem:
                raise LoadingError.from_exception(self.key(index), problem) from problem
        return EncoderBatch(block, to_tensor(pixels), readable, unreadable)

    def key(self, index: int) -> str:
        return self.collator.source.keys()[index]


def _ordered(source: Source, transform: Transform, batch_size: int) -> Iterator[ImageBatch]:
    collator = ImageCollator(source, transform)
    samples: list[ImageSample] = []
    unreadable: dict[str, str] = {}
    for index in range(len(source)):
        try:
            sample = held_out_sample(source, transform, index)
        except UnreadableRecord as problem:
            unreadable[problem.key] = problem.reason
            continue
        if len(samples) == batch_size:
            yield collator.collate(samples, unreadable)
            samples, unreadable = [], {}
        samples.append(sample)
    if not samples:
        raise none_readable(unreadable)
    yield collator.collate(samples, unreadable)


def held_out_sample(source: Source, transform: Transform, index: int) -> ImageSample:
    """Return record `index` with its first caption, and an image whose random draws depend on `index` alone.

    Raises `UnreadableRecord`.
    """
    record = source[index]
    pixels = transform(record.image, source.image_size, numpy_generator("held-out record", index))
    return ImageSample(pixels, record.captions[0], record.key)


def none_readable(unreadable: dict[str, str]) -> LoadingError:
    """Build the error for records of which none can be read: {key: reason}, not empty."""
    key, reason = next(iter(unreadable.items()))
    return LoadingError(f"none of {len(unreadable)} records can be read; the first is {key}: {reason}")


def log_unreadable(stream: Iterable[BatchT]) -> Iterator[BatchT]:
    """Yield the batches unchanged and log each unreadable record once."""
    logged: set[str] = set()
    for batch in stream:
        for key, reason in batch.unreadable.items():
            if key not in logged:
                logged.add(key)
                log.warning("skipped unreadable record %s: %s (%d so far)", key, reason, len(logged))
        yield batch
