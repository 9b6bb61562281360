"""Records in, batches out: a stream that is a pure function of (seed, step), on any number of ranks.

Position p of the endless stream lies in epoch p // len(source), and each epoch visits every record once, in
an order of its own. Step s takes batch_size * world positions from s * batch_size * world on, split evenly
among the ranks. Nothing else decides what a batch holds: a run resumes by naming a step, and ranks and
worker processes change who prepares a batch, never what is in it.
"""

import itertools
import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import Transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Pictures with one caption each; equal positions belong together."""

    images: Tensor  # (b, 3, size, size) uint8
    captions: list[str]  # b
    keys: list[str]  # b, the records' names
    unreadable: dict[str, str] = field(default_factory=dict)  # key -> reason, of records passed over here


def batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    epochs: int | None = None,
) -> Iterator[Batch]:
    """Training batches from `start_step` on: endless, or `epochs` passes counted from step 0.

    `batch_size` counts the pictures of one rank; what the `world` ranks get in one step is together the batch
    that a single rank would get with batch_size * world. All batches are full: with `epochs`, the last one is
    filled up from the epoch after. An unreadable record is replaced by the next one of the stream, listed in
    the batch, and named once in the log. With `workers` > 0 that many processes prepare batches ahead.

    Raises ValueError for an empty source, numbers that cannot work, and when no record can be read.
    """
    _check(source, batch_size)
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not one of {world} ranks, 0 to {world - 1}")
    if seed < 0 or start_step < 0 or workers < 0:
        raise ValueError(f"seed {seed}, start_step {start_step} and workers {workers} must be 0 or more")
    steps: Iterable[int] = itertools.count(start_step)
    if epochs is not None:
        steps = range(start_step, -(-epochs * len(source) // (batch_size * world)))
    stream = _Stream(source, transform, batch_size, seed, rank, world)
    if workers == 0:
        return _reported(stream[step] for step in steps)
    loader = DataLoader(
        stream,
        batch_size=None,  # the stream makes whole batches
        sampler=steps,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_stopping_to_the_trainer,
        generator=torch.Generator(),  # or it would draw from the global one, and workers change the training
    )
    return _reported(loader)


def ordered(source: Source, transform: Transform, batch_size: int) -> Iterator[Batch]:
    """Every readable record once, first to last, each with its first caption; for validation and evaluation.

    Batches are full except the last. An unreadable record is left out, listed in the batch that it would have
    been in, and named in the log. What the transform draws depends on the record's index alone.

    Raises ValueError for an empty source and when no record can be read at all.
    """
    _check(source, batch_size)
    return _reported(_ordered(source, transform, batch_size))


def _check(source: Source, batch_size: int) -> None:
    if len(source) == 0:
        raise ValueError("the data source is empty: there is nothing to make batches of")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")


@dataclass(frozen=True)
class _Sample:
    pixels: np.ndarray  # (size, size, 3) uint8
    caption: str
    key: str


class _Stream(Dataset[Batch]):
    """The batches of one rank by step."""

    def __init__(self, source: Source, transform: Transform, batch_size: int, seed: int, rank: int, world: int):
        self.source = source
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.orders: dict[int, np.ndarray] = {}  # epoch -> indices in order; the two epochs used last

    def __getitem__(self, step: int) -> Batch:
        first = (step * self.world + self.rank) * self.batch_size
        samples, passed_over = zip(*map(self.sample, range(first, first + self.batch_size)), strict=True)
        return _batch(samples, dict(itertools.chain.from_iterable(each.items() for each in passed_over)))

    def sample(self, position: int) -> tuple[_Sample, dict[str, str]]:
        """The first readable record at or after `position`, and the unreadable ones before it."""
        unreadable: dict[str, str] = {}
        for candidate in range(position, position + len(self.source)):
            epoch, place = divmod(candidate, len(self.source))
            index = int(self.order(epoch)[place])
            generator = np.random.default_rng((self.seed, epoch, index))
            try:
                record = self.source[index]
            except UnreadableRecord as problem:
                unreadable[problem.key] = problem.reason
                continue
            caption = record.captions[generator.integers(len(record.captions))]
            pixels = self.transform(record.image, self.source.image_size, generator)
            return _Sample(pixels, caption, record.key), unreadable
        raise _nothing_readable(unreadable)

    def order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            # len(source) stands where a record's generator has its index, which is always smaller
            generator = np.random.default_rng((self.seed, epoch, len(self.source)))
            latest = list(self.orders.items())[-1:]
            self.orders = dict([*latest, (epoch, generator.permutation(len(self.source)))])
        return self.orders[epoch]


def _ordered(source: Source, transform: Transform, batch_size: int) -> Iterator[Batch]:
    samples: list[_Sample] = []
    unreadable: dict[str, str] = {}
    for index in range(len(source)):
        try:
            record = source[index]
        except UnreadableRecord as problem:
            unreadable[problem.key] = problem.reason
            continue
        if len(samples) == batch_size:
            yield _batch(samples, unreadable)
            samples, unreadable = [], {}
        pixels = transform(record.image, source.image_size, np.random.default_rng(index))
        samples.append(_Sample(pixels, record.captions[0], record.key))
    if not samples:
        raise _nothing_readable(unreadable)
    yield _batch(samples, unreadable)


def _nothing_readable(unreadable: dict[str, str]) -> ValueError:
    key, reason = next(iter(unreadable.items()))
    return ValueError(f"none of the {len(unreadable)} records can be read; for instance {key}: {reason}")


def _batch(samples: Sequence[_Sample], unreadable: dict[str, str]) -> Batch:
    pixels = rearrange(np.stack([sample.pixels for sample in samples]), "b h w c -> b c h w")
    return Batch(
        images=torch.from_numpy(np.ascontiguousarray(pixels)),
        captions=[sample.caption for sample in samples],
        keys=[sample.key for sample in samples],
        unreadable=unreadable,
    )


def _reported(stream: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches, their unreadable records named in the log, each once."""
    named: set[str] = set()
    for batch in stream:
        for key, reason in batch.unreadable.items():
            if key not in named:
                named.add(key)
                log.warning("skipped unreadable record %s: %s (%d so far)", key, reason, len(named))
        yield batch


def _leave_stopping_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too; if they died of it, training could not end in peace."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch
