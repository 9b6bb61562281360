"""metrics.json: what an evaluation found, flat names to numbers, with all that moves them.

    {"format": 2, "psnr": 34.1, ..., "judge_val_top": 0.7, "subject": {...}, "parts": {"reconstruction": {...}, ...}}

`parts` says of each part which numbers are its own, the settings that they depend on, and what it drew. Parts measured
one after the other of the same models and data gather in one file.
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

FORMAT = 2  # 1 had numbers alone


@dataclass(frozen=True)
class Part:
    """What is told of a part beside its numbers."""

    names: list[str]  # of its numbers
    about: str
    settings: dict[str, Any]
    pictures: list[str]  # files, relative to the record's folder
    table: str
    notes: list[str]


@dataclass(frozen=True)
class Record:
    """The content of a metrics.json."""

    subject: dict[str, Any]  # models and data
    numbers: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    def having(self, name: str, measured: Measured, environment: dict[str, Any], folder: Path) -> "Record":
        """This record with the part `name`, in place of an earlier one; its pictures are saved in `folder`."""
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
        """Whether the part `name` stands here with other settings than `measured` has."""
        if name not in self.parts:
            return False
        settings = {key: value for key, value in self.parts[name].settings.items() if key != "environment"}
        return settings != json.loads(json.dumps(measured.settings))

    def write(self, path: Path) -> None:
        """Replace the file at `path`, which is whole at any time."""
        parts = {name: asdict(part) for name, part in self.parts.items()}
        content = {"format": FORMAT, **self.numbers, "subject": self.subject, "parts": parts}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _saved(picture: Image.Image, path: Path) -> str:
    """Save a picture; its name from the folder above, where the record is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return f"{path.parent.name}/{path.name}"


def read_record(path: str | Path) -> Record:
    """The record in a metrics.json. Raises ValueError where it is missing, damaged, or of another format."""
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
    """The numbers of a metrics.json by name. Raises as `read_record` does."""
    return read_record(path).numbers


def begin(path: Path, subject: dict[str, Any]) -> Record | None:
    """The record at `path` to go on with, an empty one where there is none; None where it is not of `subject`."""
    fresh = Record(json.loads(json.dumps(subject)))
    if not path.is_file():
        return fresh
    try:
        earlier = read_record(path)
    except ValueError:
        return None
    return earlier if earlier.subject == fresh.subject else None


def set_aside(path: Path) -> Path:
    """Copy metrics.json to the first free of metrics.1.json, metrics.2.json, ...; returns which."""
    copies = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    aside = next(each for each in copies if not each.exists())
    shutil.copy2(path, aside)
    return aside
