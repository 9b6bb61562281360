"""Cache of image tokens: the tokens of a whole data set in a folder of memory-mapped files.

    tokens.npy    (crops, records, positions) unsigned integers; read with numpy.load(..., mmap_mode="r")
    states.npy    (crops, records) uint8: PENDING, ENCODED or UNREADABLE
    cache.json    settings that the tokens were made with; there the number of crops is called views

A cache is valid for one ordered set of records, one transform and one dVAE, identified by digests. Opening it with
other settings raises `TokenCacheMismatch` with the differences.

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
PENDING, ENCODED, UNREADABLE = range(3)
SAVED_NAMES = {"crops": "views"}  # settings that have another name in cache.json
BLOCK_SIZE = 32  # records per encoding batch; fixed, so that tokens do not depend on the number of processes


class TokenCacheMismatch(ValueError):
    """Raised if a token cache does not match the settings or is damaged. The message states the cause and a remedy."""


@dataclass(frozen=True)
class TokenCacheSettings:
    """Settings that a token cache was made with. A cache made with other settings cannot be used."""

    data: str  # digest of the records
    image_size: int  # pixels
    transform: str  # name of the transform
    dvae: str  # digest of the checkpoint
    crops: int  # number of crops of each image that are encoded; crop number c is that of epoch c
    device: str = "cpu"  # that encoded the tokens; near ties between codes may be resolved differently on another
    precision: str = "float32"  # of the encoding

    def digest(self) -> str:
        """Return a digest of all settings: 12 hexadecimal digits."""
        return digest_of(json.dumps([FORMAT, self.saved()], sort_keys=True).encode())[:12]

    def saved(self) -> dict[str, Any]:
        """Return the settings by their names in cache.json."""
        return {SAVED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> "TokenCacheSettings":
        """Return the settings of a cache.json. Raises TypeError if one is missing or unknown."""
        saved = {**saved}  # raises TypeError for anything else than a mapping
        names = {saved_name: name for name, saved_name in SAVED_NAMES.items()}
        return cls(**{names.get(name, name): value for name, value in saved.items()})


class RecordBlock(NamedTuple):
    """Range of records, `first` to `last` (exclusive), of one crop of a token cache."""

    crop: int
    first: int
    last: int


class TokenCache:
    """Open token cache. Arrays are memory-mapped: pages are read on demand and shared between processes."""

    def __init__(self, folder: Path, settings: TokenCacheSettings):
        """Open the cache in `folder`. Raises `TokenCacheMismatch` if it has no tokens made with these settings."""
        self.folder = folder
        self.settings = settings
        self.metadata = _read_metadata(folder)
        stored = TokenCacheSettings.from_saved(self.metadata["kind"])
        if stored.device != settings.device:  # only possible in a folder that the user has set
            log.warning(
                "the tokens in %s were encoded on %s, but this run uses %s", folder, stored.device, settings.device
            )
        if differences := _differences(stored, replace(settings, device=stored.device)):
            raise TokenCacheMismatch(
                f"the token cache {folder} was made with other settings: {'; '.join(differences)}. Restore these "
                "settings, or encode the images again into another folder"
            )
        try:
            self.tokens: np.ndarray = np.load(folder / TOKENS, mmap_mode="r")  # (crops, records, positions)
            self.states: np.ndarray = np.load(folder / STATES, mmap_mode="r")  # (crops, records)
        except (OSError, ValueError, EOFError) as problem:
            raise TokenCacheMismatch(f"the token cache {folder} is damaged: {problem}; delete the folder") from problem

    @classmethod
    def create(
        cls,
        folder: Path,
        settings: TokenCacheSettings,
        records: int,
        positions: int,
        vocabulary: int,
        about: dict[str, Any],
    ) -> "TokenCache":
        """Create an empty cache in `folder`, or open the one that another process has created there.

        positions: tokens per image. vocabulary: exclusive upper bound of tokens. about: further information for
        cache.json, not used by the code.
        """
        if not is_cache(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                shape = (settings.crops, records, positions)
                _create_zeros(temporary / TOKENS, shape, np.min_scalar_type(vocabulary - 1))
                _create_zeros(temporary / STATES, shape[:2], np.dtype(np.uint8))
                metadata = {"format": FORMAT, "kind": settings.saved(), **about}
                (temporary / CACHE).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
                temporary.chmod(0o777 & ~_umask())
                os.rename(temporary, folder)
            except OSError as problem:
                if problem.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process created the folder first
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return cls(folder, settings)

    def read(self, crops: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the tokens of the given crops (b) of the given records (b): (b, n) int64."""
        return self.tokens[crops, indices].astype(np.int64)

    def is_encoded(self, crop: int, index: int) -> bool:
        """Return True if the record could be read when this crop of it was encoded."""
        return self.states[crop, index] == ENCODED

    def pending_blocks(self, retry_unreadable: bool = False) -> Iterator[RecordBlock]:
        """Yield the blocks of records whose tokens are not written yet.

        retry_unreadable: also yield the blocks that have an unreadable record.
        """
        for crop, states in enumerate(self.states):
            for first in range(0, len(states), BLOCK_SIZE):
                last = min(first + BLOCK_SIZE, len(states))
                is_pending = states[first:last] != ENCODED if retry_unreadable else states[first:last] == PENDING
                if is_pending.any():
                    yield RecordBlock(crop, first, last)

    def write(self, block: RecordBlock, tokens: np.ndarray, readable: np.ndarray) -> None:
        """Write the tokens (b, n) of a block and a mask (b) of readable records. Raises OSError if the disk is full.

        Records that are encoded already keep their tokens if they are unreadable now.
        """
        keeps_tokens = (self.states[block.crop, block.first : block.last] == ENCODED) & ~readable
        tokens = np.where(keeps_tokens[:, None], self.tokens[block.crop, block.first : block.last], tokens)
        readable = readable | keeps_tokens
        position = block.crop * self.tokens.shape[1] + block.first
        self._write_elements(self.folder / TOKENS, self.tokens, position * self.tokens.shape[2], tokens)
        self._write_elements(self.folder / STATES, self.states, position, np.where(readable, ENCODED, UNREADABLE))

    def count(self, state: int) -> int:
        """Return how many of the crops * records entries are in `state`."""
        return int((self.states == state).sum())

    @staticmethod
    def _write_elements(path: Path, mapped: np.ndarray, start: int, values: np.ndarray) -> None:
        """Write `values` into the file of the memory map `mapped`, from its element `start` on.

        Does not write through the map, because that is fatal on a full disk.
        """
        assert isinstance(mapped, np.memmap)
        with open(path, "r+b", buffering=0) as file:
            file.seek(mapped.offset + start * mapped.itemsize)
            data = memoryview(values.astype(mapped.dtype).tobytes())
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())


