"""DataLoader workers that prepare batches ahead and report the record at which one of them failed or died."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

ItemT = TypeVar("ItemT", contravariant=True)
BatchT = TypeVar("BatchT", covariant=True)
ReportIndex = Callable[[int], None]


class LoadingError(ValueError):
    """Raised if a batch could not be loaded. The message contains the key of the record that failed."""

    @classmethod
    def from_exception(cls, key: str, problem: Exception) -> "LoadingError":
        """Build the error for an unexpected exception while reading the record `key`."""
        frame = traceback.extract_tb(problem.__traceback__)[-1]
        location = f"{Path(frame.filename).name}, line {frame.lineno}"
        return cls(f"record {key} could not be loaded: {type(problem).__name__}: {problem} ({location})")


class BatchLoader(Protocol[ItemT, BatchT]):
    """Interface of an object that loads one batch per item, such as the number of a micro-batch."""

    def load(self, item: ItemT, report_index: ReportIndex, /) -> BatchT:
        """Load the batch of one item. Raises `LoadingError`.

        Calls `report_index` with the index of each record before reading it.
        """
        ...

    def key(self, index: int) -> str:
        """Return the key of the record at `index`."""
        ...


def prefetch(loader: BatchLoader[ItemT, BatchT], items: Iterable[ItemT], workers: int) -> Iterator[BatchT]:
    """Yield `loader.load` of all items, in order, loaded by this process (workers=0) or ahead by DataLoader workers.

    Raises `LoadingError` from `loader.load`, or with the key of the record at which a worker died.
    """
    if workers == 0:
        for item in items:
            yield loader.load(item, lambda index: None)
        return
    current_records = _CurrentRecords(workers)
    data_loader: Any = DataLoader(
        _WorkerDataset(loader, current_records),
        batch_size=None,  # an item is already a whole batch
        sampler=items,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_ignore_stop_signals,
        generator=torch.Generator(),  # the default, the global generator, would make training depend on workers
    )
    with _keep_sigchld_handler():
        batches = iter(data_loader)
    try:
        while True:
            try:
                item = next(batches)
            except StopIteration:
                return
            except RuntimeError as problem:
                dead_indices = current_records.indices_of_dead_workers()
                if not dead_indices:
                    raise
                names = " and ".join(loader.key(index) for index in dead_indices)
                raise LoadingError(
                    f"a worker process died at record {names}: it ran out of memory, or the image decoder crashed. "
                    "Leave the record out, or use fewer workers"
                ) from problem
            if isinstance(item, LoadingError):
                raise item
            yield item
    finally:
        # ends the workers now. The traceback of an error would keep them until it is collected as garbage, and then
        # their queues are closed first: torch waits ten seconds for workers that hear nothing
        del batches


class _WorkerDataset(Dataset[Any], Generic[BatchT]):
    def __init__(self, loader: BatchLoader[Any, BatchT], current: "_CurrentRecords"):
        self.loader = loader
        self.current = current

    def __getitem__(self, item: Any) -> "BatchT | LoadingError":
        try:
            return self.loader.load(item, self.current.report)
        except LoadingError as failure:
            return failure  # returned, because DataLoader would wrap a raised exception in the text of a traceback


class _CurrentRecords:
    """Shared memory with the index of the record that each worker reads, available after the worker has died."""

    def __init__(self, workers: int):
        self._records = RawArray("q", workers)
        self._processes = RawArray("q", workers)

    def report(self, index: int) -> None:
        """Store the index of the record that this worker process reads next."""
        worker = get_worker_info()
        assert worker is not None
        self._records[worker.id], self._processes[worker.id] = index, os.getpid()

    def indices_of_dead_workers(self) -> list[int]:
        """Return the index of the record that each dead worker process was reading."""
        alive = {child.pid for child in multiprocessing.active_children()}
        entries = zip(self._records, self._processes, strict=True)
        return [index for index, process in entries if process and process not in alive]


@contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Context that restores the SIGCHLD handler when it ends.

    The handler of torch would raise at any point of the training loop, even while saving.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # torch sets no handler outside the main thread
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _ignore_stop_signals(worker: int) -> None:
    """Ignore Ctrl-C and a scheduler's SIGTERM and SIGUSR1 in workers, so that the trainer can finish and save."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signal_number, signal.SIG_IGN)


def _identity(item: Any) -> Any:
    return item
