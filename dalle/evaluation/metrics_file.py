"""metrics.json: numbers of an evaluation by flat names, with everything that they depend on.

    {"format": 3, "psnr": 34.1, ..., "judge_val_top": 0.7, "context": {...}, "metrics": {"reconstruction": {...}, ...}}

`context` identifies the models and data. `metrics` has an entry for each metric: the names of its numbers, the settings
that they depend on, and its images. Metrics of the same models and data that are computed in several runs of
evaluate.py are collected in one file.
"""

import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from dalle.atomic_files import atomic_write
from dalle.checkpoint import read_json
from dalle.evaluation.metric_result import MetricResult

FORMAT = 3


@dataclass(frozen=True)
class MetricEntry:
    """One metric in metrics.json: the names of its numbers, their definition, settings, images and notes."""

    names: list[str]  # names of its numbers
    description: str
    settings: dict[str, Any]
    images: list[str]  # files, relative to the folder of metrics.json
    table: str
    notes: list[str]


@dataclass(frozen=True)
class MetricsFile:
    """Content of a metrics.json: numbers by name, an entry for each metric, and the models and data."""

    context: dict[str, Any]  # models and data
    numbers: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, MetricEntry] = field(default_factory=dict)

    def with_result(self, name: str, result: MetricResult, environment: dict[str, Any], folder: Path) -> "MetricsFile":
        """Return this content with the result of metric `name`, replacing an earlier one.

        Images are saved in `folder`. Numbers that are not finite are left out, with a note.
        """
        previous_names = self.metrics[name].names if name in self.metrics else []
        other_numbers = {key: value for key, value in self.numbers.items() if key not in previous_names}
        finite = {key: float(value) for key, value in result.numbers.items() if math.isfinite(value)}
        not_finite = [f"`{key}` is left out: it is not finite." for key in result.numbers if key not in finite]
        entry = MetricEntry(
            list(finite),
            result.description,
            {**result.settings, "environment": environment},
            [_save_image(image, folder / f"{stem}.png") for stem, image in result.images.items()],
            result.table,
            [*result.notes, *not_finite],
        )
        return MetricsFile(self.context, other_numbers | finite, self.metrics | {name: entry})

    def has_other_settings(self, name: str, result: MetricResult) -> bool:
        """Return True if the file has metric `name` with settings other than those of `result`."""
        if name not in self.metrics:
            return False
        settings = {key: value for key, value in self.metrics[name].settings.items() if key != "environment"}
        return settings != json.loads(json.dumps(result.settings))

    def write(self, path: Path) -> None:
        """Write the file at `path` atomically."""
        metrics = {name: asdict(entry) for name, entry in self.metrics.items()}
        content = {"format": FORMAT, **self.numbers, "context": self.context, "metrics": metrics}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _save_image(image: Image.Image, path: Path) -> str:
    """Save an image and return its path relative to the folder of metrics.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return f"{path.parent.name}/{path.name}"


def read_metrics_file(path: str | Path) -> MetricsFile:
    """Read a metrics.json. Raises ValueError if it is missing, damaged, or of another format."""
    path = Path(path)
    content = read_json(path)
    if "format" not in content:
        raise ValueError(f"{path} was not written by evaluate.py: it has no format")
    file_format = content.pop("format")
    if file_format != FORMAT:
        advice = "run evaluate.py again" if file_format in range(FORMAT) else "update the code"
        raise ValueError(f"{path} has format {file_format} but this version reads format {FORMAT}: {advice}")
    try:
        context, metrics = content.pop("context"), content.pop("metrics")
        return MetricsFile(context, content, {name: MetricEntry(**entry) for name, entry in metrics.items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} was not written by evaluate.py: {error}") from error


def read_metrics(path: str | Path) -> dict[str, float]:
    """Read the numbers of a metrics.json by name. Raises as `read_metrics_file` does."""
    return read_metrics_file(path).numbers


def read_or_create(path: Path, context: dict[str, Any]) -> MetricsFile | None:
    """Read the metrics.json at `path` to add results to it.

    Returns an empty one if there is no file, and None if the file is of another context or format.
    """
    empty_file = MetricsFile(json.loads(json.dumps(context)))
    if not path.is_file():
        return empty_file
    try:
        existing = read_metrics_file(path)
    except ValueError:
        return None
    return existing if existing.context == empty_file.context else None


def back_up(path: Path) -> Path:
    """Copy metrics.json to the first free name of metrics.1.json, metrics.2.json, ...; returns the copy's path.

    The page and the images are copied beside it, as metrics.1.md and metrics.1/.
    """
    copies = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    copy = next(candidate for candidate in copies if not candidate.exists())
    for original, backup in ((path, copy), (path.with_suffix(".md"), copy.with_suffix(".md"))):
        if original.is_file():
            content = original.read_text(encoding="utf-8")
            for prefix in ('"', "]("):  # before paths of images, in JSON and in Markdown
                content = content.replace(f"{prefix}{path.stem}/", f"{prefix}{copy.stem}/")
            backup.write_text(content, encoding="utf-8")
    if path.with_suffix("").is_dir():
        shutil.copytree(path.with_suffix(""), copy.with_suffix(""), ignore=shutil.ignore_patterns("sampled"))
    return copy
