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

Piece = TypeVar("Piece", contravariant=True)
Made = TypeVar("Made", covariant=True)
Note = Callable[[int], None]


class LoadingError(ValueError):
    """Raised if a batch could not be prepared. The message contains the key of the record that failed."""

    @classmethod
    def of(cls, key: str, problem: Exception) -> "LoadingError":
        """Build the error for an unexpected exception while reading the record `key`."""
        place = traceback.extract_tb(problem.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        return cls(f"record {key} could not be prepared: {type(problem).__name__}: {problem} ({where})")


class Work(Protocol[Piece, Made]):
    """Interface of work that processes do piece by piece."""

    def make(self, piece: Piece, note: Note, /) -> Made:
        """Make one piece. Call `note` with a record's index before reading the record. Raises `LoadingError`."""
        ...

    def name(self, index: int) -> str:
        """Return the key of a record."""
        ...


def prepared(work: Work[Piece, Made], pieces: Iterable[Piece], workers: int) -> Iterator[Made]:
    """Yield `work.make` of all pieces, in order, made by this process (workers=0) or ahead by DataLoader workers.

    Raises `LoadingError` from `work.make`, or with the key of the record at which a worker died.
    """
    if workers == 0:
        for piece in pieces:
            yield work.make(piece, lambda index: None)
        return
    whereabouts = _Whereabouts(workers)
    loader: Any = DataLoader(
        _InWorkers(work, whereabouts),
        batch_size=None,  # a piece is already a batch
        sampler=pieces,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_stopping_to_the_trainer,
        generator=torch.Generator(),  # the default, the global generator, would make training depend on workers
    )
    with _deaths_told_when_batches_are_missed():
        arriving = iter(loader)
    while True:
        try:
            piece = next(arriving)
        except StopIteration:
            return
        except RuntimeError as problem:
            dead = whereabouts.of_the_dead()
            if not dead:
                raise
            names = " and ".join(work.name(index) for index in dead)
            raise LoadingError(
                f"a worker process died at record {names}: it ran out of memory, or what reads the picture crashed. "
                "Leave the record out, or have fewer workers"
            ) from problem
        if isinstance(piece, LoadingError):
            raise piece
        yield piece


class _InWorkers(Dataset[Any], Generic[Made]):
    def __init__(self, work: Work[Any, Made], whereabouts: "_Whereabouts"):
        self.work = work
        self.whereabouts = whereabouts

    def __getitem__(self, piece: Any) -> "Made | LoadingError":
        try:
            return self.work.make(piece, self.whereabouts.note)
        except LoadingError as failure:
            return failure  # returned, because DataLoader would wrap a raised exception in the text of a traceback


class _Whereabouts:
    """Shared memory with the current record of each worker, readable after the worker has died."""

    def __init__(self, workers: int):
        self._records = RawArray("q", workers)
        self._processes = RawArray("q", workers)

    def note(self, index: int) -> None:
        worker = get_worker_info()
        assert worker is not None
        self._records[worker.id], self._processes[worker.id] = index, os.getpid()

    def of_the_dead(self) -> list[int]:
        alive = {child.pid for child in multiprocessing.active_children()}
        places = zip(self._records, self._processes, strict=True)
        return [index for index, process in places if process and process not in alive]


@contextmanager
def _deaths_told_when_batches_are_missed() -> Iterator[None]:
    """Restore the SIGCHLD handler: torch's would raise at any point of the training loop, even while saving."""
    if threading.current_thread() is not threading.main_thread():
        yield  # torch sets no handler outside the main thread
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _leave_stopping_to_the_trainer(worker: int) -> None:
    """Ignore Ctrl-C and a scheduler's SIGTERM in workers, so that the trainer can finish its step and save."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def _unchanged(piece: Any) -> Any:
    return piece
