"""Comparison of runs: different settings, final measures, curves, and samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dalle import checkpoint
from dalle.ablations.outcomes import (
    EVALUATED,
    evaluated_settings,
    numbers_of,
    parameters_of,
    seconds_of,
    settings_of,
    validation_lines,
)
from dalle.data import open_source, read_config
from dalle.evaluation.metrics.captions import first_captions
from dalle.evaluation.record import read_record
from dalle.sampling.labelled_grid import ImageRow, labelled_grid
from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig
from dalle.training.run import flat


@dataclass(frozen=True)
class ComparedRun:
    """Settings, curve and numbers of a run, finished or not."""

    name: str
    folder: Path
    settings: dict[str, Any]
    curve: list[dict[str, Any]]  # validation lines, each with its step
    evaluated: dict[str, float]  # numbers of its evaluation, if evaluate.py was run
    notes: list[str]  # files that could not be read, and progress


def read_run(folder: Path, name: str) -> ComparedRun:
    """Read a run. Raises ValueError if `folder` has no run, or one without validation yet."""
    settings, curve = dict(settings_of(folder)), validation_lines(folder)
    if not curve:
        raise ValueError(f"{folder} has no validation in its metrics.jsonl yet: nothing to set side by side")
    evaluated, notes = {}, []
    if (folder / EVALUATED).is_file():
        try:
            record = read_record(folder / EVALUATED)
            evaluated, settings["evaluation"] = record.numbers, evaluated_settings(record)
        except ValueError as error:
            notes.append(str(error))
    done, steps = curve[-1]["step"], settings["stage"]["steps"]
    if done < steps:
        notes.append(f"unfinished: measures are those of step {done} of {steps}")
    return ComparedRun(name, folder, settings, curve, evaluated, notes)


def read_runs(folders: Sequence[str]) -> list[ComparedRun]:
    """Read the runs. Each is named by the end of its path, as long as needed to be unique."""
    paths = [Path(folder) for folder in folders]
    if len(set(paths)) < max(2, len(paths)):
        raise ValueError(f"runs={','.join(folders)}: name at least two run folders to set side by side, each once")
    parts = next(count for count in range(1, 64) if len({path.parts[-count:] for path in paths}) == len(set(paths)))
    return [read_run(path, "/".join(path.parts[-parts:])) for path in paths]


def page(runs: Sequence[ComparedRun], curves: str, sheet: str | None) -> str:
    """Write the comparison as Markdown; `curves` and `sheet` are image paths relative to the page."""
    names = [run.name for run in runs]
    lines = [f"# {' beside '.join(names)}", ""]
    lines += [f"> {run.name}: {note}\n" for run in runs for note in run.notes]
    lines += ["## Settings that differ", "", *_table(names, _differing([run.settings for run in runs])), ""]
    last = [{"step": run.curve[-1]["step"], **numbers_of(run.curve[-1])} for run in runs]
    cost = [{"parameters": parameters_of(run.folder), "seconds": seconds_of(run.folder)} for run in runs]
    both = [{**of, **spent, **run.evaluated} for of, spent, run in zip(last, cost, runs, strict=True)]
    measures = {
        name: [each.get(name, "") for each in both] for name in dict.fromkeys(key for each in both for key in each)
    }
    lines += ["## Measures at the end", "", *_table(names, measures), "", f"![curves]({curves})"]
    if sheet is not None:
        lines += ["", "## The same captions and seeds", "", f"![pictures]({sheet})"]
    return "\n".join(lines) + "\n"


def sample_grid(
    runs: Sequence[ComparedRun], captions: int, candidates: int, seed: int, device: torch.device
) -> Image.Image | None:
    """Image grid of samples of each transformer for the same held-out captions and seed. None if a run has none."""
    if any(run.settings["stage"]["name"] != "transformer" for run in runs):
        return None
    _, meta = checkpoint.read_config(runs[0].folder, "transformer")
    texts = first_captions(open_source(read_config(meta["data"]), "val"), captions)
    drawn = {
        run.name: DALLE.load(run.folder, device).generate_many(
            texts, SamplingConfig(candidates=candidates, keep=candidates, seed=seed), truncate=True
        )
        for run in runs
    }
    rows = [
        ImageRow(
            f"{text} | {name}", [results[number].images[place] for place in _in_order(results[number].candidates)], None
        )
        for number, text in enumerate(texts)
        for name, results in drawn.items()
    ]
    return labelled_grid(rows, columns=candidates)


def _in_order(candidates: Sequence[int]) -> list[int]:
    """Indices of candidates 0, 1, ... in a ranked list, so that each column has one seed."""
    return sorted(range(len(candidates)), key=candidates.__getitem__)


def _differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    told = [flat(each) for each in settings]
    keys = dict.fromkeys(key for each in told for key in each)
    rows = {key: [each.get(key, "") for each in told] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _table(names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> list[str]:
    if not rows:
        return ["None."]
    cells = (
        [f"`{key}`", *(f"{each:.5g}" if isinstance(each, float) else str(each) for each in row)]
        for key, row in rows.items()
    )
    return [f"| | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}", *(f"| {' | '.join(row)} |" for row in cells)]
