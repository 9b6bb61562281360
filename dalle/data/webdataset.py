"""Data source for tar shards of captioned images, as img2dataset and webdataset write them, read in place."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dalle.data.captions import MAX_TEXT_BYTES, Metadata, decode_lines, parse_metadata
from dalle.data.files import FilesConfig, FileSource, RawRecord, file_stats
from dalle.data.image_file import MAX_FILE_BYTES, SUFFIXES, unsupported_reason
from dalle.data.tar import Member, members
from dalle.progress import with_progress

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 1_000_000
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


@dataclass
class WebdatasetConfig(FilesConfig):
    """Tar shards of captioned images, as img2dataset and webdataset write them, read in place.

    python train.py data=webdataset 'data.path=shards/{00000..00099}.tar' ...

    data.path is a range of tars (in quotes, or the shell expands it), one tar, or a folder of tars. In a tar, files of
    the same stem form a record: 012.jpg (.jpeg .png .webp .bmp .gif), 012.txt with its captions, one per line, and
    012.json. The JSON's caption is used if there is no .txt; its url and sha256 are used by data.opt_out.

    Splits: train and val by a hash of each record's tar and stem; data.validation_share of them are held out, and stay
    held out when tars are added.
    Attribution: depends on your images.
    """

    name: str = "webdataset"


class WebdatasetSource(FileSource):
    """Images in tar shards. Files of the same stem form a record: {key}.jpg with {key}.txt and {key}.json.

    The image is a .jpg, .jpeg, .png, .webp, .bmp or .gif. Its captions are in the .txt, UTF-8, one per line, or else
    in the .json under caption or text. A stem ends at the first dot after the last slash. If a tar has two files of
    the same name, the later one is used, as if the tar had been extracted. Files of other kinds are counted in
    `warnings`, those whose names begin with a dot are not. A record's key is the name of its tar and the stem:
    00000.tar/000000012.

    Raises ValueError if the folder or a shard does not exist, if a shard is compressed or is named twice, or if no
    shard has an image.
    """

    config: WebdatasetConfig

    @cached_property
    def shards(self) -> list[Path]:
        """Paths of the tars, in order."""
        paths = self._shards_in_folder() if self.root.is_dir() else self._listed_shards()
        first_paths: dict[Path, Path] = {}  # file -> the first of the paths that lead to it
        for path in paths:
            if (first_path := first_paths.setdefault(path.resolve(), path)) is not path:
                raise ValueError(
                    f"data.path={self.config.path}: {path} is the same shard as {first_path}; keep one of them"
                )
        return paths

    def _shards_in_folder(self) -> list[Path]:
        paths = sorted(path for path in self.root.glob("[!.]*.tar") if path.is_file())
        compressed = sorted(path for path in self.root.glob("[!.]*") if path.name.endswith(COMPRESSED))
        if not paths:
            self._refuse_compressed(compressed)
            raise ValueError(f"data.path={self.config.path}: no .tar in this folder")
        for path in compressed:
            self.warnings.add("compressed shards, which are not read", path.name)
        return paths

    def _listed_shards(self) -> list[Path]:
        paths = [Path(path) for path in expand_braces(str(self.root))]
        if missing := [path for path in paths if not path.is_file()]:
            summary = f"{len(missing):,} of {len(paths):,} shards are not there"
            raise ValueError(f"data.path={self.config.path}: {summary}, such as {missing[0]}")
        self._refuse_compressed([path for path in paths if path.name.endswith(COMPRESSED)])
        return paths

    def _refuse_compressed(self, paths: list[Path]) -> None:
        if paths:
            raise ValueError(
                f"data.path={self.config.path}: {len(paths):,} of the shards are compressed, such as {paths[0].name}. "
                "Images are read in place, so decompress the shards to .tar first"
            )

    def list_records(self) -> Iterator[RawRecord]:
        root = self.root if self.root.is_dir() else Path(str(self.root).partition("{")[0] + "_").parent
        for number, shard in enumerate(with_progress(self.shards, len(self.shards), "reading captions", "shards")):
            name = shard.relative_to(root).as_posix()
            try:
                yield from self._shard_records(number, shard, name)
            except OSError as problem:
                self.warnings.add(f"shards that cannot be read ({type(problem).__name__})", name)

    def read(self, index: int, max_bytes: int | None = None) -> bytes:
        shard, offset, size = self.location(index)
        with open(self.shards[shard], "rb", buffering=0) as file:
            return read_range(file, offset, min(size, MAX_FILE_BYTES + 1 if max_bytes is None else max_bytes))

    def file_stats(self) -> np.ndarray:
        return file_stats(self.shards)

    def _shard_records(self, number: int, shard: Path, name: str) -> Iterator[RawRecord]:
        samples: dict[str, dict[str, Member]] = {}  # key -> {kind: file}
        for member in members(shard, self.warnings):
            key, kind = key_and_kind(member.name)
            if kind is None:
                if not is_hidden(member.name):
                    self.warnings.add(skip_reason(member.name), f"{name}/{member.name}")
                continue
            sample = samples.setdefault(key, {})
            if kind in sample:
                counter = self.dropped if kind == "image" else self.warnings
                counter.add("replaced by a later file of the same key", f"{name}/{key}")
            sample[kind] = member
        with open(shard, "rb") as file:
            for key, sample in samples.items():
                if "image" not in sample:
                    self.warnings.add("captions without an image", f"{name}/{key}")
                    continue
                try:
                    captions, metadata = self._read_captions(file, f"{name}/{key}", sample)
                except UnicodeDecodeError:
                    self.dropped.add("with captions that cannot be read", f"{name}/{key}")
                    continue
                location = (number, sample["image"].offset, sample["image"].size)
                yield RawRecord(f"{name}/{key}", captions, metadata.urls, metadata.sha256, location)

    def _read_captions(self, file: BinaryIO, key: str, sample: dict[str, Member]) -> tuple[tuple[str, ...], Metadata]:
        """Return the captions and metadata of a record. Raises UnicodeDecodeError if its .txt is not UTF-8.

        The JSON file is read only if there is an opt-out list, or the .txt has no captions.
        """
        text, metadata = sample.get("txt"), Metadata()
        captions = (
            () if text is None else decode_lines(read_range(file, text.offset, min(text.size, MAX_TEXT_BYTES + 1)))
        )
        has_captions = any(map(str.strip, captions))
        if (json_file := sample.get("json")) is not None and (self.opt_out or not has_captions):
            try:
                metadata = parse_metadata(read_range(file, json_file.offset, min(json_file.size, MAX_TEXT_BYTES)))
            except ValueError:
                self.warnings.add("metadata that cannot be read", key)
        return captions if has_captions else metadata.captions, metadata


def key_and_kind(name: str) -> tuple[str, str | None]:
    """Split a file name: a/b.jpg -> (a/b, "image"). The kind is "image", "txt", "json", or None for others."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    extension = extension.lower()
    kind = "image" if f".{extension}" in SUFFIXES else extension
    return f"{folder}{slash}{stem}", kind if stem and kind in ("image", "txt", "json") else None


