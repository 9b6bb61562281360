"""Base class of data sources that read image files: builds the index, filters the records, makes the two splits.

A subclass has three methods (docs/data.md shows an example): `list_records` yields the records, `read` returns the
bytes of an image file, `file_stats` returns sizes and modification times, to detect changes.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dalle.data.captions import MAX_CAPTION_CHARACTERS, clean_caption
from dalle.data.filters import CaptionFilter, FiltersConfig, exceeds_aspect_ratio
from dalle.data.image_file import HEADER_BYTES, decode_image, read_image_size
from dalle.data.index import Index, IndexBuilder, StringArray, digest_of
from dalle.data.opt_out import OptOut
from dalle.data.skip_counter import SkipCounter, printable
from dalle.data.source import Record, UnreadableRecord, check_image_size
from dalle.progress import with_progress

log = logging.getLogger(__name__)

NO_CAPTION = "without a caption"


@dataclass
class FilesConfig:
    """Settings shared by all data sources that read files."""

    name: str = ""
    path: str = ""  # location of the images
    image_size: int = 256  # side in pixels of the square images that models get
    validation_share: float = 0.05  # share of the records held out for validation, chosen by a hash of their keys
    # keep images without captions; the transformer sees an empty one, as with stage.caption_dropout; CLIP and the
    # evaluation of transformers leave them out
    allow_missing_captions: bool = False
    filters: FiltersConfig = field(default_factory=FiltersConfig)  # which records to leave out; filters=paper
    opt_out: str = ""  # text file of keys, URLs, domains and SHA-256 hashes to leave out; "": none

    def __post_init__(self) -> None:
        if isinstance(self.filters, Mapping):  # a dict when read from a checkpoint's meta
            self.filters = FiltersConfig(**self.filters)
        check_image_size(self.image_size)


class RawRecord(NamedTuple):
    """One record as a source lists it, before filters: captions, and what the opt-out list and `read` need."""

    key: str  # unique; does not change when the data set is moved
    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()  # source addresses, for the opt-out list
    sha256: tuple[str, ...] = ()  # hash of the image file, if the metadata have it
    location: tuple[int, ...] = ()  # location for `read`; the same length for every record


class FileSource(ABC):
    """Records of a split, "train" or "val", in the order in which `list_records` yields them.

    The constructor lists all records. `dropped` counts the records left out, by reason; `warnings` counts everything
    else that was skipped (rows of a table, shards, long captions). Both cover the whole data set and are logged once.
    A record's split depends only on its key. If a split would be empty, the record with the nearest hash is moved
    into it.

    Raises ValueError for an unknown split, for a share outside (0, 1), and if there are no records. Reading a record
    raises `UnreadableRecord` if its image is missing, broken or too large, or if its hash is on the opt-out list.
    """

    def __init__(self, config: FilesConfig, split: str | None):
        """List the records of a split, or of both if it is None."""
        if split is not None:
            check_split(config, split)
        if not 0 < config.validation_share < 1:
            raise ValueError(f"data.validation_share must be between 0 and 1, got {config.validation_share}")
        if not config.path:
            raise ValueError("data.path is empty: set it to the location of the images")
        self.config = config
        self.image_size = config.image_size
        self.root = Path(config.path).expanduser()
        self.opt_out = OptOut.read(config.opt_out)
        self.dropped, self.warnings = SkipCounter(), SkipCounter()
        self._index = self._build_index()
        if config.filters.max_aspect_ratio:
            self._index = self._index.take(self._within_aspect_ratio(config.filters.max_aspect_ratio))
        self._log_dropped()
        if split is not None:
            self._index = self._index_of(split)

    @classmethod
    def open_splits(cls, config: FilesConfig, splits: Iterable[str]) -> dict[str, "FileSource"]:
        """Open several splits, by name. The records are listed once for all of them."""
        splits = list(splits)
        for split in splits:
            check_split(config, split)
        all_records = cls(config, None)
        opened: dict[str, FileSource] = {split: copy(all_records) for split in splits}
        for split, source in opened.items():
            source._index = all_records._index_of(split)
        return opened

    @abstractmethod
    def list_records(self) -> Iterator[RawRecord]:
        """Yield all records in a fixed order. Count skipped items in `warnings`."""

    @abstractmethod
    def read(self, index: int, max_bytes: int | None = None) -> bytes:
        """Return the bytes of an image file, or only the first `max_bytes`. Raises OSError."""

    @abstractmethod
    def file_stats(self) -> np.ndarray:
        """Return an integer array that changes when the files change: sizes and modification times."""

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        key = self._index.keys[index]
        try:
            data = self.read(index)
        except OSError as problem:
            raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem
        if self.opt_out.lists_file(data):
            raise UnreadableRecord(key, "opted out by hash")
        # augmentations use up to 12/8 of the model's image size
        return Record(decode_image(data, key, 2 * self.image_size), self._index.captions[index], key)

    def keys(self) -> StringArray:
        """Return the keys of all records, without opening an image."""
        return self._index.keys

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of a record, without opening its image."""
        return self._index.captions[index]

    def size(self, index: int) -> tuple[int, int] | None:
        """Return width and height from the file, before EXIF rotation, or None if they cannot be read."""
        try:
            return read_image_size(self.read(index, HEADER_BYTES)) or read_image_size(self.read(index))
        except OSError:
            return None

    def location(self, index: int) -> list[int]:
        """Return the integers by which the subclass finds the image of record `index`, as `list_records` gave them."""
        return self._index.locations[index].tolist()

    def digest(self) -> str:
        """Return a digest that changes with the records, captions, files or opt-out hashes. Opens no image.

        Files are told apart by size and modification time, so a copy has the same digest only if it keeps the times.
        Checkpoints and token caches contain the digest.
        """
        return digest_of(*self._index.buffers(), self.file_stats(), self.opt_out.hashes)

    def _index_of(self, split: str) -> Index:
        """Return the index of one split of all records."""
        held_out = validation_mask(self._index.keys, self.config.validation_share)
        index = self._index.take(np.flatnonzero(held_out if split == "val" else ~held_out))
        if len(index) == 0:
            raise ValueError(f"data.path={self.config.path}: one image is not enough for the splits train and val")
        return index

    def _build_index(self) -> Index:
        """Index the records that are not removed by the opt-out list or the caption filter."""
        caption_filter = CaptionFilter(self.config.filters)
        builder = IndexBuilder()
        for record in self.list_records():
            captions, reason = self._filter_captions(record, caption_filter)
            if reason is not None:
                self.dropped.add(reason, record.key)
            else:
                builder.add(record.key, captions, record.location)
        return builder.build()

    def _filter_captions(self, record: RawRecord, caption_filter: CaptionFilter) -> tuple[tuple[str, ...], str | None]:
        """Clean and filter the captions of a record: (captions to train on, None), or (..., reason to leave it out)."""
        if (reason := self.opt_out.reason(record.key, record.urls, record.sha256)) is not None:
            return (), reason
        captions = [text for caption in record.captions if (text := clean_caption(caption))]
        if not captions:
            return ("",), None if self.config.allow_missing_captions else NO_CAPTION
        if any(len(caption) > MAX_CAPTION_CHARACTERS for caption in captions):
            self.warnings.add(f"with captions cut to {MAX_CAPTION_CHARACTERS:,} characters", record.key)
            captions = [caption[:MAX_CAPTION_CHARACTERS] for caption in captions]
        reasons = [caption_filter(caption) for caption in captions]
        kept_captions = tuple(caption for caption, why in zip(captions, reasons, strict=True) if why is None)
        return kept_captions, None if kept_captions else reasons[0]

    def _within_aspect_ratio(self, max_aspect_ratio: float) -> np.ndarray:
        """Return the indices (m, int64) of the records whose images are within the aspect ratio. Counts the others.

        Unreadable images stay and are reported when read.
        """
        indices = []
        for index, key in enumerate(with_progress(self._index.keys, len(self._index), "reading sizes")):
            size = self.size(index)
            if size is not None and exceeds_aspect_ratio(size, max_aspect_ratio):
                self.dropped.add(f"with an aspect ratio over {max_aspect_ratio:g}", key)
            else:
                indices.append(index)
        return np.array(indices, np.int64)

    def _log_dropped(self) -> None:
        """Log how many records are used and left out, by reason. Raises ValueError if no record is left."""
        remaining = len(self._index)
        messages = [f"{remaining:,} of {remaining + sum(self.dropped.values()):,} records are used"]
        messages += [f"left out: {self.dropped}"] if self.dropped else []
        messages += [f"warnings: {self.warnings}"] if self.warnings else []
        if unmatched := self.opt_out.unmatched():
            messages.append(
                f"{len(unmatched):,} entries of data.opt_out match no record, such as {printable(unmatched[0])}"
            )
        if NO_CAPTION in self.dropped:
            messages.append(
                "data.allow_missing_captions=true keeps images without a caption in all stages but stage=clip, which "
                "needs captions, as the evaluation of a transformer does"
            )
        message = f"data.path={printable(self.config.path)}: {'; '.join(messages)}"
        if remaining == 0:
            raise ValueError(message)
        if len(messages) > 1:
            warn_once(message)


