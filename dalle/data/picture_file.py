"""One picture file, opened safely: whatever somebody may have put there, it is a picture, upright, or a reason."""

import os
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from dalle.data.source import UnreadableRecord
from dalle.data.transforms import on_white

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content, whatever the file's name says
LARGEST = 89_478_485  # pixels; where Pillow, too, begins to suspect a decompression bomb
LARGEST_FILE = 300_000_000  # bytes: a little more than `LARGEST` pixels take without compression
HEAD = 65_536  # bytes in which nearly every file says its size


def read_picture(path: Path, key: str) -> Image.Image:
    """The picture in a file, as RGB and upright; `UnreadableRecord` naming `key` where it cannot be shown."""
    try:
        data = read_bytes(path)
    except OSError as problem:
        raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem
    return decode_picture(data, key)


def decode_picture(data: bytes, key: str, side: int | None = None) -> Image.Image:
    """The picture in a file's bytes: RGB, upright, transparency on white, the first frame where it moves.

    With `side`, a JPEG whose shorter side has at least twice as many pixels is decoded at a half, a quarter or an
    eighth of its size, no smaller than `side`: that takes a fraction of the time, and averages pixels as resizing
    would. Raises `UnreadableRecord` naming `key` for whatever is broken, cut short, too large or no picture.
    """
    if not data:
        raise UnreadableRecord(key, "the file is empty")
    if len(data) > LARGEST_FILE:
        raise UnreadableRecord(key, f"the file has more than {LARGEST_FILE:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are looked at here
            with Image.open(BytesIO(data), formats=FORMATS) as opened:
                if opened.width * opened.height > LARGEST:
                    raise ValueError(f"{opened.width} x {opened.height} pixels are more than {LARGEST:,}")
                if side is not None:
                    opened.draft(None, (side, side))  # does nothing to other formats
                opened.load()
                with suppress(Exception):  # what cannot be read as a rotation turns nothing
                    ImageOps.exif_transpose(opened, in_place=True)
                return on_white(opened)
    except UnidentifiedImageError as problem:
        raise UnreadableRecord(key, f"no picture in any of the formats {', '.join(FORMATS)}") from problem
    except Exception as problem:  # Pillow's readers raise almost anything when a file is broken
        raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem


def picture_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the first bytes of a file tell them, unturned; None where they do not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(head), formats=FORMATS) as opened:
                return opened.size
    except Exception:
        return None


def read_bytes(path: Path | str, most: int = LARGEST_FILE + 1) -> bytes:
    """The first `most` bytes of a file: no file, whatever it claims to be, fills the memory. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.read(min(most, os.fstat(file.fileno()).st_size))