def is_cache(folder: Path) -> bool:
    """Return True if `folder` has a token cache."""
    return (folder / CACHE).is_file()


def cache_folder(root: Path, name: str, settings: TokenCacheSettings) -> Path:
    """Return the folder of a cache with these settings below `root`. It need not exist."""
    return root / f"{name}-{settings.digest()}"


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((folder / CACHE).read_text(encoding="utf-8"))
        if metadata["format"] != FORMAT:
            raise TokenCacheMismatch(
                f"the token cache {folder} has format {metadata['format']}, but this version reads format {FORMAT}: "
                "encode the images again"
            )
        TokenCacheSettings.from_saved(metadata["kind"])
    except FileNotFoundError as problem:
        raise TokenCacheMismatch(
            f"{folder} is not a token cache, because it has no {CACHE}: choose another folder"
        ) from problem
    except (OSError, ValueError, KeyError, TypeError) as problem:
        if isinstance(problem, TokenCacheMismatch):
            raise
        raise TokenCacheMismatch(f"{folder / CACHE} cannot be read: {problem}; delete the folder") from problem
    return metadata


def _differences(stored: TokenCacheSettings, requested: TokenCacheSettings) -> list[str]:
    """Describe each setting that differs between two caches, one phrase each."""
    descriptions = {
        "data": "the digest of the records",
        "image_size": "the image size",
        "dvae": "the digest of the dVAE",
    }
    stored_values, requested_values = asdict(stored), asdict(requested)
    return [
        f"{descriptions.get(name, name)} was {stored_values[name]} and is now {requested_values[name]}"
        for name in stored_values
        if stored_values[name] != requested_values[name]
    ]


def _create_zeros(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create a sparse file of zeros, which takes no disk space until it is written."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def _umask() -> int:
    """Return the file mode creation mask of the process, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
