"""Results of a sweep's jobs, read from their folders: finished, unfinished, failed, or not begun."""

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


# errors that damaged files in a folder may raise
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)


class Planned(NamedTuple):
    """A job of a sweep's file."""

    label: str
    seed: int
    folder: Path
    settings: Mapping[str, Any] = {}  # dotted; those that differ between planned jobs are varied by the sweep


@dataclass(frozen=True)
class Outcome:
    """Result of one job."""

    label: str  # its values, as written in tables
    seed: int
    folder: Path
    missing: str = ""  # reason why it has no measures; "" if finished
    measures: dict[str, float] = field(default_factory=dict)  # of held-out data, at the end
    curve: list[dict[str, float]] = field(default_factory=list)  # the same during training, each with its step
    steps: int = 0  # planned number of updates
    seconds: float = 0.0  # time spent in updates
    parameters: int = 0
    settings: dict[str, Any] = field(default_factory=dict)  # dotted; everything that identifies the run


def outcomes_of(ablation: AblationConfig, folder: Path, planned: Sequence[Planned]) -> list[Outcome]:
    """Results of the planned jobs, in order, then of the sweep's other jobs in `folder`, such as further seeds."""
    if ablation.command == "evaluate":
        return [point for each in planned for point in _points(ablation, each)]
    known = {each.folder for each in planned}
    paths = [path for path in sorted(folder.glob(f"*/{job.FILE}")) if path.parent not in known]
    found = [each for each in map(partial(_unplanned, ablation), paths) if each is not None]
    return [_trained(each) for each in [*planned, *found]]


def validation_lines(folder: Path) -> list[dict[str, float]]:
    """Read the validation lines of metrics.jsonl, in the order of steps; a truncated line is skipped."""
    return [line for line in _lines(folder) if line.get("split") == "val"]


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Measures of a validation line, without those that were not finite."""
    return {name: float(value) for name, value in line.items() if isinstance(value, float | int) and name != "step"}


def seconds_of(folder: Path) -> float:
    """Time that the run in `folder` spent in updates, in seconds."""
    return max((line["seconds"] for line in _lines(folder) if "seconds" in line), default=0.0)


def settings_of(folder: Path) -> dict[str, Any]:
    """Read the settings that identify a run: its stage, data and seed. Raises ValueError if there is no run state."""
    scalars = checkpoint.read_scalars(folder)
    if scalars is None:
        raise ValueError(f"{folder} is no training run, or one that has saved nothing yet: it has no state")
    return scalars["identity"]


def parameters_of(folder: Path) -> int:
    """Number of parameters of the model, read from the weights file's header."""
    with safe_open(folder / checkpoint.WEIGHTS, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def evaluated_settings(record: Record) -> dict[str, Any]:
    """Settings that an evaluation's numbers depend on, beside the models: its data, and the settings of its metrics."""
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
    """Results of an evaluation: one for each point that it measures, or one for all of it."""
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
    """Return the job of a job.json, if it belongs to this sweep and its folder was not moved; else None."""
    try:
        written = _job(path)
        if written is None or written["ablation"] != ablation.name or job.Job.read(written).name != path.parent.name:
            return None
        return Planned(label(written["values"]), written["seed"], path.parent)
    except BROKEN:
        return None  # it cannot be assigned to a sweep


def _job(path: Path) -> dict[str, Any] | None:
    """Read job.json. Returns None if there is none, raises ValueError if it cannot be read."""
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
            continue  # the last line, truncated
    return [line for line in found if isinstance(line, dict)]
