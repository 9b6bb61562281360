"""What sample.py leaves behind: a sheet, one PNG for each picture, and the facts of all in samples.json."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from dalle.sampling.pipeline import Result
from dalle.sampling.sheet import Row, sample_sheet

SHEET, FACTS = "grid.png", "samples.json"


def write_gallery(folder: str | Path, results: Sequence[Result], seed: int, settings: Mapping[str, Any]) -> list[Path]:
    """Write grid.png, a PNG for each picture with its facts as text chunks, and samples.json into `folder`.

    settings: whatever else a reader needs to draw the same again; JSON must be able to hold it.
    Returns the pictures' files, in the order of the results and best first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [Row(result.caption, result.images, result.scores) for result in results]
    sample_sheet(rows).save(folder / SHEET)

    files, captions = [], []
    for number, result in enumerate(results):
        # one caption's files need no number; several must not share a name
        prefix = f"{number + 1:03d}-" if len(results) > 1 else ""
        entries = picture_facts(result, seed)
        for image, entry in zip(result.images, entries, strict=True):
            path = folder / f"{prefix}{slug(result.caption)}-{entry['rank']:03d}.png"
            image.save(path, pnginfo=_text_chunks({"caption": result.caption, **entry, "settings": settings}))
            entry["file"] = path.name
            files.append(path)
        captions.append({"caption": result.caption, "images": entries})
    facts = {"settings": dict(settings), "captions": captions}
    (folder / FACTS).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def picture_facts(result: Result, seed: int) -> list[dict[str, Any]]:
    """For each picture, best first: its rank from 1, what it was drawn from, and its score."""
    scores = result.scores or [None] * len(result.images)
    return [
        {"rank": rank, "seed": seed, "candidate": candidate, "score": score}
        for rank, (candidate, score) in enumerate(zip(result.candidates, scores, strict=True), start=1)
    ]


def slug(caption: str, length: int = 48) -> str:
    """The caption as part of a file's name: words joined by hyphens, "caption" where it has none."""
    words = re.sub(r"\W+", "-", caption.lower()).strip("-")
    return words[:length].rstrip("-") or "caption"


def unused(folder: Path) -> Path:
    """`folder`, or with the first of -2, -3, ... behind its name if something stands there already."""
    names = (folder if number == 1 else folder.with_name(f"{folder.name}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _text_chunks(facts: Mapping[str, Any]) -> PngInfo:
    chunks = PngInfo()
    for name, value in facts.items():
        chunks.add_itxt(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return chunks
