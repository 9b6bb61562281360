"""Read captions and metadata from the bytes of text and JSON files, and clean them."""

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

LONGEST = 4_096  # characters kept of a caption; the paper's 256 tokens are about 1,200
LARGEST_TEXT = 1 << 20  # bytes read of a text file
CAPTION = ("caption", "text")  # names of the caption field in tables and JSON

_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
_BREAK = re.compile(r"\r\n|\r|\n")


class Metadata(NamedTuple):
    """Fields read from the JSON file beside an image, as img2dataset writes it."""

    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()


def lines_of(data: bytes) -> tuple[str, ...]:
    """Split a UTF-8 text, with or without byte order mark, into lines. Raises UnicodeDecodeError for other bytes.

    Reads at most `LARGEST_TEXT` bytes; an incomplete character at that limit is dropped.
    """
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(data[:LARGEST_TEXT], final=len(data) <= LARGEST_TEXT)
    return tuple(_BREAK.split(text))


def cleaned(caption: str) -> str:
    """Put a caption on one line. Control characters and runs of spaces become one space, lone surrogates "?"."""
    text = " ".join(caption.translate(_CONTROL).split())
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def metadata_of(data: bytes) -> Metadata:
    """Read captions (caption, text), URLs (url) and hashes (sha256) of a JSON object. Raises ValueError for others."""
    told = object_of(data)
    return Metadata(texts_under(told, CAPTION), texts_under(told, ("url",)), texts_under(told, ("sha256",)))


def object_of(data: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for any other text."""
    try:
        told = json.loads(data)
    except RecursionError:
        raise ValueError("brackets in brackets without end") from None
    if not isinstance(told, dict):
        raise ValueError("no JSON object")
    return told


def texts_under(told: dict[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return the strings of the first of these fields that has any."""
    return next(filter(None, (texts_of(told.get(name)) for name in names)), ())


def texts_of(value: Any) -> tuple[str, ...]:
    """Return the non-empty strings of a string or a list of strings; other values give an empty tuple."""
    values: Iterable[Any] = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(each for each in values if isinstance(each, str) and each.strip())
