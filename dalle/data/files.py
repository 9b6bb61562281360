"""What all sources of picture files share: an index made once, what is left out of it, and the two splits.

A source of one's own is a class with three methods (docs/data.md shows one): `found` lists the records, `read`
gives a picture's bytes, `stamps` tells whether they have changed.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dalle.data.captions import LONGEST, cleaned
from dalle.data.filters import CaptionFilter, FiltersConfig, too_long
from dalle.data.index import Index, IndexBuilder, Strings, digest_of
from dalle.data.opt_out import OptOut
from dalle.data.picture_file import HEAD, decode_picture, picture_size
from dalle.data.source import Record, UnreadableRecord
from dalle.data.tally import Tally, shown

log = logging.getLogger(__name__)

WITHOUT = "without a caption"


@dataclass
class FilesConfig:
    """Settings of every source of files."""

    name: str = ""
    path: str = ""  # where the pictures are
    image_size: int = 256  # side in pixels of the squares that models are given
    validation_share: float = 0.05  # of the records, chosen by a hash of their keys
    allow_missing_captions: bool = False  # pictures without captions get an empty one, to train a dVAE
    filters: FiltersConfig = field(default_factory=FiltersConfig)  # which records to leave out; filters=paper
    opt_out: str = ""  # text file of keys, addresses, domains and SHA-256 hashes that are left out; "": none

    def __post_init__(self) -> None:
        if isinstance(self.filters, Mapping):  # as a checkpoint's meta has it
            self.filters = FiltersConfig(**self.filters)


class Found(NamedTuple):
    """A record as a source lists it, before anything is left out."""

    key: str  # unique, and the same wherever the data set is moved
    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()  # where it came from, for opting out
    sha256: tuple[str, ...] = ()  # of its file, where the metadata tell it
    place: tuple[int, ...] = ()  # numbers by which `read` finds it; as many for every record


class FileSource(ABC):
    """The records of a split, "train" or "val", in the order in which `found` lists them.

    Opening it lists all records; `dropped` counts those left out by reason, `remarks` what else was passed over
    (rows of a table, shards, long captions). Both are of the whole data set, and told once in the log. A record's
    split depends on its key alone; where chance would leave a split without any, the nearest record is moved into it.

    Raises ValueError for another split or share, and when there is no record. Reading one raises
    `UnreadableRecord` when its picture is gone, broken or huge, or has a hash that is on the opt-out list.
    """

    def __init__(self, config: FilesConfig, split: str):
        if split not in ("train", "val"):
            raise ValueError(f"data={config.name} has the splits train and val, not {split!r}")
        if not 0 < config.validation_share < 1:
            raise ValueError(f"data.validation_share must lie between 0 and 1, got {config.validation_share}")
        if not config.path:
            raise ValueError("data.path is empty: set it to where the pictures are")
        self.config = config
        self.image_size = config.image_size
        self.root = Path(config.path).expanduser()
        self.opt_out = OptOut.read(config.opt_out)
        self.dropped, self.remarks = Tally(), Tally()
        self._index = self._listed()
        if config.filters.max_aspect_ratio:
            self._index = self._index.take(self._shapely(config.filters.max_aspect_ratio))
        self._tell()
        held_out = validation_mask(self._index.keys, config.validation_share)
        self._index = self._index.take(np.flatnonzero(held_out if split == "val" else ~held_out))
        if len(self) == 0:
            raise ValueError(f"data.path={config.path}: one picture is not enough for the splits train and val")

    @abstractmethod
    def found(self) -> Iterator[Found]:
        """Every record there is, in an order that does not change; what is passed over goes into `remarks`."""

    @abstractmethod
    def read(self, index: int, most: int | None = None) -> bytes:
        """The bytes of a picture's file, or the first `most`. Raises OSError."""

    @abstractmethod
    def stamps(self) -> np.ndarray:
        """Integers that change when the files do: sizes and times."""

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        key = self._index.keys[index]
        try:
            data = self.read(index)
        except OSError as problem:
            raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem
        if self.opt_out.holds(data):
            raise UnreadableRecord(key, "opted out by hash")
        # augmentations choose among up to 12/8 of the models' size
        return Record(decode_picture(data, key, 2 * self.image_size), self._index.captions[index], key)

    def keys(self) -> Strings:
        """The records' keys, without opening a picture."""
        return self._index.keys

    def captions(self, index: int) -> tuple[str, ...]:
        """A record's captions, without opening its picture."""
        return self._index.captions[index]

    def size(self, index: int) -> tuple[int, int] | None:
        """Width and height of the picture as its file tells them, unturned; None where it does not."""
        try:
            return picture_size(self.read(index, HEAD)) or picture_size(self.read(index))
        except OSError:
            return None

    def place(self, index: int) -> list[int]:
        """The numbers that `found` gave for this record."""
        return self._index.places[index].tolist()

    def digest(self) -> str:
        """Changes when a record, a caption, a file or the hashes of the opt-out list do; opens no picture."""
        return digest_of(*self._index.parts(), self.stamps(), self.opt_out.hashes)

    def _listed(self) -> Index:
        """The records that are neither opted out nor filtered out by their captions."""
        left_out = CaptionFilter(self.config.filters)
        building = IndexBuilder()
        for record in self.found():
            captions, reason = self._kept(record, left_out)
            if reason is not None:
                self.dropped.add(reason, record.key)
            else:
                building.add(record.key, captions, record.place)
        return building.built()

    def _kept(self, record: Found, left_out: CaptionFilter) -> tuple[tuple[str, ...], str | None]:
        """The captions to train on, and why there are none."""
        if (reason := self.opt_out.reason(record.key, record.urls, record.sha256)) is not None:
            return (), reason
        captions = [text for caption in record.captions if (text := cleaned(caption))]
        if not captions:
            return ("",), None if self.config.allow_missing_captions else WITHOUT
        if any(len(caption) > LONGEST for caption in captions):
            self.remarks.add(f"with captions cut to {LONGEST:,} characters", record.key)
            captions = [caption[:LONGEST] for caption in captions]
        reasons = [left_out(caption) for caption in captions]
        kept = tuple(caption for caption, why in zip(captions, reasons, strict=True) if why is None)
        return kept, None if kept else reasons[0]

    def _shapely(self, max_aspect_ratio: float) -> np.ndarray:
        """(m) int64: the records whose pictures are not too long; those that cannot be read stay, to be named then."""
        rows = []
        for index, key in enumerate(self._index.keys):
            size = self.size(index)
            if size is not None and too_long(size, max_aspect_ratio):
                self.dropped.add(f"with an aspect ratio over {max_aspect_ratio:g}", key)
            else:
                rows.append(index)
        return np.array(rows, np.int64)

    def _tell(self) -> None:
        """Say what was left out. Raises ValueError when that is everything."""
        left = len(self._index)
        said = [f"{left:,} of {left + sum(self.dropped.values()):,} records are used"]
        said += [f"left out: {self.dropped}"] if self.dropped else []
        said += [f"besides: {self.remarks}"] if self.remarks else []
        if WITHOUT in self.dropped:
            said.append("data.allow_missing_captions=true does without captions")
        sentence = f"data.path={shown(self.config.path)}: {'; '.join(said)}"
        if left == 0:
            raise ValueError(sentence)
        if len(said) > 1:
            warn_once(sentence)


@cache
def warn_once(sentence: str) -> None:
    """Into the log, though both splits, and every stage, open the same data."""
    log.warning("%s", sentence)


def validation_mask(keys: Strings, share: float) -> np.ndarray:
    """(n) bool: which records are held out. Stable: it does not change when others come or go.

    Of two or more records at least one is held out and at least one is not; a single one is not.
    """
    digests = (hashlib.blake2b(keys.encoded(index), digest_size=8).digest() for index in range(len(keys)))
    position = np.frombuffer(b"".join(digests), ">u8") / 2**64
    mask = position < share
    mask[position.argmin()] = True
    mask[position.argmax()] = False
    return mask


def stamps_of(paths: Iterable[str | Path]) -> np.ndarray:
    """(n, 2) int64: each file's size and time of change, -1 where it is gone."""
    stamps = []
    for path in paths:
        try:
            status = Path(path).stat()
            stamps.append((status.st_size, status.st_mtime_ns))
        except OSError:
            stamps.append((-1, -1))
    return np.array(stamps, np.int64)
