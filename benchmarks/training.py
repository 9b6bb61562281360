"""Speed-up from the CPU configuration when training the demo's dVAE: python benchmarks/training.py."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor
from dalle.cli.config import compose
from dalle.stages.data_module import StageContext
from dalle.stages.dvae import DVAEStage
from dalle.training.cpu import keep_freed_memory
from dalle.training.loop import train
from dalle.training.run import Run

# each in its own process, because freed memory is kept until a process ends
SET_UPS = {
    "as it comes": [],
    "freed memory kept": ["memory"],
    "denormals as zero": ["denormals"],
    "both": ["memory", "denormals"],
}
# value added to the logits of the first code; in a collapsed dVAE of an ablation it was about 100 above the others
MODELS = {"a new dVAE": 0.0, "a collapsed one": 90.0}
HEAD = 3  # warm-up steps, in which pages and threads are set up


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.turn:
        set_up, lead = options.turn
        print(json.dumps(images_per_second(SET_UPS[set_up], float(lead), options.steps, options.threads)))
        return
    print(f"{processor()}, {options.threads} threads; speeds beside the first of each round, {options.rounds} rounds")
    speeds: dict[str, dict[str, list[float]]] = {model: {each: [] for each in SET_UPS} for model in MODELS}
    for model, set_up in (turn for _ in range(options.rounds) for turn in turns()):
        speeds[model][set_up].append(asked(set_up, MODELS[model], options))
    print(f"\n{table(speeds)}")
    facts: dict[str, Any] = {"processor": processor(), "images_per_second": speeds, **vars(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(facts, indent=2, default=str) + "\n")
    print(f"\nfacts  {options.out}")


def turns() -> Iterator[tuple[str, str]]:
    return ((model, set_up) for model in MODELS for set_up in SET_UPS)


def asked(set_up: str, lead: float, options: argparse.Namespace) -> float:
    """Measure the speed in a new process and return it."""
    turn = [sys.executable, __file__, "--turn", set_up, str(lead)]
    turn += ["--steps", str(options.steps), "--threads", str(options.threads)]
    return json.loads(subprocess.run(turn, check=True, capture_output=True, text=True).stdout)


def images_per_second(set_up: list[str], lead: float, steps: int, threads: int) -> float:
    """Return images per second of the project's training loop, over the last `steps` updates."""
    torch.set_num_threads(threads)
    if "memory" in set_up:
        keep_freed_memory()
    if "denormals" in set_up:
        torch.set_flush_denormal(True)
    watched = ["log_every=1", "validate_every=0", "preview_every=0", "save_every=0", "validation_pictures=1"]
    cold = "temperature={kind:constant,start:0.0625}"  # use the schedule's final temperature from the start
    overrides = [f"stage.{each}" for each in (f"steps={HEAD + steps}", cold, *watched)]
    config = compose("train", ["stage=dvae", "preset=tiny", "wandb.mode=disabled", *overrides])
    stage = DVAEStage(config.stage, config.data, StageContext(0, torch.device("cpu"), None, Path("tokens")))
    bias = list(stage.model.encoder.parameters())[-1]
    with torch.no_grad():
        bias[0] += lead
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        train(stage, config.stage, Run(Path(folder), {"stage": {"steps": HEAD + steps}}, wandb=config.wandb))
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    return steps * config.stage.batch_size / (seconds[-1] - seconds[HEAD - 1])


def table(speeds: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table of each set-up's speed relative to the first: median and range over the rounds."""
    lines = [f"| times `{next(iter(SET_UPS))}` | {' | '.join(speeds)} |", f"|---|{'---|' * len(speeds)}"]
    for set_up in SET_UPS:
        cells = []
        for found in speeds.values():
            usual = found[next(iter(SET_UPS))]
            ratios = [speed / base for speed, base in zip(found[set_up], usual, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {set_up} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="updates that are timed (8)")
    parser.add_argument("--rounds", type=int, help="how often everybody has a turn (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two updates, once, to see that all of it runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/training.json"), help="file of all facts")
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)  # internal: one measurement in its own process
    options = parser.parse_args(arguments)
    options.steps = options.steps or (2 if options.quick else 8)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main()
