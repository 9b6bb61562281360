"""What became of a sweep's jobs, read from their folders: finished, unfinished, failed, or never begun."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from dalle import checkpoint
from dalle.ablation import AblationConfig, label
from dalle.evaluation.record import Record, read_record
from dalle.training import job
from dalle.training.run import flat

METRICS, EVALUATED = "metrics.jsonl", "metrics.json"


# what a folder with anything broken in it may raise
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


class Planned(NamedTuple):
    """A job that a sweep's file asks for."""

    label: str
    seed: int
    folder: Path
    settings: Mapping[str, Any] = {}  # dotted; those that differ between planned jobs are what a sweep varies


@dataclass(frozen=True)
class Outcome:
    """What a job came to."""

    label: str  # its values, as tables call them
    seed: int
    folder: Path
    missing: str = ""  # why it has no measures; "" where it is finished
    measures: dict[str, float] = field(default_factory=dict)  # of held-out data, at the end
    curve: list[dict[str, float]] = field(default_factory=list)  # the same on the way, each with its step
    steps: int = 0  # updates that it was to make
    seconds: float = 0.0  # that they took
    parameters: int = 0
    settings: dict[str, Any] = field(default_factory=dict)  # dotted: all that makes it this run and no other


def outcomes_of(ablation: AblationConfig, folder: Path, planned: Sequence[Planned]) -> list[Outcome]:
    """The planned jobs in their order, then others of the same sweep that lie in `folder`, as with further seeds."""
    if ablation.verb == "evaluate":
        return [point for each in planned for point in _points(ablation, each)]
    known = {each.folder for each in planned}
    paths = [path for path in sorted(folder.glob(f"*/{job.FILE}")) if path.parent not in known]
    found = [each for each in map(partial(_unplanned, ablation), paths) if each is not None]
    return [_trained(each) for each in [*planned, *found]]


def validation_lines(folder: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says of held-out data, in the order of steps; a line that was cut off is left out."""
    return [line for line in _lines(folder) if line.get("split") == "val"]


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a validation line, without those that were not finite."""
    return {name: float(value) for name, value in line.items() if isinstance(value, float | int) and name != "step"}


def seconds_of(folder: Path) -> float:
    """Time that the run in `folder` spent in updates."""
    return max((line["seconds"] for line in _lines(folder) if "seconds" in line), default=0.0)


def settings_of(folder: Path) -> dict[str, Any]:
    """What makes the run in `folder` that run and no other: its stage, its data, its seed."""
    scalars = checkpoint.read_scalars(folder)
    if scalars is None:
        raise ValueError(f"{folder} is no training run, or one that has saved nothing yet: it has no state")
    return scalars["identity"]


def parameters_of(folder: Path) -> int:
    """Numbers in the model, from the file's header alone."""
    with safe_open(folder / checkpoint.WEIGHTS, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def evaluated_settings(record: Record) -> dict[str, Any]:
    """What an evaluation's numbers depend on, beside the models: its data, and the settings of its parts."""
    parts = {name: dict(part.settings) for name, part in record.parts.items()}
    for settings in parts.values():
        settings.pop("environment", None)
    return {"data": record.subject.get("data", {}), **parts}


def _trained(planned: Planned) -> Outcome:
    name, seed, folder, _ = planned
    try:
        written = _job(folder / job.FILE)
        if written is None:
            return Outcome(name, seed, folder, "not begun")
        if written["status"] == job.FAILED:
            return Outcome(name, seed, folder, f"failed: {written['error']}")
        curve = validation_lines(folder)
        if written["status"] != job.FINISHED or not curve:
            last = max((line["step"] for line in _lines(folder)), default=0)
            return Outcome(name, seed, folder, f"unfinished, last heard of at step {last}", curve=curve)
        settings = settings_of(folder)
        steps, end = settings["stage"]["steps"], curve[-1]["step"]
        if end != steps:
            return Outcome(name, seed, folder, f"{METRICS} ends at step {end} of {steps}", curve=curve)
        spent, parameters = seconds_of(folder), parameters_of(folder)
        measures = numbers_of(curve[-1])
    except BROKEN as error:
        why = str(error) if isinstance(error, ValueError) else f"cannot be read: {type(error).__name__}: {error}"
        return Outcome(name, seed, folder, why)
    return Outcome(name, seed, folder, "", measures, curve, steps, spent, parameters, flat(settings))


def _points(ablation: AblationConfig, planned: Planned) -> Iterable[Outcome]:
    """An evaluation's outcomes: one for each of the points that it measures, or one for all of it."""
    name, seed, folder, _ = planned
    path = folder / EVALUATED
    points = ablation.points or [name]
    if not path.is_file():
        return [Outcome(point, seed, folder, "not begun, or unfinished") for point in points]
    try:
        record = read_record(path)
    except ValueError as error:
        return [Outcome(point, seed, folder, str(error)) for point in points]
    return [_point(ablation, Planned(point, seed, folder), record) for point in points]


def _point(ablation: AblationConfig, planned: Planned, record: Record) -> Outcome:
    names = {each: each.format(planned.label) for each in ablation.measures}
    found = {each: record.numbers[name] for each, name in names.items() if name in record.numbers}
    settings = flat({"models": record.subject.get("models", {}), **evaluated_settings(record)})
    missing = "" if found else f"{EVALUATED} has no {' or '.join(names.values())}"
    return Outcome(*planned[:3], missing, found, settings=settings)


def _unplanned(ablation: AblationConfig, path: Path) -> Planned | None:
    """The job that a job.json speaks of, if it is one of this sweep, in its own place: one moved aside is none."""
    try:
        written = _job(path)
        if written is None or written["ablation"] != ablation.name or job.Job.read(written).name != path.parent.name:
            return None
        return Planned(label(written["values"]), written["seed"], path.parent)
    except BROKEN:
        return None  # nobody knows whose it is


def _job(path: Path) -> dict[str, Any] | None:
    """What job.json says; None where there is none. Raises ValueError where it cannot be read."""
    if not path.is_file():
        return None
    written = checkpoint.read_json(path)
    if written.get("format") != job.FORMAT:
        found = written.get("format")
        raise ValueError(f"{path} has format {found} but this version reads format {job.FORMAT}: train it again")
    return written


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last one, cut off
    return [line for line in found if isinstance(line, dict)]
