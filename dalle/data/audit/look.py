"""Scan a split: open every image once and record its size and perceptual hash, or the reason it is unreadable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dalle.data.audit.fingerprints import FINGERPRINT, fingerprint, keep_fingerprints
from dalle.data.index import StringArray
from dalle.data.passes import in_order
from dalle.data.source import Source, UnreadableRecord


@dataclass(frozen=True)
class Look:
    """Result of scanning n records of a split."""

    split: str
    source: Source
    rows: Sequence[int]  # n: indices of the records
    prints: np.ndarray = field(repr=False)  # (n) FINGERPRINT
    sizes: np.ndarray = field(repr=False)  # (n, 2) int32: width and height, upright; 0 if unreadable
    unreadable: dict[str, str]  # key -> reason

    @cached_property
    def keys(self) -> StringArray:
        """Keys of all records of the split."""
        return self.source.keys()

    def key(self, place: int) -> str:
        """Return the key of the scanned record `place` in [0, n)."""
        return self.keys[self.rows[place]]


def look_at(source: Source, split: str, limit: int | None = None, workers: int = 0) -> Look:
    """Scan the images of a split, or only `limit` of them, evenly spaced.

    The hashes of a whole split are cached for later searches.
    """
    rows = evenly_spaced(len(source), limit)
    prints, sizes = np.zeros(len(rows), FINGERPRINT), np.zeros((len(rows), 2), np.int32)
    unreadable: dict[str, str] = {}
    found = in_order(source, rows, size_and_fingerprint, workers, f"looking at {split}")
    for place, (_, seen) in enumerate(found):
        if isinstance(seen, UnreadableRecord):
            unreadable[seen.key] = seen.reason
        else:
            sizes[place], prints[place] = seen
    if len(rows) == len(source):
        keep_fingerprints(source, prints)
    return Look(split, source, rows, prints, sizes, unreadable)


def size_and_fingerprint(source: Source, index: int) -> tuple[tuple[int, int], np.ndarray]:
    """Return ((width, height), perceptual hash) of one record. Raises `UnreadableRecord`."""
    image = source[index].image
    width, height = source.size(index) or image.size  # decoding may have shrunk the image
    if (width > height) != (image.width > image.height):  # decoding has rotated it
        width, height = height, width
    return (width, height), fingerprint(image)


def evenly_spaced(count: int, limit: int | None) -> range | list[int]:
    """Return all of `count` rows, or `limit` evenly spaced ones. Raises ValueError for a limit below 1."""
    if limit is None:
        return range(count)
    if limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to look at; choose 1 or more")
    return range(count) if limit >= count else [place * count // limit for place in range(limit)]
