"""Decode one untrusted image file: returns an upright RGB image, or raises `UnreadableRecord` with a reason."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image, ImageOps, UnidentifiedImageError

from dalle.data.source import UnreadableRecord
from dalle.data.transforms import on_white

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
UNSUPPORTED_SUFFIXES = (
    ".svg",
    ".svgz",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".psd",
    ".ico",
    ".pdf",
    ".eps",
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # detected by content; the file's extension is ignored
MAX_PIXELS = 89_478_485  # pixels; Pillow's own limit for decompression bombs
MAX_FILE_BYTES = 300_000_000  # bytes; slightly more than `MAX_PIXELS` uncompressed pixels
HEADER_BYTES = 65_536  # bytes that contain the image size in nearly every file

_warning_filters = Lock()  # filters are those of the process: threads that change and restore them must take turns
if hasattr(os, "register_at_fork"):  # a loader process must not start with the lock taken and warnings off
    os.register_at_fork(
        before=_warning_filters.acquire,
        after_in_parent=_warning_filters.release,
        after_in_child=_warning_filters.release,
    )


def read_image_file(path: Path, key: str, keep_transparency: bool = False) -> Image.Image:
    """Read an image file as `decode_image`. Raises `UnreadableRecord` with `key` if it cannot be read."""
    try:
        data = read_bytes(path)
    except OSError as problem:
        raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem
    return decode_image(data, key, keep_transparency=keep_transparency)


def decode_image(data: bytes, key: str, side: int | None = None, *, keep_transparency: bool = False) -> Image.Image:
    """Decode an image: RGB, upright, transparency composited on white, first frame of an animation.

    With `side`, a JPEG whose shorter side is at least 2 * `side` is decoded at 1/2, 1/4 or 1/8 of its size, no smaller
    than `side`. This takes a fraction of the time and averages pixels as resizing would. With
    `keep_transparency`, an image that has any is RGBA. Raises `UnreadableRecord` with `key` if the data are broken,
    truncated, too large or not an image.
    """
    if not data:
        raise UnreadableRecord(key, "the file is empty")
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableRecord(key, f"the file has more than {MAX_FILE_BYTES:,} bytes")
    try:
        with without_warnings(), Image.open(BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}")
            if side is not None:
                opened.draft(None, (side, side))  # no effect on other formats
            opened.load()
            with suppress(Exception):  # ignore invalid rotation metadata
                ImageOps.exif_transpose(opened, in_place=True)
            if keep_transparency and opened.has_transparency_data and not opened.mode.startswith("I"):
                return opened.convert("RGBA")
            return on_white(opened)
    except UnidentifiedImageError as problem:
        raise UnreadableRecord(key, f"not an image in any of the formats {', '.join(FORMATS)}") from problem
    except Exception as problem:  # Pillow raises almost any exception for broken files
        raise UnreadableRecord(key, f"{type(problem).__name__}: {problem}") from problem


def read_image_size(head: bytes) -> tuple[int, int] | None:
    """Read width and height in pixels, before rotation, from the first bytes of a file. Returns None on failure."""
    try:
        with without_warnings(), Image.open(BytesIO(head), formats=FORMATS) as opened:
            return opened.size
    except Exception:
        return None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Context without warnings, for one thread at a time: Pillow's are about metadata, and sizes that callers check."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_bytes(path: Path | str, max_bytes: int = MAX_FILE_BYTES + 1) -> bytes:
    """Read the first `max_bytes` bytes of a file; the limit keeps huge files from filling memory. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.read(min(max_bytes, os.fstat(file.fileno()).st_size))


def unsupported_reason(name: str) -> str:
    """Return the reason for skipping the file `name`; it states the file type if that is an image type."""
    suffix = os.path.splitext(name)[1].lower()
    return f"{suffix} files, a type that is not supported" if suffix in UNSUPPORTED_SUFFIXES else "files of other types"
