"""Held-out image-caption pairs for evaluation: the first of a split, in batches, and a digest of their content."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from dalle.data.loader import ImageBatch, first_batches
from dalle.data.source import Source, UnreadableRecord
from dalle.data.transforms import inference_crop
from dalle.progress import progress_bar

log = logging.getLogger(__name__)

RESIZE = "shorter side to the models' size with Lanczos, then the centre (dalle.data.transforms.inference_crop)"


def model_image(source: Source, record: int) -> Image.Image:
    """Return the image of a record at the size of the models' images. Raises `UnreadableRecord` if it is unreadable."""
    return Image.fromarray(inference_crop(source[record].image, source.image_size))


def readable_images(source: Source, records: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yield (record, image at the models' size) of each of `records`, which ascend.

    The next record that can be read and was not yielded before replaces an unreadable one, if there is any.
    """
    next_record = 0  # first record that was neither yielded nor found unreadable
    for record in records:
        for candidate in range(max(record, next_record), len(source)):
            next_record = candidate + 1
            try:
                image = model_image(source, candidate)
            except UnreadableRecord as problem:
                log.warning("skipped unreadable record %s: %s", problem.key, problem.reason)
                continue
            yield candidate, image
            break


def captions_of(batch: ImageBatch) -> list[str]:
    """Return the captions of a batch. Raises ValueError for a record without one."""
    for key, caption in zip(batch.keys, batch.captions, strict=True):
        if not caption.strip():
            raise ValueError(
                f"the record {key} has no caption to score or to sample for; data.allow_missing_captions=false leaves "
                "such records out"
            )
    return batch.captions


class HeldOut:
    """Iterable over the first `count` readable pairs of a split, all if there are fewer; each with its first caption.

    `num_pairs` and `settings()` refer to the last iteration.
    """

    def __init__(self, source: Source, count: int, batch_size: int = 64):
        """Select the first `count` pairs, in batches of `batch_size`. Raises ValueError for a count below 1."""
        if count < 1:
            raise ValueError(f"cannot evaluate on {count} pairs; use at least 1")
        self.source, self.count, self.batch_size = source, count, batch_size
        self.num_pairs = 0
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[ImageBatch]:
        self.num_pairs, self._hash = 0, hashlib.sha256()
        with progress_bar(min(self.count, len(self.source)), "held-out pairs", "pairs", leave=False) as bar:
            for batch in first_batches(self.source, self.count, self.batch_size):
                self.num_pairs += len(batch.captions)
                for image, caption in zip(batch.images, batch.captions, strict=True):
                    self._hash.update(image.numpy().tobytes() + caption.encode() + b"\0")
                yield batch
                bar.update(len(batch.captions))

    def shortfall(self, requested: int) -> list[str]:
        """Return a note if the last iteration had fewer pairs than `requested`, else an empty list."""
        if self.num_pairs == requested:
            return []
        return [f"Only {self.num_pairs} held-out pairs can be read; {requested} were requested."]

    def settings(self) -> dict[str, Any]:
        """Describe the last iteration: number of pairs, digest of pixels and captions, and the resizing."""
        return {"pairs": self.num_pairs, "digest": self._hash.hexdigest()[:16], "resize": RESIZE}
