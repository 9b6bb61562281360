"""Parallel map over the records of a data source."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from dalle.data.source import Source, UnreadableRecord
from dalle.progress import progress_bar

T = TypeVar("T")
RecordFunction = Callable[[Source, int], T]

CHUNK_SIZE = 64  # records per task of a worker process


def parallel_map(
    source: Source, indices: Sequence[int], function: RecordFunction[T], workers: int, title: str
) -> Iterator[tuple[int, T | UnreadableRecord]]:
    """Yield (index, `function(source, index)`) for each index, in order; the error in place of an unreadable record.

    workers: number of DataLoader workers; 0: this process. title: label of the progress bar.
    """
    chunks = _Chunks(source, indices, function)
    loader: Any = DataLoader(chunks, batch_size=None, shuffle=False, num_workers=workers, collate_fn=_identity)
    with progress_bar(len(indices), title) as bar:
        for chunk in loader:
            yield from chunk
            bar.update(len(chunk))


class _Chunks(Dataset[list[Any]]):
    def __init__(self, source: Source, indices: Sequence[int], function: RecordFunction[Any]):
        self.source, self.indices, self.function = source, indices, function

    def __len__(self) -> int:
        return -(-len(self.indices) // CHUNK_SIZE)

    def __getitem__(self, chunk: int) -> list[Any]:
        indices = self.indices[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]
        return [(index, self._call(index)) for index in indices]

    def _call(self, index: int) -> Any:
        try:
            return self.function(self.source, index)
        except UnreadableRecord as problem:
            return problem


def _identity(chunk: Any) -> Any:
    return chunk
