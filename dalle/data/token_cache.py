"""The image tokens of a whole data set in a folder, to be read at the speed of memory.

    tokens.npy    (views, records, positions) of unsigned integers: numpy.load(..., mmap_mode="r") reads it
    states.npy    (views, records) uint8: TODO, ENCODED or UNREADABLE
    cache.json    what the tokens are of, and how they lie

A cache is good for one set of records in their order, one transform and one dVAE, which it names by digests. Made
for anything else, it refuses to be opened, and says why.

Blocks of records are written by any number of processes, and each is marked as done after it has reached the disk:
who is killed on the way loses the block at hand.
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
BLOCK = 32  # records that are encoded together, so that each number is the same whoever computes it


class StaleTokens(ValueError):
    """A token cache cannot be used; the message says why, and what to do."""


@dataclass(frozen=True)
class TokenKind:
    """What tokens are of. Those of another kind are of no use."""

    data: str  # digest of the records
    image_size: int  # pixels
    transform: str  # by name
    dvae: str  # digest of the checkpoint
    views: int  # encodings of each picture, with other chance: view v is that of epoch v
    device: str = "cpu"  # that encoded them: where two codes nearly tie, another may have chosen the other
    precision: str = "float32"  # that they were encoded in

    def digest(self) -> str:
        """Twelve hexadecimal digits."""
        return digest_of(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode())[:12]


class Block(NamedTuple):
    """Records `first` to `last` (without it), as one view shows them."""

    view: int
    first: int
    last: int


class TokenCache:
    """An open cache. Its arrays are mapped: pages are read when they are needed, and shared between processes."""

    def __init__(self, folder: Path, kind: TokenKind):
        """Raises `StaleTokens` where `folder` holds no tokens of this kind."""
        self.folder = folder
        self.kind = kind
        self.told = _told(folder)
        made = TokenKind(**self.told["kind"])
        if made.device != kind.device:  # of which somebody has named the folder: others are named by their kind
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
        """An empty cache in `folder`, or the one that somebody else has begun there; `about` is for people to read.

        positions: tokens of a picture; vocabulary: tokens lie below it.
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
                if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                    raise
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        return cls(folder, kind)

    def read(self, views: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The tokens of these views (b) of these records (b): (b, n) int64."""
        return self.tokens[views, indices].astype(np.int64)

    def holds(self, view: int, index: int) -> bool:
        """Whether the record could be read when its tokens were made."""
        return self.states[view, index] == ENCODED

    def unfinished(self) -> Iterator[Block]:
        """Blocks that are still to be written."""
        for view, states in enumerate(self.states):
            for first in range(0, len(states), BLOCK):
                last = min(first + BLOCK, len(states))
                if (states[first:last] == TODO).any():
                    yield Block(view, first, last)

    def write(self, block: Block, tokens: np.ndarray, readable: np.ndarray) -> None:
        """A block's tokens (b, n), and which of its records (b) have some. Raises OSError where the disk is full."""
        row = block.view * self.tokens.shape[1] + block.first
        self._put(self.folder / TOKENS, self.tokens, row * self.tokens.shape[2], tokens)
        self._put(self.folder / STATES, self.states, row, np.where(readable, ENCODED, UNREADABLE))

    def count(self, state: int) -> int:
        """How many views of records are in this state, of views * records."""
        return int((self.states == state).sum())

    @staticmethod
    def _put(path: Path, mapped: np.ndarray, start: int, values: np.ndarray) -> None:
        """`values` from number `start` on. Not through the map: where the disk is full, that ends the process."""
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
    """Where tokens of this kind lie among others, whether or not they are there yet."""
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
    """In what two kinds differ, in words."""
    words = {"data": "the records", "image_size": "the image size", "dvae": "the dVAE"}
    before, after = asdict(old), asdict(new)
    return [
        f"{words.get(name, name)} was {before[name]}, and is {after[name]} now"
        for name in before
        if before[name] != after[name]
    ]


def _empty(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A file of zeros, which takes no space until they are replaced."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
