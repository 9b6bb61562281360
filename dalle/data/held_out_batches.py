"""Validation on several ranks: each evaluates its share of the held-out images, and sums are taken over all ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle import distributed
from dalle.data.collate import ImageBatch, ImageSample, to_tensor
from dalle.data.loader import first_batches, held_out_sample, log_unreadable, none_readable
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop


@dataclass(frozen=True)
class HeldOutBatch(ImageBatch):
    """Batch of the held-out images that this rank evaluates.

    It has at least one image, so that all ranks call the model equally often, as a sharded model requires.
    """

    first: int = 0  # number of its first image among the held-out images of all ranks
    is_padding: bool = False  # True: this rank has no image at this point; that of the batch is black, and not counted


def held_out_batches(source: Source, count: int, batch_size: int) -> Iterator[HeldOutBatch]:
    """Yield this rank's share of the first `count` readable records of a held-out split, all if there are fewer.

    The ranks together have the images of `first_batches`, each of which one rank reads; one rank alone has its batches.
    All ranks must iterate to the end, over the same records: they get equally many batches, and before each of them
    exchange how many records they could read.

    Raises ValueError if no record can be read.
    """
    if distributed.get_world_size() > 1:
        yield from log_unreadable(_shares(source, count, batch_size))
        return
    first = 0
    for batch in first_batches(source, count, batch_size):
        yield HeldOutBatch(batch.images, batch.captions, batch.keys, first=first)
        first += len(batch.captions)


def gather_rows(rows: Sequence[Tensor], batches: Sequence[HeldOutBatch]) -> Tensor:
    """Gather one row for each held-out image of all ranks, in the order of the images. All ranks must call it.

    rows: those of this rank's `batches`, (b, ...) each -> (n, ...) for n held-out images.
    """
    if distributed.get_world_size() == 1:
        return torch.cat(list(rows))
    ends = [batch.first + len(batch.captions) for batch in batches if not batch.is_padding]
    gathered = rows[0].new_zeros(max(distributed.all_gather_object(max(ends, default=0))), *rows[0].shape[1:])
    for batch_rows, batch in zip(rows, batches, strict=True):
        if not batch.is_padding:
            gathered[batch.first : batch.first + len(batch_rows)] = batch_rows
    return distributed.all_reduce_sum([gathered])[0]  # all ranks but one add zeros to a row


def _shares(source: Source, count: int, batch_size: int) -> Iterator[HeldOutBatch]:
    """Yield batches in rounds: the ranks read equal parts of the next records, of which some may be unreadable."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    record, image = 0, 0  # numbers of the next record, and of the next image, over all ranks
    unreadable: dict[str, str] = {}
    while image < count and record < len(source):
        records = min(world_size * batch_size, count - image, len(source) - record)
        begin, end = (record + records * part // world_size for part in (rank, rank + 1))
        samples, own_unreadable = _read(source, range(begin, end))
        gathered = distributed.all_gather_object((len(samples), own_unreadable))
        images = [readable for readable, _ in gathered]
        for _, rank_unreadable in gathered:
            unreadable |= rank_unreadable
        yield _collate(samples, own_unreadable, source.image_size, first=image + sum(images[:rank]))
        record, image = record + records, image + sum(images)
    if not image:
        raise none_readable(unreadable)


def _read(source: Source, records: range) -> tuple[list[ImageSample], dict[str, str]]:
    """Return (samples of the readable ones of `records`, {key: reason} of the others)."""
    samples, unreadable = [], {}
    for index in records:
        try:
            samples.append(held_out_sample(source, inference_crop, index))
        except UnreadableRecord as problem:
            unreadable[problem.key] = problem.reason
    return samples, unreadable


def _collate(samples: list[ImageSample], unreadable: dict[str, str], image_size: int, first: int) -> HeldOutBatch:
    """Stack samples into a batch: one black image without a caption if there are none."""
    padding = [ImageSample(np.zeros((image_size, image_size, 3), np.uint8), "", "")]
    pixels, captions, keys = zip(*(samples or padding), strict=True)
    return HeldOutBatch(
        to_tensor(np.stack(pixels)), list(captions), list(keys), unreadable, first, is_padding=not samples
    )
