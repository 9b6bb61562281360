"""Captions as files hold them: bytes that may be anything become lines of plain text."""

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

LONGEST = 4_096  # characters of a caption that are kept; the paper's 256 tokens are about 1,200
LARGEST_TEXT = 1 << 20  # bytes of a text file that are looked at
CAPTION = ("caption", "text")  # what captions are called in tables and JSON

_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
_BREAK = re.compile(r"\r\n|\r|\n")


class Metadata(NamedTuple):
    """What a JSON file beside a picture tells, as img2dataset writes it."""

    captions: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()


def lines_of(data: bytes) -> tuple[str, ...]:
    """The lines of a UTF-8 text, with or without a byte order mark. Raises UnicodeDecodeError for other bytes.

    Of more than `LARGEST_TEXT` bytes the last may be the beginning of a letter.
    """
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(data[:LARGEST_TEXT], final=len(data) <= LARGEST_TEXT)
    return tuple(_BREAK.split(text))


def cleaned(caption: str) -> str:
    """The caption on one line: control characters and runs of blanks are a blank each, broken letters a "?"."""
    text = " ".join(caption.translate(_CONTROL).split())
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def metadata_of(data: bytes) -> Metadata:
    """Captions (caption, text), addresses (url) and hashes (sha256) of a JSON object. ValueError for other bytes."""
    told = object_of(data)
    return Metadata(texts_under(told, CAPTION), texts_under(told, ("url",)), texts_under(told, ("sha256",)))


def object_of(data: str | bytes) -> dict[str, Any]:
    """The JSON object in a text; ValueError for any other text."""
    try:
        told = json.loads(data)
    except RecursionError:
        raise ValueError("brackets in brackets without end") from None
    if not isinstance(told, dict):
        raise ValueError("no JSON object")
    return told


def texts_under(told: dict[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """What stands under the first of these names that has texts."""
    return next(filter(None, (texts_of(told.get(name)) for name in names)), ())


def texts_of(value: Any) -> tuple[str, ...]:
    """A string, or the strings of a list, that are not empty; nothing of anything else."""
    values: Iterable[Any] = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(each for each in values if isinstance(each, str) and each.strip())
