"""Parallel map over the records of a data source."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dalle.data.source import Source, UnreadableRecord

T = TypeVar("T")
Look = Callable[[Source, int], T]

CHUNK = 64  # records per task of a worker process


def in_order(
    source: Source, rows: Sequence[int], look: Look[T], workers: int = 0, title: str = "looking"
) -> Iterator[tuple[int, T | UnreadableRecord]]:
    """Yield (row, `look(source, row)`) for each of `rows`, in order; the error in place of an unreadable record.

    workers: number of DataLoader workers; 0: this process. title: label of the progress bar on a terminal.
    """
    chunks = _Chunks(source, rows, look)
    passing: Any = DataLoader(chunks, batch_size=None, shuffle=False, num_workers=workers, collate_fn=_unchanged)
    with tqdm(
        total=len(rows), desc=title, unit=" pictures", dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:
        for chunk in passing:
            yield from chunk
            bar.update(len(chunk))


class _Chunks(Dataset[list[Any]]):
    def __init__(self, source: Source, rows: Sequence[int], look: Look[Any]):
        self.source, self.rows, self.look = source, rows, look

    def __len__(self) -> int:
        return -(-len(self.rows) // CHUNK)

    def __getitem__(self, chunk: int) -> list[Any]:
        return [(index, self._looked_at(index)) for index in self.rows[chunk * CHUNK : (chunk + 1) * CHUNK]]

    def _looked_at(self, index: int) -> Any:
        try:
            return self.look(self.source, index)
        except UnreadableRecord as problem:
            return problem


def _unchanged(chunk: Any) -> Any:
    return chunk
