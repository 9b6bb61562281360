"""Record of how an image was made, in the text chunks of its PNG file: caption, seed, candidate, rank and settings."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle.config_validation import has_type
from dalle.data.skip_counter import printable

RECORD = {"caption": str, "seed": int, "candidate": int, "rank": int, "settings": dict}
FOLDERS = ("checkpoint", "dvae", "clip", "decoder")  # settings that name folders


def encode_png(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    """Encode an image as a PNG file with one text chunk for each item of `record`; items but strings as JSON."""
    chunks = PngInfo()
    for name, value in record.items():
        chunks.add_itxt(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def read_record(file: Path | IO[bytes]) -> dict[str, Any]:
    """Return the record in a PNG file: caption, seed, candidate, rank, settings; {} for another image.

    Raises ValueError if the file is not a readable image.
    """
    try:
        with Image.open(file) as image:
            image.verify()
            texts = {name: value for name, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = printable(str(file)) if isinstance(file, Path) else "the file"
        raise ValueError(f"{name} is not an image that can be read: {printable(str(error))}") from error
    try:
        record: dict[str, Any] = {
            name: texts[name] if kind is str else json.loads(texts[name]) for name, kind in RECORD.items()
        }
    except (KeyError, ValueError, RecursionError):
        return {}
    if not all(has_type(record[name], kind) for name, kind in RECORD.items()):
        return {}
    settings, digests = record["settings"], record["settings"].get("digests")
    valid = all(has_type(settings.get(name), str | None) for name in FOLDERS) and isinstance(digests, dict)
    return record if valid and has_type(list(digests.values()), list[str]) else {}
