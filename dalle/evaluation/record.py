"""metrics.json: numbers of an evaluation by flat names, with everything that they depend on.

    {"format": 2, "psnr": 34.1, ..., "judge_val_top": 0.7, "subject": {...}, "parts": {"reconstruction": {...}, ...}}

`parts` has an entry for each metric: the names of its numbers, the settings that they depend on, and its images.
Metrics of the same models and data that are measured in several runs are collected in one file.
"""

import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from dalle.checkpoint import read_json, replacing
from dalle.evaluation.measured import Measured

FORMAT = 2  # format 1 had the numbers only


@dataclass(frozen=True)
class Part:
    """Description of one metric's result beside its numbers."""

    names: list[str]  # names of its numbers
    about: str
    settings: dict[str, Any]
    pictures: list[str]  # files, relative to the record's folder
    table: str
    notes: list[str]


@dataclass(frozen=True)
class Record:
    """Content of a metrics.json."""

    subject: dict[str, Any]  # models and data
    numbers: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    def having(self, name: str, measured: Measured, environment: dict[str, Any], folder: Path) -> "Record":
        """Return this record with the result `name`, replacing an earlier one. Its images are saved in `folder`."""
        before = self.parts[name].names if name in self.parts else []
        kept = {each: value for each, value in self.numbers.items() if each not in before}
        finite = {each: float(value) for each, value in measured.numbers.items() if math.isfinite(value)}
        lost = [f"`{each}` is left out: it is not finite." for each in measured.numbers if each not in finite]
        part = Part(
            list(finite),
            measured.about,
            {**measured.settings, "environment": environment},
            [_saved(picture, folder / f"{stem}.png") for stem, picture in measured.pictures.items()],
            measured.table,
            [*measured.notes, *lost],
        )
        return Record(self.subject, kept | finite, self.parts | {name: part})

    def measured_otherwise(self, name: str, measured: Measured) -> bool:
        """True if the record has the result `name` with other settings than those of `measured`."""
        if name not in self.parts:
            return False
        settings = {key: value for key, value in self.parts[name].settings.items() if key != "environment"}
        return settings != json.loads(json.dumps(measured.settings))

    def write(self, path: Path) -> None:
        """Write the file at `path` atomically."""
        parts = {name: asdict(part) for name, part in self.parts.items()}
        content = {"format": FORMAT, **self.numbers, "subject": self.subject, "parts": parts}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _saved(picture: Image.Image, path: Path) -> str:
    """Save an image and return its path relative to the record's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return f"{path.parent.name}/{path.name}"


def read_record(path: str | Path) -> Record:
    """Read a metrics.json. Raises ValueError if it is missing, damaged, or of another format."""
    path = Path(path)
    content = read_json(path)
    found = content.pop("format", 1)
    if found != FORMAT:
        advice = "run evaluate.py again" if found == 1 else "update the code"
        raise ValueError(f"{path} has format {found} but this version reads format {FORMAT}: {advice}")
    try:
        subject, parts = content.pop("subject"), content.pop("parts")
        return Record(subject, content, {name: Part(**part) for name, part in parts.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what evaluate.py writes: {error}") from error


def read_metrics(path: str | Path) -> dict[str, float]:
    """Read the numbers of a metrics.json by name. Raises as `read_record` does."""
    return read_record(path).numbers


def begin(path: Path, subject: dict[str, Any]) -> Record | None:
    """Read the record at `path` to extend it; an empty one if there is no file, None if it is of another subject."""
    fresh = Record(json.loads(json.dumps(subject)))
    if not path.is_file():
        return fresh
    try:
        earlier = read_record(path)
    except ValueError:
        return None
    return earlier if earlier.subject == fresh.subject else None


def set_aside(path: Path) -> Path:
    """Copy metrics.json to the first free name of metrics.1.json, metrics.2.json, ...; returns the copy's path."""
    copies = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    aside = next(each for each in copies if not each.exists())
    shutil.copy2(path, aside)
    return aside
