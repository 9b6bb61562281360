"""gpu-demo: run `make demo` on the GPU with three seeds, and check that deterministic runs are bitwise equal."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import ROOT, Options, Part, Results

SEEDS = (0, 1, 2)
STAGES = ("dvae", "clip", "transformer")
CAPTION = "a small red circle above a large blue square"
METRICS = ("judge_val_top", "judge_val_any", "judge_val_first", "judge_novel_top", "judge_novel_any", "dvae_hard_judge")
TOY = ["data.image_size=32", "data.train=64", "data.val=8", "data.novel=8"]
TOY += [
    f"stage.{stage}.{override}" for stage in STAGES for override in ("batch_size=8", "workers=0", "validation_images=4")
]
DETERMINISTIC_STEPS = 30


def train_and_evaluate(seed: int, options: Options) -> Results:
    """Train the demo with one seed, sample the README's caption and evaluate. Returns seconds and metrics.

    Resumes the training of an earlier call.
    """
    folder = options.folder / f"seed{seed}"
    workers = [f"stage.{stage}.workers=6" for stage in STAGES]  # one worker draws images too slowly for a GPU
    toy = [*TOY, *(f"stage.{stage}.steps=2" for stage in STAGES)] if options.quick else workers
    begin = time.time()
    _command(options, "train.py", "experiment=demo", f"seed={seed}", *_output(folder), *toy)
    trained = time.time()
    few = ["captions=2", "candidates=2", "pairs=4"] if options.quick else []
    counts = ["candidates=2", "keep=2"] if options.quick else ["candidates=512", "keep=8"]
    _command(options, "sample.py", f"checkpoint={folder}", f"caption={CAPTION}", *counts, f"out={folder / 'samples'}")
    sampled = time.time()
    _command(options, "evaluate.py", f"checkpoint={folder}", *few)
    shutil.copy(folder / "samples" / "grid.png", options.folder.parent / f"demo-seed{seed}.png")
    return {
        "seconds": {  # of this call only, without the time of an interrupted earlier call
            "training, this call": trained - begin,
            "sampling": sampled - trained,
            "evaluation": time.time() - sampled,
        },
        "seconds_in_updates": {stage: _seconds_in_updates(folder / stage) for stage in STAGES},
        "metrics": json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
    }


def check_determinism(options: Options) -> Results:
    """Train twice with deterministic=true and report if the weights are bitwise equal. Also compares ordinary runs."""
    steps = 2 if options.quick else DETERMINISTIC_STEPS
    toy = [*(TOY if options.quick else ["data.train=2000"]), *(f"stage.{stage}.steps={steps}" for stage in STAGES)]
    digests: dict[str, list[dict[str, str]]] = {}
    for deterministic in ("true",) if options.quick else ("true", "false"):
        for run in (1, 2):
            folder = options.folder / f"deterministic-{deterministic}-{run}"
            shutil.rmtree(folder, ignore_errors=True)
            _command(options, "train.py", "experiment=demo", *_output(folder), *toy, f"deterministic={deterministic}")
            weights = {stage: (folder / stage / "model.safetensors").read_bytes() for stage in STAGES}
            found = {stage: sha256(content).hexdigest()[:16] for stage, content in weights.items()}
            digests.setdefault(deterministic, []).append(found)
    same = {
        f"deterministic={name}": {stage: first[stage] == second[stage] for stage in STAGES}
        for name, (first, second) in digests.items()
    }
    if not all(same["deterministic=true"].values()):
        raise SystemExit(f"deterministic=true gave different weights in the second run: {same['deterministic=true']}")
    return {"steps": steps, "bitwise_equal": same}


def _output(folder: Path) -> list[str]:
    return [f"out={folder.parent}", f"run={folder.name}", "wandb.mode=disabled"]


def _command(options: Options, script: str, *overrides: str) -> None:
    command = [sys.executable, str(ROOT / script), f"device={options.device}", *overrides]
    print("$", *command[1:], flush=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        raise SystemExit(f"{script} {' '.join(overrides)} failed")


def _seconds_in_updates(folder: Path) -> float:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return max(line["seconds"] for line in lines if "seconds" in line)


def measurements(quick: bool) -> dict[str, Any]:
    seeds = SEEDS[:1] if quick else SEEDS
    first, *others = ((f"seed {seed}", partial(train_and_evaluate, seed)) for seed in seeds)
    return dict([first, ("deterministic runs", check_determinism), *others])


def page(found: dict[str, Results]) -> list[str]:
    lines = []
    if runs := {name: run for name, run in found.items() if name.startswith("seed")}:
        lines += [f"| | {' | '.join(runs)} | mean |", f"|---|{'---|' * (len(runs) + 1)}"]
        for metric in METRICS:
            values = [run["metrics"][metric] for run in runs.values() if metric in run["metrics"]]
            if values:
                cells = " | ".join(f"{value:.3g}" for value in values)
                lines.append(f"| {metric} | {cells} | {statistics.mean(values):.3g} |")
        for stage in STAGES:
            values = [run["seconds_in_updates"][stage] for run in runs.values()]
            cells = " | ".join(f"{value:.0f}" for value in values)
            lines.append(f"| seconds in updates, {stage} | {cells} | {statistics.mean(values):.0f} |")
        pictures = ", ".join(f"demo-{name.replace(' ', '')}.png" for name in runs)
        lines += ["", f"Pictures: {pictures}."]
    if repeats := found.get("deterministic runs"):
        lines += ["", f"Bitwise equal weights after two runs of {repeats['steps']} updates per stage:", ""]
        for setting, same in repeats["bitwise_equal"].items():
            answers = ", ".join(f"{stage} {'yes' if equal else 'no'}" for stage, equal in same.items())
            lines.append(f"- `{setting}`: {answers}")
    return lines


PART = Part("demo", measurements, page)
