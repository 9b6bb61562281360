"""Write the files of a sweep as train.py does, without training."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dalle.ablation_config import AblationConfig, Expectation, format_values
from dalle.ablations.run_results import PlannedRun
from dalle.training import state_files
from dalle.training.job import FORMAT, Job
from dalle.weights_files import WEIGHTS

ABLATION = AblationConfig(
    name="taste",
    letter="z",
    question="Which taste is best?",
    claim="Salt wins over sugar.",
    vary={"stage.taste": "taste"},
    paper_value="salt",
    metrics={"error": "lower", "codes": "higher"},
    expect=[Expectation("error", "salt"), Expectation("codes", "salt", "tie", ["sugar"])],
)


def job(taste: str, seed: int) -> Job:
    return Job("taste", "laptop", {"stage.taste": taste}, seed)


def planned(
    out: Path, tastes: tuple[str, ...] = ("salt", "sugar"), seeds: tuple[int, ...] = (0, 1)
) -> list[PlannedRun]:
    jobs = [job(taste, seed) for seed in seeds for taste in tastes]
    return [PlannedRun(format_values(sweep_job.values), sweep_job.seed, sweep_job.folder(out)) for sweep_job in jobs]


def write_run(
    out: Path, which: Job, metrics: dict[str, Any], status: str = "finished", error: str = "", parameters: int = 6
) -> Path:
    """Write the folder of a job of ten updates, validated after five and, with `metrics`, after ten; returns it."""
    folder = which.folder(out)
    folder.mkdir(parents=True)
    written = {"format": FORMAT, **vars(which), "status": status, "error": error}
    (folder / "job.json").write_text(json.dumps(written))
    lines = [{"step": 5, "split": "val", **{name: 2 * value for name, value in metrics.items()}}]
    lines += [{"step": 10, "split": "train", "seconds": 60.0}, {"step": 10, "split": "val", **metrics}]
    if status == "finished":
        identity = {"stage": {"name": "taste", "steps": 10, "taste": which.values["stage.taste"]}, "seed": which.seed}
        state_files.save_state(folder, 10, {}, {"identity": identity})
        save_file({"weight": torch.zeros(parameters)}, folder / WEIGHTS)
    else:
        lines = lines[:1]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder
