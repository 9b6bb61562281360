"""Every picture of a split opened once: its size, its fingerprint, or why it cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dalle.data.audit.fingerprints import FINGERPRINT, fingerprint, keep_fingerprints
from dalle.data.index import Strings
from dalle.data.passes import in_order
from dalle.data.source import Source, UnreadableRecord


@dataclass(frozen=True)
class Look:
    """What was seen of n records."""

    split: str
    source: Source
    rows: Sequence[int]  # n: which records
    prints: np.ndarray = field(repr=False)  # (n) FINGERPRINT
    sizes: np.ndarray = field(repr=False)  # (n, 2) int32: width and height, upright; 0 where it cannot be read
    unreadable: dict[str, str]  # key -> reason

    @cached_property
    def keys(self) -> Strings:
        """Of all records of the split."""
        return self.source.keys()

    def key(self, place: int) -> str:
        """The key of the record at `place` in [0, n)."""
        return self.keys[self.rows[place]]


def look_at(source: Source, split: str, limit: int | None = None, workers: int = 0) -> Look:
    """Open the pictures of a split, or only `limit` of them, evenly spaced.

    The fingerprints of a whole split are kept for whoever looks for copies later.
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
    """Of one record; raises `UnreadableRecord`."""
    image = source[index].image
    width, height = source.size(index) or image.size  # the image may have been shrunk while it was decoded
    if (width > height) != (image.width > image.height):  # and turned upright
        width, height = height, width
    return (width, height), fingerprint(image)


def evenly_spaced(count: int, limit: int | None) -> range | list[int]:
    """All of `count` rows, or `limit` of them. Raises ValueError for a limit below 1."""
    if limit is None:
        return range(count)
    if limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to look at; choose 1 or more")
    return range(count) if limit >= count else [place * count // limit for place in range(limit)]
