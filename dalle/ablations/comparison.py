"""Comparison of runs: different settings, final metrics, curves, and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dalle import checkpoint
from dalle.ablations.run_results import (
    EVALUATION_METRICS,
    evaluation_settings,
    metrics_of,
    parameter_count,
    run_settings,
    training_seconds,
    validation_lines,
)
from dalle.config_validation import flatten
from dalle.data import captioned_only, config_from_dict, open_source
from dalle.evaluation.metrics.caption_samples import first_captions
from dalle.evaluation.metrics_file import read_metrics_file
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig


@dataclass(frozen=True)
class ComparedRun:
    """One training run, finished or not: its settings, validation curve and evaluation."""

    name: str
    folder: Path
    settings: dict[str, Any]
    curve: list[dict[str, Any]]  # validation lines, each with its step
    evaluation_metrics: dict[str, float]  # metrics of its evaluation, if evaluate.py was run
    notes: list[str]  # files that could not be read, and progress


def read_run(folder: Path, name: str) -> ComparedRun:
    """Read the run in `folder`. Raises ValueError if there is none, or one without validation yet."""
    settings, curve = dict(run_settings(folder)), validation_lines(folder)
    if not curve:
        raise ValueError(f"{folder} has no validation metrics in metrics.jsonl yet, so it cannot be compared")
    evaluated, notes = {}, []
    # beside the run, or beside the stages of stage=all, where `evaluate.py checkpoint=` of their folder writes it
    metrics_paths = (folder / EVALUATION_METRICS, folder.parent / EVALUATION_METRICS)
    if path := next((metrics_path for metrics_path in metrics_paths if metrics_path.is_file()), None):
        try:
            metrics_file = read_metrics_file(path)
            evaluated, settings["evaluation"] = metrics_file.numbers, evaluation_settings(metrics_file)
        except ValueError as error:
            notes.append(str(error))
    last_step, steps = curve[-1]["step"], settings["stage"]["steps"]
    if last_step < steps:
        notes.append(f"unfinished: metrics are those of step {last_step} of {steps}")
    return ComparedRun(name, folder, settings, curve, evaluated, notes)


def read_runs(folders: Sequence[str]) -> list[ComparedRun]:
    """Read the runs in `folders`. Each is named by the end of its path, as long as needed to be unique."""
    paths = [Path(folder) for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise ValueError(f"runs={','.join(folders)}: give at least two different run folders to compare")
    num_parts = next(count for count in range(1, 64) if len({path.parts[-count:] for path in paths}) == len(set(paths)))
    return [read_run(path, "/".join(path.parts[-num_parts:])) for path in paths]


def comparison_page(runs: Sequence[ComparedRun], curves: str, samples: str | None) -> str:
    """Return the comparison as Markdown; `curves` and `samples` are image paths relative to the page."""
    names = [run.name for run in runs]
    lines = [f"# {' and '.join(names)}", ""]
    lines += [f"> {run.name}: {note}\n" for run in runs for note in run.notes]
    lines += ["## Settings that differ", "", *_table(names, _different_settings([run.settings for run in runs])), ""]
    columns = [_final_metrics(run) for run in runs]
    rows = {
        name: [column.get(name, "") for column in columns]
        for name in dict.fromkeys(name for column in columns for name in column)
    }
    lines += ["## Final metrics", "", *_table(names, rows), "", f"![curves]({curves})"]
    if samples is not None:
        lines += ["", "## Samples for the same captions and seeds", "", f"![samples]({samples})"]
    return "\n".join(lines) + "\n"


def _final_metrics(run: ComparedRun) -> dict[str, Any]:
    """Return the last validation metrics, the size and time of a run, and the metrics of its evaluation, by name."""
    cost = {"parameters": parameter_count(run.folder), "seconds": training_seconds(run.folder)}
    return {"step": run.curve[-1]["step"], **metrics_of(run.curve[-1]), **cost, **run.evaluation_metrics}


def sample_grid(
    runs: Sequence[ComparedRun], captions: int, candidates: int, seed: int, device: torch.device
) -> Image.Image | None:
    """Return a grid of images that the runs' transformers sample for the same held-out captions and the same seed.

    captions: their number. candidates: images per caption and run. Returns None if a run is not of the transformer
    stage. Raises CheckpointError if a model cannot be read, and ValueError if the data set cannot be opened.
    """
    if any(run.settings["stage"]["name"] != "transformer" for run in runs):
        return None
    _, meta = checkpoint.read_config(runs[0].folder, "transformer")
    texts = first_captions(open_source(captioned_only(config_from_dict(meta["data"])), "val"), captions)
    config = SamplingConfig(candidates=candidates, keep=candidates, seed=seed)
    samples = {run.name: DALLE.load(run.folder, device).generate_many(texts, config, truncate=True) for run in runs}
    rows = [
        ImageRow(
            f"{text} | {name}",
            [results[index].images[rank] for rank in _ranks_in_order(results[index].candidates)],
            None,
        )
        for index, text in enumerate(texts)
        for name, results in samples.items()
    ]
    return labelled_grid(rows, columns=candidates)


def _ranks_in_order(candidates: Sequence[int]) -> list[int]:
    """Return the ranks of candidates 0, 1, ..., so that each column of a grid has the samples of one candidate.

    candidates: candidate numbers, best first.
    """
    return sorted(range(len(candidates)), key=candidates.__getitem__)


def _different_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that differ, by dotted name: the value in each run, or "" where a run lacks the setting."""
    flattened = [flatten(dict(mapping)) for mapping in settings]
    keys = dict.fromkeys(key for flat in flattened for key in flat)
    rows = {key: [flat.get(key, "") for flat in flattened] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _table(names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table with a column for each run in `names`. rows: values by row title."""
    if not rows:
        return ["None."]
    cells = (
        [f"`{key}`", *(f"{value:.5g}" if isinstance(value, float) else str(value) for value in row)]
        for key, row in rows.items()
    )
    return [f"| | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}", *(f"| {' | '.join(row)} |" for row in cells)]
