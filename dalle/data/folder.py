"""Data source for a folder of images, with captions in a text file beside each image or in one table."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle.data.caption_rows import group_by_image
from dalle.data.captions import MAX_TEXT_BYTES, decode_lines, parse_metadata
from dalle.data.files import FilesConfig, FileSource, RawRecord, file_stats
from dalle.data.image_file import MAX_FILE_BYTES, SUFFIXES, read_bytes, unsupported_reason
from dalle.data.skip_counter import SkipCounter
from dalle.data.tables import TABLES
from dalle.progress import with_progress

METADATA_SUFFIXES = (".json",)  # img2dataset writes them beside images


@dataclass
class FolderConfig(FilesConfig):
    """Your own images: .jpg .jpeg .png .webp .bmp .gif files in a folder and its sub-folders.

    python train.py data=folder data.path=my/pictures ...

    The captions of photo.jpg are in photo.txt, one per line. Alternatively, all captions are in captions.csv (.tsv,
    .jsonl, .parquet) in the folder, with columns file and caption. Images without captions are left out, unless
    data.allow_missing_captions=true.

    Splits: train and val by a hash of each image's path within the folder; data.validation_share of them are held
    out, and stay held out when images are added.
    Attribution: depends on your images.
    """

    name: str = "folder"


class ImageFolder(FileSource):
    """Base class for images in a folder. Keys are paths within the folder, with forward slashes."""

    def read(self, index: int, max_bytes: int | None = None) -> bytes:
        return read_bytes(self.root / self.keys()[index], MAX_FILE_BYTES + 1 if max_bytes is None else max_bytes)

    def file_stats(self) -> np.ndarray:
        return file_stats(self.root / key for key in self.keys())

    def image_numbers(self) -> dict[str, int]:
        """Number the images from 0 in order of their paths: {path: number}. Raises ValueError if there are none."""
        if not self.root.is_dir():
            raise ValueError(f"data.path={self.config.path}: there is no such folder")
        paths = list_images(self.root, self.warnings)
        if not paths:
            skipped_note = f"; skipped: {self.warnings}" if self.warnings else ""
            raise ValueError(
                f"data.path={self.config.path}: no image ({', '.join(SUFFIXES)}) in it or in its sub-folders"
                f"{skipped_note}"
            )
        return {path: number for number, path in enumerate(paths)}


class FolderSource(ImageFolder):
    """Images under `config.path`, sorted by relative path.

    Reads .jpg, .jpeg, .png, .webp, .bmp and .gif (first frame) files at any depth, ignoring case. Skips names that
    begin with a dot and links to folders. Captions are in the .txt of the same stem, UTF-8, one per line, or in
    captions.csv, .tsv, .jsonl or .parquet in the folder (`tables`).

    Raises ValueError if the folder does not exist, has no images or more than one table, or if the table has no
    captions.
    """

    def list_records(self) -> Iterator[RawRecord]:
        image_numbers = self.image_numbers()
        tables = [name for name in TABLES if (self.root / name).is_file()]
        if len(tables) > 1:
            raise ValueError(f"data.path={self.config.path} holds {' and '.join(tables)}: keep one of them")
        for name in tables:
            rows = TABLES[name](self.root / name, image_numbers, self.warnings)
            yield from (record for _, record in group_by_image(rows, image_numbers, self.warnings))
        if not tables:
            numbers = with_progress(image_numbers, len(image_numbers), "reading captions")
            yield from filter(None, map(self._read_captions, numbers))

    def _read_captions(self, key: str) -> RawRecord | None:
        """Return the record of the image `key` with the captions in its .txt. None, and counted, if unreadable."""
        stem = self.root / key.rpartition(".")[0]
        try:
            captions = decode_lines(read_bytes(f"{stem}.txt", MAX_TEXT_BYTES + 1))
        except FileNotFoundError:
            captions = ()
        except (OSError, UnicodeDecodeError):
            self.dropped.add("with captions that cannot be read", key)
            return None
        if not self.opt_out:
            return RawRecord(key, captions)
        try:  # as img2dataset writes it
            metadata = parse_metadata(read_bytes(f"{stem}.json", MAX_TEXT_BYTES))
        except FileNotFoundError:
            return RawRecord(key, captions)
        except (OSError, ValueError):
            self.warnings.add("metadata that cannot be read", key)
            return RawRecord(key, captions)
        return RawRecord(key, captions, metadata.urls, metadata.sha256)


def list_images(root: Path, warnings: SkipCounter) -> list[str]:
    """List the images under `root` as relative paths with forward slashes, sorted by their bytes.

    Counts in `warnings` the text files without an image of the same name and the files of unsupported types.
    """
    encoded_paths: list[bytes] = []
    texts: list[str] = []
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{prefix}{entry.name}/")
                    elif entry.name.lower().endswith(SUFFIXES) and not entry.is_dir():
                        if entry.is_file():  # reading a pipe would never end
                            encoded_paths.append(os.fsencode(prefix + entry.name))
                        else:
                            warnings.add("names that lead to no file", prefix + entry.name)
                    elif entry.name.lower().endswith(".txt"):
                        texts.append(prefix + entry.name)
                    elif entry.is_file() and not _is_read_with_images(prefix, entry.name):
                        warnings.add(unsupported_reason(entry.name), prefix + entry.name)
        except OSError:
            warnings.add("folders that cannot be opened", prefix or str(root))
    paths = [os.fsdecode(path) for path in sorted(encoded_paths)]
    stems = {path.rpartition(".")[0] for path in paths}
    for text in sorted(texts):
        stem = text[: -len(".txt")]
        if stem not in stems:
            warnings.add("text files without an image of the same name", text)
        elif not (root / f"{stem}.txt").is_file():  # some file systems ignore case
            warnings.add("text files that are not read, because .txt is not in lower case", text)
    return paths


def _is_read_with_images(prefix: str, name: str) -> bool:
    """Return True for files that are read with the images: JSON metadata and caption tables."""
    return name.lower().endswith(METADATA_SUFFIXES) or (not prefix and name in TABLES)
