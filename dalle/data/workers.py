"""Worker processes that prepare batches ahead, and which record was at fault when one of them fails or dies."""

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
    """A batch could not be prepared; the message names the record at fault."""

    @classmethod
    def of(cls, key: str, problem: Exception) -> "LoadingError":
        """What is said when reading the record `key` raised something that nobody expected."""
        place = traceback.extract_tb(problem.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        return cls(f"record {key} could not be prepared: {type(problem).__name__}: {problem} ({where})")


class Work(Protocol[Piece, Made]):
    """Something that processes can make, piece by piece."""

    def make(self, piece: Piece, note: Note, /) -> Made:
        """One piece. Calls `note` with a record's index before it reads the record. Raises `LoadingError`."""
        ...

    def name(self, index: int) -> str:
        """A record's key."""
        ...


def prepared(work: Work[Piece, Made], pieces: Iterable[Piece], workers: int) -> Iterator[Made]:
    """`work.make` of all pieces, in order: by this process, or ahead of time by so many others.

    Raises `LoadingError`, the process's own or one that names the record at which a process died.
    """
    if workers == 0:
        for piece in pieces:
            yield work.make(piece, lambda index: None)
        return
    whereabouts = _Whereabouts(workers)
    loader: Any = DataLoader(
        _InWorkers(work, whereabouts),
        batch_size=None,  # a piece is a whole batch
        sampler=pieces,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_stopping_to_the_trainer,
        generator=torch.Generator(),  # or it would draw from the global one, and workers change the training
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
            return failure  # raised here, its sentence would be lost in the text of a traceback


class _Whereabouts:
    """The record that each worker is at, where the trainer can still see it when the worker is no more."""

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
    """torch would raise an error wherever the trainer is when a worker dies, in the midst of saving, say."""
    if threading.current_thread() is not threading.main_thread():
        yield  # torch does not, either
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _leave_stopping_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too; if they died of it, training could not end in peace."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def _unchanged(piece: Any) -> Any:
    return piece
