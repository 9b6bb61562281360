"""A folder of one's own pictures, each with its captions in a text file of the same name beside it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dalle.data.source import Record, UnreadableRecord
from dalle.data.transforms import on_white

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
LARGEST = 89_478_485  # pixels; where Pillow, too, begins to suspect a decompression bomb


@dataclass
class FolderConfig:
    name: str = "folder"
    path: str = ""  # the folder; its sub-folders are searched too
    image_size: int = 256  # side in pixels of the squares that models are given
    validation_share: float = 0.05  # of the pictures, chosen by a hash of their relative paths
    allow_missing_captions: bool = False  # pictures without captions get an empty one, to train a dVAE


class FolderSource:
    """The pictures under `config.path` that fall into a split, "train" or "val", sorted by relative path.

    Files are .jpg, .jpeg, .png, .webp, .bmp and .gif (first frame), whatever their case, in any depth; names
    that begin with a dot and links to folders are passed over. Captions stand in the same-stem .txt, UTF-8,
    one a line. EXIF rotation is applied, and transparency laid on white. A picture's split depends on its
    path alone; where chance would leave a split without any, the nearest picture is moved into it.

    Raises ValueError when there is no such folder, split, share, or no picture. Reading a record raises
    `UnreadableRecord` when the picture is broken or huge or the caption missing, empty or not UTF-8.
    """

    def __init__(self, config: FolderConfig, split: str):
        if split not in ("train", "val"):
            raise ValueError(f"a folder has the splits train and val, not {split!r}")
        if not 0 < config.validation_share < 1:
            raise ValueError(f"data.validation_share must lie between 0 and 1, got {config.validation_share}")
        if not config.path:
            raise ValueError("data.path is empty: set it to the folder that holds the pictures")
        self.config = config
        self.image_size = config.image_size
        self.root = Path(config.path).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"data.path={config.path}: there is no such folder")
        paths = relative_paths(self.root)
        if not paths:
            kinds = ", ".join(SUFFIXES)
            raise ValueError(f"data.path={config.path}: no picture ({kinds}) in it or in its sub-folders")
        held_out = validation_mask(paths, config.validation_share)
        # one block of bytes: worker processes that count references to a million strings would copy them all
        self._paths = np.array(paths, dtype=bytes)[held_out if split == "val" else ~held_out]
        if len(self) == 0:
            raise ValueError(f"data.path={config.path}: one picture is not enough for the splits train and val")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        key = os.fsdecode(bytes(self._paths[index]))
        captions = self._captions(key)
        return Record(read_picture(self.root / key, key), captions, key)

    def _captions(self, key: str) -> tuple[str, ...]:
        path = (self.root / key).with_suffix(".txt")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            lines = []
        except (OSError, UnicodeDecodeError) as problem:
            raise UnreadableRecord(key, f"its captions in {path.name} cannot be read: {problem}") from problem
        captions = tuple(line.strip() for line in lines if line.strip())
        if captions or self.config.allow_missing_captions:
            return captions or ("",)
        raise UnreadableRecord(
            key, f"no caption in {path.name} beside it (data.allow_missing_captions=true does without)"
        )


def relative_paths(root: Path) -> list[bytes]:
    """The pictures under `root`, relative to it, with forward slashes, sorted."""
    found: list[bytes] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = "" if Path(folder) == root else Path(folder).relative_to(root).as_posix() + "/"
        pictures = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found += [os.fsencode(prefix + name) for name in pictures]
    return sorted(found)


def validation_mask(paths: list[bytes], share: float) -> np.ndarray:
    """(n) bool: which paths are held out. Stable: it does not change when other pictures come or go.

    Of two or more pictures at least one is held out and at least one is not; a single one is not.
    """
    digests = [hashlib.blake2b(path, digest_size=8).digest() for path in paths]
    position = np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
    mask = position < share
    mask[position.argmin()] = True
    mask[position.argmax()] = False
    return mask


def read_picture(path: Path, key: str) -> Image.Image:
    """The picture as RGB, upright. Raises `UnreadableRecord` naming `key` for whatever cannot be shown."""
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > LARGEST:
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {LARGEST:,}")
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return on_white(opened)
    except Exception as problem:  # Pillow's readers raise almost anything when a file is broken
        raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem
