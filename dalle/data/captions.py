"""Read captions and metadata from the bytes of text and JSON files, and clean them."""

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MAX_CAPTION_CHARACTERS = 4_096  # longer captions are cut; the paper's 256 tokens are about 1,200 characters
MAX_TEXT_BYTES = 1 << 20  # bytes read from a text file
CAPTION_FIELDS = ("caption", "text")  # names of the caption field in tables and JSON

_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


class Metadata(NamedTuple):
    """Fields read from the JSON file beside an image, as img2dataset writes it."""

    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()


def decode_lines(data: bytes) -> tuple[str, ...]:
    """Split a UTF-8 text, with or without byte order mark, into lines. Raises UnicodeDecodeError for other bytes.

    Reads at most `MAX_TEXT_BYTES` bytes; an incomplete character at that limit is dropped.
    """
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(data[:MAX_TEXT_BYTES], final=len(data) <= MAX_TEXT_BYTES)
    return tuple(_LINE_BREAK.split(text))


def clean_caption(caption: str) -> str:
    """Put a caption on one line. Control characters and runs of spaces become one space, lone surrogates "?"."""
    text = " ".join(caption.translate(_CONTROL).split())
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def parse_metadata(data: bytes) -> Metadata:
    """Read captions (caption, text), URLs (url) and hashes (sha256) of a JSON object. Raises ValueError for others."""
    fields = parse_json_object(data)
    return Metadata(
        first_strings(fields, CAPTION_FIELDS), first_strings(fields, ("url",)), first_strings(fields, ("sha256",))
    )


def parse_json_object(data: str | bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for any other text."""
    try:
        fields = json.loads(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def first_strings(fields: dict[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return the strings of the first field of `names` that has any; () if none has."""
    return next(filter(None, (as_strings(fields.get(name)) for name in names)), ())


def as_strings(value: Any) -> tuple[str, ...]:
    """Return the non-empty strings of a string or a list of strings; other values give an empty tuple."""
    values: Iterable[Any] = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(text for text in values if isinstance(text, str) and text.strip())
