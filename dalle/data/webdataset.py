"""Shards of captioned pictures, tars as img2dataset and webdataset write them, read in place."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dalle.data.captions import LARGEST_TEXT, Metadata, lines_of, metadata_of
from dalle.data.files import FilesConfig, FileSource, Found, stamps_of
from dalle.data.picture_file import LARGEST_FILE, SUFFIXES
from dalle.data.tar import Member, members

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_SHARDS = 1_000_000


@dataclass
class WebdatasetConfig(FilesConfig):
    """Tars of captioned pictures, as img2dataset and webdataset write them, read in place.

    python train.py data=webdataset 'data.path=shards/{00000..00099}.tar' ...

    data.path is a range of tars (in quotes, or the shell expands it), one tar, or a folder of them. In a tar, files of
    one stem belong together: 012.jpg (.jpeg .png .webp .bmp .gif), 012.txt with its captions, one a line, and 012.json,
    whose caption counts where there is no .txt, and whose url and sha256 serve data.opt_out.

    Splits: train and val by a hash of each record's tar and stem; data.validation_share of them are held out, and stay
    so when tars are added.
    Attribution: yours to give.
    """

    name: str = "webdataset"


class WebdatasetSource(FileSource):
    """The pictures in tars: files of one stem belong together, {key}.jpg with {key}.txt and {key}.json.

    The picture is a .jpg, .jpeg, .png, .webp, .bmp or .gif; its captions stand in the .txt, UTF-8, one a line, or else
    in the .json under caption or text. A stem ends at the first dot after the last slash. Where a tar has two files of
    one name, the later one stands, as it would if the tar were extracted. Records' keys are those of the files, after
    the name of their tar: 00000.tar/000000012.

    Raises ValueError when there is no such folder or shard, or no picture in any.
    """

    config: WebdatasetConfig

    @cached_property
    def shards(self) -> list[Path]:
        """The tars, in order."""
        if self.root.is_dir():
            paths = sorted(path for path in self.root.glob("[!.]*.tar") if path.is_file())
            if not paths:
                raise ValueError(f"data.path={self.config.path}: no .tar in this folder")
            return paths
        paths = [Path(path) for path in expanded(str(self.root))]
        if missing := [path for path in paths if not path.is_file()]:
            lacking = f"{len(missing):,} of {len(paths):,} shards are not there"
            raise ValueError(f"data.path={self.config.path}: {lacking}, such as {missing[0]}")
        return paths

    def found(self) -> Iterator[Found]:
        root = self.root if self.root.is_dir() else Path(str(self.root).partition("{")[0] + "_").parent
        for number, shard in enumerate(self.shards):
            name = shard.relative_to(root).as_posix()
            try:
                yield from self._in_shard(number, shard, name)
            except OSError as problem:
                self.remarks.add(f"shards that cannot be read ({type(problem).__name__})", name)

    def read(self, index: int, most: int | None = None) -> bytes:
        shard, offset, size = self.place(index)
        with open(self.shards[shard], "rb", buffering=0) as file:
            return part_of(file, offset, min(size, LARGEST_FILE + 1 if most is None else most))

    def stamps(self) -> np.ndarray:
        return stamps_of(self.shards)

    def _in_shard(self, number: int, shard: Path, name: str) -> Iterator[Found]:
        samples: dict[str, dict[str, Member]] = {}  # key -> its files by kind
        for member in members(shard, self.remarks):
            key, kind = key_and_kind(member.name)
            if kind is None:
                continue
            sample = samples.setdefault(key, {})
            if kind in sample:
                tally = self.dropped if kind == "picture" else self.remarks
                tally.add("replaced by a later file of the same key", f"{name}/{key}")
            sample[kind] = member
        with open(shard, "rb") as file:
            for key, sample in samples.items():
                if "picture" not in sample:
                    self.remarks.add("captions without a picture", f"{name}/{key}")
                    continue
                try:
                    captions, told = self._texts(file, f"{name}/{key}", sample)
                except UnicodeDecodeError:
                    self.dropped.add("with captions that cannot be read", f"{name}/{key}")
                    continue
                place = (number, sample["picture"].offset, sample["picture"].size)
                yield Found(f"{name}/{key}", captions, told.urls, told.sha256, place)

    def _texts(self, file: BinaryIO, key: str, sample: dict[str, Member]) -> tuple[tuple[str, ...], Metadata]:
        """Captions, and metadata where they are needed. Raises UnicodeDecodeError."""
        text, told = sample.get("txt"), Metadata()
        captions = () if text is None else lines_of(part_of(file, text.offset, min(text.size, LARGEST_TEXT + 1)))
        has_captions = any(map(str.strip, captions))
        if (metadata := sample.get("json")) is not None and (self.opt_out or not has_captions):
            try:
                told = metadata_of(part_of(file, metadata.offset, min(metadata.size, LARGEST_TEXT)))
            except ValueError:
                self.remarks.add("metadata that cannot be read", key)
        return captions if has_captions else told.captions, told


def key_and_kind(name: str) -> tuple[str, str | None]:
    """`a/b.jpg` -> a/b, "picture"; of texts "txt" and "json"; of any other file None."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    extension = extension.lower()
    kind = "picture" if f".{extension}" in SUFFIXES else extension
    return f"{folder}{slash}{stem}", kind if stem and kind in ("picture", "txt", "json") else None


def part_of(file: BinaryIO, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on; OSError where it has become shorter."""
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise OSError(f"ends {size - len(data):,} bytes too early")
    return data


def expanded(pattern: str) -> list[str]:
    """`a{08..10}.{x,y}` -> a08.x, a08.y, a09.x, a09.y, a10.x, a10.y. ValueError for a range that goes down or on."""
    # the package braceexpand, last released in 2021, counts down where a range is mistyped, and has no limit
    pieces = BRACES.split(pattern)  # text, what is in braces, text, ...
    choices = [_alternatives(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MOST_SHARDS:
        raise ValueError(f"data.path={pattern} names more than {MOST_SHARDS:,} shards")
    return ["".join(chosen) for chosen in product(*choices)]


def _alternatives(inside: str) -> Sequence[str]:
    ends = RANGE.fullmatch(inside)
    if ends is None:
        return inside.split(",")
    first, last = map(int, ends.groups())
    if not first <= last < first + MOST_SHARDS:
        raise ValueError(f"data.path: {{{inside}}} is no range of shards; write the lower number first")
    return [f"{number:0{len(ends[1])}}" for number in range(first, last + 1)]
