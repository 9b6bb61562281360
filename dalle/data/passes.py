"""One pass over the records of a source, in as many processes as one likes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dalle.data.source import Source, UnreadableRecord

T = TypeVar("T")
Look = Callable[[Source, int], T]

CHUNK = 64  # records that a process looks at before it answers


def in_order(
    source: Source, rows: Sequence[int], look: Look[T], workers: int = 0, title: str = "looking"
) -> Iterator[tuple[int, T | UnreadableRecord]]:
    """Each of `rows` with what `look` makes of that record, or with what is wrong with it, in order.

    workers: processes that look; 0: this one. title: of the bar that a terminal shows.
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
