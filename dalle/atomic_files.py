"""Atomic writing: a file or folder under its final name is always complete, also after a crash or a power failure."""

import errno
import os
import re
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
    temporary = _temporary(path)
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Context with an empty temporary folder to write to, which replaces `path` at the end; deleted on errors.

    As for `atomic_write`, each call has a folder of its own, and of several writers at a time the last one's stays.
    """
    path = path.resolve()  # a symbolic link stays, and the folder it points to is replaced
    _restore_previous(path)
    _delete_leftovers(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            fsync(written)
        while not _replace_folder(temporary, path):
            pass
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, path: Path) -> bool:
    """Rename `temporary` to `path`, in place of a folder there. Returns False if another process was faster."""
    previous = temporary.with_suffix(".old")
    try:
        with suppress(FileNotFoundError):
            os.replace(path, previous)  # deleting it takes several steps, between which the process may be killed
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        _put_back(previous, path)
    return True


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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def _temporaries(path: Path, suffix: str) -> list[Path]:
    """Return the temporary files and folders for `path` of all processes."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]+\.{suffix}")
    return [temporary for temporary in path.parent.glob(f".*.{suffix}") if name.fullmatch(temporary.name)]


def _restore_previous(path: Path) -> None:
    """Put back the folder `path` that a process moved aside before it was killed.

    A process that is between its two renames moves the folder aside again.
    """
    for previous in _temporaries(path, "old"):
        _put_back(previous, path)


def _put_back(previous: Path, path: Path) -> None:
    """Rename `previous` to `path` if nothing has that name, else delete it."""
    if not path.exists():
        with suppress(OSError):  # another process wrote the folder meanwhile, or put it back too
            os.replace(previous, path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)


def _delete_leftovers(path: Path) -> None:
    """Delete temporary files and folders for `path` of killed processes: those not written to for a day."""
    for leftover in _temporaries(path, "part"):
        with suppress(OSError):  # another process deletes it too
            written = max(entry.stat().st_mtime for entry in (leftover, *leftover.rglob("*")))
            if time.time() - written > LEFTOVER_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def fsync(path: Path) -> None:
    """Flush a file or folder to disk: after a power failure, a renamed file could otherwise exist without content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
