"""Results of a sweep's jobs, read from their folders: finished, unfinished, failed, or not started."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dalle import checkpoint, weights_files
from dalle.ablation_config import AblationConfig, format_values
from dalle.config_validation import flatten
from dalle.evaluation.metrics_file import MetricsFile, read_metrics_file
from dalle.training import job, state_files

TRAINING_METRICS, EVALUATION_METRICS = "metrics.jsonl", "metrics.json"
BATCH_NORM_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")  # in weights files, not parameters


# errors that damaged files in a folder may raise
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class PlannedRun(NamedTuple):
    """One job that a sweep's file plans: its values, seed, folder and settings."""

    label: str
    seed: int
    folder: Path
    settings: Mapping[str, Any] = {}  # dotted; those that differ between planned jobs are varied by the sweep


@dataclass(frozen=True)
class RunResult:
    """Result of one job of a sweep: its metrics, or the reason why it has none."""

    label: str  # its values, as written in tables
    seed: int
    folder: Path
    missing_reason: str = ""  # reason why it has no metrics; "" if finished
    metrics: dict[str, float] = field(default_factory=dict)  # of held-out data, at the end
    curve: list[dict[str, float]] = field(default_factory=list)  # the same during training, each with its step
    steps: int = 0  # planned number of updates
    seconds: float = 0.0  # time spent in updates
    parameters: int = 0
    settings: dict[str, Any] = field(default_factory=dict)  # dotted; everything that identifies the run


def read_results(ablation: AblationConfig, folder: Path, planned: Sequence[PlannedRun]) -> list[RunResult]:
    """Return results of the planned jobs, in order, then of other jobs of the sweep in `folder`: further seeds."""
    if ablation.command == "evaluate":
        return [result for run in planned for result in _evaluation_results(ablation, run)]
    planned_folders = {run.folder for run in planned}
    paths = [path for path in sorted(folder.glob(f"*/{job.FILE}")) if path.parent not in planned_folders]
    unplanned = [run for run in map(partial(_unplanned_run, ablation), paths) if run is not None]
    return [_training_result(run) for run in [*planned, *unplanned]]


def validation_lines(folder: Path) -> list[dict[str, float]]:
    """Read the validation lines of metrics.jsonl in `folder`, in the order of steps; a truncated line is skipped."""
    return [line for line in _read_lines(folder) if line.get("split") == "val"]


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in a line of metrics.jsonl, by name, without those that were not finite."""
    return {name: float(value) for name, value in line.items() if isinstance(value, float | int) and name != "step"}


def training_seconds(folder: Path) -> float:
    """Return the time that the run in `folder` spent in updates, in seconds."""
    return max((line["seconds"] for line in _read_lines(folder) if "seconds" in line), default=0.0)


def run_settings(folder: Path) -> dict[str, Any]:
    """Read the settings that identify a run: its stage, data and seed. Raises ValueError if there is no run state."""
    scalars = state_files.read_scalars(folder)
    if scalars is None:
        stages = [stage for stage in sorted(folder.glob("*/")) if state_files.read_scalars(stage) is not None]
        advice = f"; it holds runs of single stages, such as {stages[0]}" if stages else ""
        raise ValueError(f"{folder} is not a training run, or has not saved a checkpoint yet: it has no state{advice}")
    return scalars["identity"]


def parameter_count(folder: Path) -> int:
    """Return the number of parameters of the model in `folder`, read from the weights file's header."""
    shapes = weights_files.read_weights_shapes(folder)
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BATCH_NORM_BUFFERS))


def evaluation_settings(content: MetricsFile) -> dict[str, Any]:
    """Return the settings that an evaluation's numbers depend on, beside the models: of its data and its metrics."""
    by_metric = {name: dict(entry.settings) for name, entry in content.metrics.items()}
    for settings in by_metric.values():
        settings.pop("environment", None)
    return {"data": content.context.get("data", {}), **by_metric}


def _training_result(run: PlannedRun) -> RunResult:
    label, seed, folder, _ = run
    try:
        status = _read_job(folder / job.FILE)
        if status is None:
            return RunResult(label, seed, folder, "not started")
        if status["status"] == job.FAILED:
            return RunResult(label, seed, folder, f"failed: {status['error']}")
        curve = validation_lines(folder)
        if status["status"] != job.FINISHED or not curve:
            last_logged = max((line["step"] for line in _read_lines(folder)), default=0)
            return RunResult(label, seed, folder, f"unfinished, last logged step {last_logged}", curve=curve)
        settings = run_settings(folder)
        steps, last_step = settings["stage"]["steps"], curve[-1]["step"]
        if last_step != steps:
            return RunResult(
                label, seed, folder, f"{TRAINING_METRICS} ends at step {last_step} of {steps}", curve=curve
            )
        seconds, parameters = training_seconds(folder), parameter_count(folder)
        metrics = metrics_of(curve[-1])
    except READ_ERRORS as error:
        reason = str(error) if isinstance(error, ValueError) else f"cannot be read: {type(error).__name__}: {error}"
        return RunResult(label, seed, folder, reason)
    return RunResult(label, seed, folder, "", metrics, curve, steps, seconds, parameters, flatten(settings))


def _evaluation_results(ablation: AblationConfig, run: PlannedRun) -> Iterable[RunResult]:
    """Return the results of an evaluation: one for each value of the ablation's axis, or one if it has no axis."""
    label, seed, folder, _ = run
    path = folder / EVALUATION_METRICS
    labels = ablation.axis_values or [label]
    if not path.is_file():
        return [RunResult(value, seed, folder, "not started, or unfinished") for value in labels]
    try:
        content = read_metrics_file(path)
    except ValueError as error:
        return [RunResult(value, seed, folder, str(error)) for value in labels]
    return [_evaluation_result(ablation, PlannedRun(value, seed, folder), content) for value in labels]


def _evaluation_result(ablation: AblationConfig, run: PlannedRun, content: MetricsFile) -> RunResult:
    names = {template: template.format(run.label) for template in ablation.metrics}
    metrics = {template: content.numbers[name] for template, name in names.items() if name in content.numbers}
    settings = flatten({"models": content.context.get("models", {}), **evaluation_settings(content)})
    missing = "" if metrics else f"{EVALUATION_METRICS} has no {' or '.join(names.values())}"
    return RunResult(*run[:3], missing, metrics, settings=settings)


def _unplanned_run(ablation: AblationConfig, path: Path) -> PlannedRun | None:
    """Return the job of a job.json, if it belongs to this sweep and its folder was not moved; else None."""
    try:
        status = _read_job(path)
        if status is None or status["ablation"] != ablation.name or job.Job.from_dict(status).name != path.parent.name:
            return None
        return PlannedRun(format_values(status["values"]), status["seed"], path.parent)
    except READ_ERRORS:
        return None  # it cannot be assigned to a sweep


def _read_job(path: Path) -> dict[str, Any] | None:
    """Read the job.json at `path`. Returns None if there is none, raises ValueError if it cannot be read."""
    if not path.is_file():
        return None
    content = checkpoint.read_json(path)
    if content.get("format") != job.FORMAT:
        file_format = content.get("format")
        raise ValueError(f"{path} has format {file_format} but this version reads format {job.FORMAT}: train it again")
    return content


def _read_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / TRAINING_METRICS
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # the last line, truncated
    return [line for line in lines if isinstance(line, dict)]