def is_hidden(name: str) -> bool:
    """Return True if the name of a file begins with a dot."""
    return name.rpartition("/")[2].startswith(".")


def skip_reason(name: str) -> str:
    """Return the reason for skipping a file of which `key_and_kind` knows no kind."""
    last_extension = name.rpartition(".")[2]  # what the kind would be if stems ended at the last dot
    if key_and_kind(f"stem.{last_extension}")[1] is None:
        return unsupported_reason(name)
    return "files with several dots in their names: a stem ends at the first dot"


def read_range(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read `size` bytes of a file from `offset`. Raises OSError if the file has become shorter."""
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise OSError(f"ends {size - len(data):,} bytes too early")
    return data


def expand_braces(pattern: str) -> list[str]:
    """Expand braces: a{08..10}.{x,y} -> a08.x, a08.y, a09.x, a09.y, a10.x, a10.y.

    Raises ValueError for a descending range and for more than `MAX_SHARDS` shards.
    """
    # the package braceexpand (last release 2021) accepts descending ranges, likely typing errors, and has no limit
    segments = BRACES.split(pattern)  # text, content of braces, text, ...
    choices = [_alternatives(segment) if position % 2 else [segment] for position, segment in enumerate(segments)]
    if math.prod(map(len, choices)) > MAX_SHARDS:
        raise ValueError(f"data.path={pattern} names more than {MAX_SHARDS:,} shards")
    return ["".join(combination) for combination in product(*choices)]


def _alternatives(content: str) -> Sequence[str]:
    match = RANGE.fullmatch(content)
    if match is None:
        return content.split(",")
    first, last = map(int, match.groups())
    if not first <= last < first + MAX_SHARDS:
        raise ValueError(f"data.path: {{{content}}} is no range of shards; write the lower number first")
    return [f"{number:0{len(match[1])}}" for number in range(first, last + 1)]
