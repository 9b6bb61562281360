"""Cache of image tokens: the tokens of a whole data set in a folder of memory-mapped files.

    tokens.npy    (views, records, positions) unsigned integers; read with numpy.load(..., mmap_mode="r")
    states.npy    (views, records) uint8: TODO, ENCODED or UNREADABLE
    cache.json    settings that the tokens were made with

A cache is valid for one ordered set of records, one transform and one dVAE, identified by digests. Opening it with
other settings raises `StaleTokens` with the differences.

Any number of processes can write blocks of records. A block is marked as done after it has been flushed to disk, so a
killed process loses only its current block.
"""

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dalle.data.index import digest_of

log = logging.getLogger(__name__)

FORMAT = 1
TOKENS, STATES, CACHE = "tokens.npy", "states.npy", "cache.json"
TODO, ENCODED, UNREADABLE = range(3)
BLOCK = 32  # records per encoding batch; fixed, so that tokens are the same for any number of processes


class StaleTokens(ValueError):
    """Raised if a token cache does not match the settings or is damaged. The message states the cause and a remedy."""


@dataclass(frozen=True)
class TokenKind:
    """Settings that a token cache was made with. A cache made with other settings cannot be used."""

    data: str  # digest of the records
    image_size: int  # pixels
    transform: str  # name of the transform
    dvae: str  # digest of the checkpoint
    views: int  # encodings of each image with different random crops; view v uses the crops of epoch v
    device: str = "cpu"  # that encoded the tokens; near ties between codes may be resolved differently on another
    precision: str = "float32"  # of the encoding

    def digest(self) -> str:
        """Return a digest of 12 hexadecimal digits."""
        return digest_of(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode())[:12]


class Block(NamedTuple):
    """Records `first` to `last` (exclusive) of one view."""

    view: int
    first: int
    last: int


class TokenCache:
    """Open token cache. Arrays are memory-mapped: pages are read on demand and shared between processes."""

    def __init__(self, folder: Path, kind: TokenKind):
        """Open the cache in `folder`. Raises `StaleTokens` if it has no tokens made with these settings."""
        self.folder = folder
        self.kind = kind
        self.told = _told(folder)
        made = TokenKind(**self.told["kind"])
        if made.device != kind.device:  # only in a folder set by the user: default names contain the digest
            log.warning("the tokens in %s were encoded on %s, and this is %s", folder, made.device, kind.device)
        if differing := _differing(made, replace(kind, device=made.device)):
            raise StaleTokens(
                f"the tokens in {folder} are of something else: {'; '.join(differing)}. Put the settings back, or "
                "encode the pictures again, into another folder"
            )
        try:
            self.tokens: np.ndarray = np.load(folder / TOKENS, mmap_mode="r")  # (views, records, positions)
            self.states: np.ndarray = np.load(folder / STATES, mmap_mode="r")  # (views, records)
        except (OSError, ValueError, EOFError) as problem:
            raise StaleTokens(f"the tokens in {folder} are damaged: {problem}; delete the folder") from problem

    @classmethod
    def create(
        cls, folder: Path, kind: TokenKind, records: int, positions: int, vocabulary: int, about: dict[str, Any]
    ) -> "TokenCache":
        """Create an empty cache in `folder`, or open the one that another process has created there.

        positions: tokens per image. vocabulary: exclusive upper bound of tokens. about: further information for
        cache.json, not used by the code.
        """
        if not is_cache(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                shape = (kind.views, records, positions)
                _empty(beside / TOKENS, shape, np.min_scalar_type(vocabulary - 1))
                _empty(beside / STATES, shape[:2], np.dtype(np.uint8))
                told = {"format": FORMAT, "kind": asdict(kind), **about}
                (beside / CACHE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
                beside.chmod(0o777 & ~_umask())
                os.rename(beside, folder)
            except OSError as problem:
                if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process created the folder first
                    raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        return cls(folder, kind)

    def read(self, views: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the tokens of the given views (b) and records (b): (b, n) int64."""
        return self.tokens[views, indices].astype(np.int64)

    def holds(self, view: int, index: int) -> bool:
        """Return True if the record could be read when it was encoded."""
        return self.states[view, index] == ENCODED

    def unfinished(self) -> Iterator[Block]:
        """Yield the blocks that are not written yet."""
        for view, states in enumerate(self.states):
            for first in range(0, len(states), BLOCK):
                last = min(first + BLOCK, len(states))
                if (states[first:last] == TODO).any():
                    yield Block(view, first, last)

    def write(self, block: Block, tokens: np.ndarray, readable: np.ndarray) -> None:
        """Write the tokens (b, n) of a block and a mask (b) of readable records. Raises OSError if the disk is full."""
        row = block.view * self.tokens.shape[1] + block.first
        self._put(self.folder / TOKENS, self.tokens, row * self.tokens.shape[2], tokens)
        self._put(self.folder / STATES, self.states, row, np.where(readable, ENCODED, UNREADABLE))

    def count(self, state: int) -> int:
        """Return how many of the views * records entries are in `state`."""
        return int((self.states == state).sum())

    @staticmethod
    def _put(path: Path, mapped: np.ndarray, start: int, values: np.ndarray) -> None:
        """Write `values` at element `start` through the file: on a full disk, a write to a memory map is fatal."""
        assert isinstance(mapped, np.memmap)
        with open(path, "r+b", buffering=0) as file:
            file.seek(mapped.offset + start * mapped.itemsize)
            data = memoryview(values.astype(mapped.dtype).tobytes())
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())


def is_cache(folder: Path) -> bool:
    return (folder / CACHE).is_file()


def place_of(root: Path, name: str, kind: TokenKind) -> Path:
    """Return the folder of a cache with these settings below `root`. It need not exist."""
    return root / f"{name}-{kind.digest()}"


def _told(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / CACHE).read_text(encoding="utf-8"))
        if told["format"] != FORMAT:
            raise StaleTokens(f"{folder} has format {told['format']}, and this version reads {FORMAT}: encode again")
        TokenKind(**told["kind"])
    except FileNotFoundError as problem:
        raise StaleTokens(f"there are no tokens in {folder}, which has no {CACHE}: choose another folder") from problem
    except (OSError, ValueError, KeyError, TypeError) as problem:
        if isinstance(problem, StaleTokens):
            raise
        raise StaleTokens(f"{folder / CACHE} cannot be read: {problem}; delete the folder") from problem
    return told


def _differing(old: TokenKind, new: TokenKind) -> list[str]:
    """Describe the settings in which two kinds differ."""
    words = {"data": "the records", "image_size": "the image size", "dvae": "the dVAE"}
    before, after = asdict(old), asdict(new)
    return [
        f"{words.get(name, name)} was {before[name]}, and is {after[name]} now"
        for name in before
        if before[name] != after[name]
    ]


def _empty(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create a sparse file of zeros, which takes no disk space until it is written."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
