"""Scan a split: decode every image once and record its size and perceptual hash, or the reason it is unreadable."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dalle.data.audit.perceptual_hash import HASH_DTYPE, cache_hashes, perceptual_hash
from dalle.data.index import StringArray
from dalle.data.parallel_map import parallel_map
from dalle.data.source import Source, UnreadableRecord


@dataclass(frozen=True)
class Scan:
    """Result of scanning n records of a split: their perceptual hashes, image sizes and unreadable images."""

    split: str
    source: Source
    indices: Sequence[int]  # n: indices of the records
    hashes: np.ndarray = field(repr=False)  # (n) HASH_DTYPE
    sizes: np.ndarray = field(repr=False)  # (n, 2) int32: width and height, upright; 0 if unreadable
    unreadable: dict[str, str]  # key -> reason

    @cached_property
    def keys(self) -> StringArray:
        """Keys of all records of the split."""
        return self.source.keys()

    def key(self, position: int) -> str:
        """Return the key of the scanned record `position` in [0, n)."""
        return self.keys[self.indices[position]]


def scan(source: Source, split: str, limit: int | None = None, workers: int = 0) -> Scan:
    """Scan the images of a split, or only `limit` of them, evenly spaced.

    The hashes of a whole split are cached for later searches.
    """
    indices = evenly_spaced(len(source), limit)
    hashes, sizes = np.zeros(len(indices), HASH_DTYPE), np.zeros((len(indices), 2), np.int32)
    unreadable: dict[str, str] = {}
    results = parallel_map(source, indices, size_and_hash, workers, f"scanning {split}")
    for position, (_, result) in enumerate(results):
        if isinstance(result, UnreadableRecord):
            unreadable[result.key] = result.reason
        else:
            sizes[position], hashes[position] = result
    if len(indices) == len(source):
        cache_hashes(source, hashes)
    return Scan(split, source, indices, hashes, sizes, unreadable)


def size_and_hash(source: Source, index: int) -> tuple[tuple[int, int], np.ndarray]:
    """Return ((width, height), perceptual hash) of one record. Raises `UnreadableRecord`."""
    image = source[index].image
    width, height = source.size(index) or image.size  # decoding may have shrunk the image
    if (width > height) != (image.width > image.height):  # decoding has rotated it
        width, height = height, width
    return (width, height), perceptual_hash(image)


def evenly_spaced(count: int, limit: int | None) -> range | list[int]:
    """Return all of `count` indices, or `limit` evenly spaced ones. Raises ValueError for a limit below 1."""
    if limit is None:
        return range(count)
    if limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to scan; choose 1 or more")
    return range(count) if limit >= count else [position * count // limit for position in range(limit)]
