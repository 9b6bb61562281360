"""What became of a sweep's jobs, read from their folders: finished, unfinished, failed, or never begun."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from dalle import checkpoint
from dalle.ablation import AblationConfig, label
from dalle.evaluation.record import read_metrics
from dalle.reports import job

METRICS, EVALUATED = "metrics.jsonl", "metrics.json"


class Planned(NamedTuple):
    """A job that a sweep's file asks for."""

    label: str
    seed: int
    folder: Path


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


def outcomes_of(ablation: AblationConfig, folder: Path, planned: Sequence[Planned]) -> list[Outcome]:
    """The planned jobs in their order, then others of the same sweep that lie in `folder`, as with further seeds."""
    if ablation.verb == "evaluate":
        return [point for each in planned for point in _points(ablation, each)]
    known = {each.folder for each in planned}
    found = []
    for path in sorted(folder.glob(f"*/{job.FILE}")):
        written = _job(path)
        if path.parent not in known and isinstance(written, dict) and _is_job_of(ablation, path.parent, written):
            found.append(Planned(label(written["values"]), written["seed"], path.parent))
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


def _trained(planned: Planned) -> Outcome:
    name, seed, folder = planned
    path = folder / job.FILE
    if not path.is_file():
        return Outcome(name, seed, folder, "not begun")
    written = _job(path)
    if isinstance(written, str):
        return Outcome(name, seed, folder, written)
    if written["status"] == job.FAILED:
        return Outcome(name, seed, folder, f"failed: {written['error']}")
    curve = validation_lines(folder)
    if written["status"] != job.FINISHED or not curve:
        last = max((line["step"] for line in _lines(folder)), default=0)
        return Outcome(name, seed, folder, f"unfinished, last heard of at step {last}", curve=curve)
    steps = settings_of(folder)["stage"]["steps"]
    return Outcome(
        name, seed, folder, "", numbers_of(curve[-1]), curve, steps, seconds_of(folder), parameters_of(folder)
    )


def _points(ablation: AblationConfig, planned: Planned) -> Iterable[Outcome]:
    """An evaluation's outcomes: one for each of the points that it measures, or one for all of it."""
    name, seed, folder = planned
    path = folder / EVALUATED
    points = ablation.points or [name]
    if not path.is_file():
        return [Outcome(point, seed, folder, "not begun, or unfinished") for point in points]
    try:
        numbers = read_metrics(path)
    except ValueError as error:
        return [Outcome(point, seed, folder, str(error)) for point in points]
    return [
        Outcome(
            point,
            seed,
            folder,
            "",
            {each: numbers[each.format(point)] for each in ablation.measures if each.format(point) in numbers},
        )
        for point in points
    ]


def _job(path: Path) -> dict[str, Any] | str:
    """What job.json says, or why it cannot be read."""
    try:
        written = checkpoint.read_json(path)
    except ValueError as error:
        return str(error)
    if written.get("format") != job.FORMAT:
        return f"{path} has format {written.get('format')} but this version reads format {job.FORMAT}: train it again"
    return written


def _is_job_of(ablation: AblationConfig, folder: Path, written: dict[str, Any]) -> bool:
    """Whether it is a job of this sweep, in its own place: one that was moved aside is none."""
    return written["ablation"] == ablation.name and job.Job.read(written).name == folder.name


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last one, cut off
    return found
