"""Atomic writing: a file or folder under its final name is always complete, also after a crash or a power failure."""

import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFTOVER_SECONDS = 24 * 60 * 60


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context with a temporary path to write to, which replaces `path` atomically at the end; deleted on errors.

    Each call has a path of its own, so that of several writers at a time the last one's file stays, whole.
    """
    # the package for this, atomicwrites, is no longer maintained
    path = path.resolve()  # a symbolic link stays, and the file it points to is replaced
    _delete_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Context with an empty temporary folder to write to, which replaces `path` at the end; deleted on errors."""
    path = path.resolve()  # a symbolic link stays, and the folder it points to is replaced
    temporary, previous = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            fsync(written)
        if path.exists():
            os.replace(path, previous)  # deleting it takes several steps, between which the process may be killed
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        if previous.exists() and not path.exists():
            os.replace(previous, path)
        for left in (temporary, previous):
            shutil.rmtree(left, ignore_errors=True)


def check_writable(folder: Path, setting: str = "out") -> None:
    """Create a folder if there is none. Raises ValueError, which names `setting`, if no file can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except FileExistsError:
        raise ValueError(f"{folder} is a file: choose another {setting}=") from None
    except OSError as error:
        raise ValueError(f"no file can be written to {folder} ({error.strerror}): choose another {setting}=") from error


def _delete_leftovers(path: Path) -> None:
    """Delete temporary files for `path` of killed processes: those that nothing was written to for a day."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):  # another process deletes it too
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


def fsync(path: Path) -> None:
    """Flush a file or folder to disk: after a power failure, a renamed file could otherwise exist without content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