@cache
def warn_once(message: str) -> None:
    """Log a warning once per process. Both splits and every stage open the same data."""
    log.warning("%s", message)


def check_split(config: FilesConfig, split: str) -> None:
    """Raise ValueError if `split` is neither "train" nor "val"."""
    if split not in ("train", "val"):
        raise ValueError(f"data={config.name} has the splits train and val, not {split!r}")


def validation_mask(keys: StringArray, share: float) -> np.ndarray:
    """Return a mask (n, bool) of the held-out records. A record's value does not depend on the other records.

    Exception: of two or more records at least one is held out and at least one is not. A single record is not.
    """
    digests = (hashlib.blake2b(keys.encoded(index), digest_size=8).digest() for index in range(len(keys)))
    fractions = np.frombuffer(b"".join(digests), ">u8") / 2**64
    mask = fractions < share
    mask[fractions.argmin()] = True
    mask[fractions.argmax()] = False
    return mask


def file_stats(paths: Iterable[str | Path]) -> np.ndarray:
    """Return each file's size and modification time in ns, (n, 2) int64; -1 if the file is missing."""
    stats = []
    for path in paths:
        try:
            status = Path(path).stat()
            stats.append((status.st_size, status.st_mtime_ns))
        except OSError:
            stats.append((-1, -1))
    return np.array(stats, np.int64)
