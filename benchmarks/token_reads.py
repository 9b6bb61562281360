"""Speed of reading tokens from a token cache, compared with copying as many bytes in memory."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interleave import Runner, Throughput, time_interleaved
from dalle.data.index import StringArray
from dalle.data.loader import token_batches
from dalle.data.token_cache import ENCODED, TokenCache, TokenCacheSettings


class SyntheticCaptions:
    """Data source with captions stored as in sources of files, but without images."""

    def __init__(self, records: int):
        self.names = StringArray.from_strings(f"{number:09d}.jpg" for number in range(records))

    def __len__(self) -> int:
        return len(self.names)

    def keys(self) -> StringArray:
        return self.names

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"a photograph of clouds, number {index}",)


def token_reads(root: Path, records: int, positions: int, rounds: int, size: int = 512) -> list[Throughput]:
    """Time a cache of synthetic tokens (`positions` per record) and return three speeds in batches of `size`.

    They are of whole batches, of reads alone, and of copies of as many bytes in memory.
    """
    source: Any = SyntheticCaptions(records)
    kind = TokenCacheSettings("synthetic", 64, "none", "synthetic", 1)
    cache = TokenCache.create(root / "tokens", kind, records, positions, 8_192, {})
    generator = np.random.default_rng(0)
    np.load(root / "tokens" / "tokens.npy", mmap_mode="r+")[:] = generator.integers(8_192, size=(records, positions))
    np.load(root / "tokens" / "states.npy", mmap_mode="r+")[:] = ENCODED
    steps = max(1, records // size)
    rows = [generator.permutation(records)[:size] for _ in range(steps)]
    crops = np.zeros(len(rows[0]), np.int64)
    whole = np.ones((len(rows[0]), positions), np.int64)  # as many bytes as in a batch

    def read() -> None:
        for picked in rows:
            cache.read(crops, picked)

    def take() -> None:
        for picked in rows:
            np.take(cache.tokens[0], picked, axis=0).astype(np.int64)

    def copy() -> None:
        for _ in rows:
            whole.copy()

    def train() -> None:
        for _ in islice(token_batches(source, cache, batch_size=len(whole), seed=0), steps):
            pass

    count = steps * len(whole)
    runners = [
        Runner("memcpy of as many bytes", "tokens", count, copy),
        Runner("numpy.take of a memory map", "tokens", count, take),
        Runner("token cache: reads", "tokens", count, read),
        Runner("token cache: batches, with captions", "tokens", count, train),
    ]
    return time_interleaved(runners, rounds, reference=runners[0].name)
