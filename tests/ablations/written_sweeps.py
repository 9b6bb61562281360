"""Sweeps as train.py leaves them, without the training."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dalle import checkpoint
from dalle.ablation import AblationConfig, Expectation, label
from dalle.ablations.outcomes import Planned
from dalle.training.job import FORMAT, Job

ABLATION = AblationConfig(
    name="taste",
    letter="z",
    question="Which taste is best?",
    claim="Salt wins over sugar.",
    vary={"stage.taste": "taste"},
    paper="salt",
    measures={"error": "low", "codes": "high"},
    expect=[Expectation("error", "salt"), Expectation("codes", "salt", "tie", ["sugar"])],
)


def job(taste: str, seed: int) -> Job:
    return Job("taste", "laptop", {"stage.taste": taste}, seed)


def planned(out: Path, tastes: tuple[str, ...] = ("salt", "sugar"), seeds: tuple[int, ...] = (0, 1)) -> list[Planned]:
    jobs = [job(taste, seed) for seed in seeds for taste in tastes]
    return [Planned(label(each.values), each.seed, each.folder(out)) for each in jobs]


def leave(
    out: Path, which: Job, measures: dict[str, Any], status: str = "finished", error: str = "", parameters: int = 6
) -> Path:
    """The folder of a job of ten updates that was validated after five and, with `measures`, after ten."""
    folder = which.folder(out)
    folder.mkdir(parents=True)
    written = {"format": FORMAT, **vars(which), "status": status, "error": error}
    (folder / "job.json").write_text(json.dumps(written))
    lines = [{"step": 5, "split": "val", **{name: 2 * value for name, value in measures.items()}}]
    lines += [{"step": 10, "split": "train", "seconds": 60.0}, {"step": 10, "split": "val", **measures}]
    if status == "finished":
        identity = {"stage": {"name": "taste", "steps": 10, "taste": which.values["stage.taste"]}, "seed": which.seed}
        checkpoint.save_state(folder, 10, {}, {"identity": identity})
        save_file({"weight": torch.zeros(parameters)}, folder / checkpoint.WEIGHTS)
    else:
        lines = lines[:1]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder
