"""Speed-up from the CPU configuration when training the demo's dVAE: python benchmarks/cpu_settings.py."""

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
CONFIGURATIONS = {
    "unmodified torch": [],
    "freed memory kept": ["memory"],
    "denormals as zero": ["denormals"],
    "both": ["memory", "denormals"],
}
# value added to the logits of the first code; in a collapsed dVAE of an ablation it was about 100 above the others
MODELS = {"new dVAE": 0.0, "collapsed dVAE": 90.0}
WARMUP_STEPS = 3  # warm-up steps, in which pages and threads are set up


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.one_run:
        configuration, logit_offset = options.one_run
        print(
            json.dumps(
                images_per_second(CONFIGURATIONS[configuration], float(logit_offset), options.steps, options.threads)
            )
        )
        return
    print(f"{processor()}, {options.threads} threads; {options.rounds} rounds; speeds relative to the first one")
    speeds: dict[str, dict[str, list[float]]] = {model: {name: [] for name in CONFIGURATIONS} for model in MODELS}
    for model, configuration in (run for _ in range(options.rounds) for run in runs()):
        speeds[model][configuration].append(measure_in_process(configuration, MODELS[model], options))
    print(f"\n{table(speeds)}")
    results: dict[str, Any] = {"processor": processor(), "images_per_second": speeds, **vars(options)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2, default=str) + "\n")
    print(f"\nresults  {options.out}")


def runs() -> Iterator[tuple[str, str]]:
    return ((model, configuration) for model in MODELS for configuration in CONFIGURATIONS)


def measure_in_process(configuration: str, logit_offset: float, options: argparse.Namespace) -> float:
    """Return `images_per_second` of the configuration with this name, measured in a new process."""
    command = [sys.executable, __file__, "--one-run", configuration, str(logit_offset)]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def images_per_second(configuration: list[str], logit_offset: float, steps: int, threads: int) -> float:
    """Return images per second of the training loop with the parts of a CPU configuration, over `steps` updates.

    logit_offset: added to one logit bias of the dVAE's encoder.
    """
    torch.set_num_threads(threads)
    if "memory" in configuration:
        keep_freed_memory()
    if "denormals" in configuration:
        torch.set_flush_denormal(True)
    logging = ["log_every=1", "validate_every=0", "preview_every=0", "save_every=0", "validation_images=1"]
    cold = "temperature={kind:constant,start:0.0625}"  # use the schedule's final temperature from the start
    overrides = [f"stage.{override}" for override in (f"steps={WARMUP_STEPS + steps}", cold, *logging)]
    config = compose("train", ["stage=dvae", "preset=tiny", "wandb.mode=disabled", *overrides])
    stage = DVAEStage(config.stage, config.data, StageContext(0, torch.device("cpu"), None, Path("tokens")))
    bias = list(stage.model.encoder.parameters())[-1]
    with torch.no_grad():
        bias[0] += logit_offset
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        train(stage, config.stage, Run(Path(folder), {"stage": {"steps": WARMUP_STEPS + steps}}, wandb=config.wandb))
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    return steps * config.stage.batch_size / (seconds[-1] - seconds[WARMUP_STEPS - 1])


def table(speeds: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table of each configuration's speed relative to the first: median and range over the rounds."""
    lines = [f"| times `{next(iter(CONFIGURATIONS))}` | {' | '.join(speeds)} |", f"|---|{'---|' * len(speeds)}"]
    for configuration in CONFIGURATIONS:
        cells = []
        for by_configuration in speeds.values():
            baseline = by_configuration[next(iter(CONFIGURATIONS))]
            ratios = [speed / base for speed, base in zip(by_configuration[configuration], baseline, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {configuration} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="timed updates (8)")
    parser.add_argument("--rounds", type=int, help="rounds of measurements (3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two updates, one round, to check that everything runs")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/benchmarks/cpu_settings.json"), help="JSON output file"
    )
    parser.add_argument("--one-run", nargs=2, help=argparse.SUPPRESS)  # internal: one measurement in its own process
    options = parser.parse_args(arguments)
    options.steps = options.steps or (2 if options.quick else 8)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main()
