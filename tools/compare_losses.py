"""Train two commits, or two settings, on the same data and compare their losses step by step.

    python tools/compare_losses.py main .                  # a commit and the working tree
    python tools/compare_losses.py main . --equal          # exit status 1 at the first difference, even of one bit
    python tools/compare_losses.py . . --b stage.precision=bfloat16
    python tools/compare_losses.py HEAD~3 HEAD --stages transformer --steps 200 --all preset=small

Both run on one CPU thread, in float32 unless a setting changes it. The transformer learns the tokens of a dVAE trained
by the same commit, without the settings of --a and --b.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
STAGES = ("dvae", "clip", "transformer")
WORKING_TREE = "."
COMPARED = ("loss", "gradient_norm")
# small enough for a minute on any machine
SMALL = ["data=blocks", "preset=tiny", "data.image_size=32", "data.train=256", "data.val=16"]
QUIET = ["wandb.mode=disabled", "device=cpu", "stage.workers=0", "stage.log_every=1", "stage.preview_every=0"]


class Side(NamedTuple):
    """One of the two sides of the comparison."""

    name: str
    tree: Path
    settings: list[str]


class Losses(NamedTuple):
    """Results of training one stage."""

    steps: list[dict[str, float]]  # COMPARED, by step
    weights: str  # digest of the checkpoint's weights


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as work, trees(options.commits, Path(work)) as paths:
        settings = (options.a, options.b)
        names = [f"{commit} {' '.join(given)}".strip() for commit, given in zip(options.commits, settings, strict=True)]
        sides = [Side(*parts) for parts in zip(names, paths, settings, strict=True)]
        equal = True
        for stage in options.stages:
            found = [losses(side, stage, options, Path(work) / f"out{number}") for number, side in enumerate(sides)]
            difference = first_difference(*found)
            equal &= difference is None
            print(f"\n{stage}: {difference or f'all numbers of {options.steps} steps and the weights are equal'}")
            if difference and options.equal:
                return 1
            print(table(sides, *found) if difference else "", end="")
    return 0 if equal or not options.equal else 1


@contextmanager
def trees(commits: list[str], work: Path) -> Iterator[list[Path]]:
    """Yield a folder with the files of each commit."""
    made = []
    try:
        for number, commit in enumerate(commits):
            if commit != WORKING_TREE:
                git("worktree", "add", "--quiet", "--detach", str(work / f"tree{number}"), commit)
                made.append(work / f"tree{number}")
        folders = iter(made)
        yield [ROOT if commit == WORKING_TREE else next(folders) for commit in commits]
    finally:
        for folder in made:
            git("worktree", "remove", "--force", str(folder))


def git(*arguments: str) -> None:
    run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {run.stderr.strip()}")


def losses(side: Side, stage: str, options: argparse.Namespace, out: Path) -> Losses:
    """Train `stage` with the code and settings of `side`, and read the metrics and weights of the run."""
    given = list(side.settings)
    if stage == "transformer":
        dvae = out / "dvae" / "for-the-transformer"
        if not dvae.exists():
            train(side, "dvae", "for-the-transformer", [], options, out)
        given.append(f"dvae={dvae}")
    folder = train(side, stage, "compared", given, options, out)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [{name: line[name] for name in COMPARED} for line in lines if line["split"] == "train"]
    weights = load_file(folder / "model.safetensors").values()
    digests = sorted(
        sha256(weight.numpy().tobytes()).hexdigest() for weight in weights
    )  # independent of parameter names
    return Losses(steps, sha256("".join(digests).encode()).hexdigest()[:16])


def train(side: Side, stage: str, run: str, given: list[str], options: argparse.Namespace, out: Path) -> Path:
    """Run train.py of a side. Returns the run's folder."""
    length = [
        f"stage.steps={options.steps}",
        f"stage.optimizer.learning_rate.steps={options.steps}",  # some presets have a length of their own
        f"stage.validate_every={options.steps}",
        f"stage.save_every={options.steps}",
    ]
    command = [sys.executable, "train.py", f"stage={stage}", f"run={run}", f"out={out}", *SMALL, *QUIET, *length]
    command += ["stage.precision=float32", "stage.validation_images=16", *options.all, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(side.tree)}
    print(f"{side.name}: {stage}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, cwd=side.tree, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{side.name} failed: {' '.join(command)}\n{ended.stdout}{ended.stderr}")
    return out / stage / run


def first_difference(a: Losses, b: Losses) -> str | None:
    """Describe the first difference. Returns None if all numbers are bitwise equal."""
    for step, (one, other) in enumerate(zip(a.steps, b.steps, strict=True), start=1):
        for name in COMPARED:
            if one[name] != other[name]:
                return f"{name} differs first at step {step}: {one[name]!r}, {other[name]!r}"
    return None if a.weights == b.weights else f"the weights differ after the last step: {a.weights}, {b.weights}"


def table(sides: list[Side], a: Losses, b: Losses, rows: int = 10) -> str:
    """Return a Markdown table of some steps, and the mean and maximum difference over all steps."""
    pairs = [(one["loss"], other["loss"]) for one, other in zip(a.steps, b.steps, strict=True)]
    every = max(1, len(pairs) // rows)
    lines = [f"| step | {sides[0].name} | {sides[1].name} | difference |", "|---:|---:|---:|---:|"]
    for step in sorted({1, len(pairs), *range(every, len(pairs) + 1, every)}):
        one, other = pairs[step - 1]
        lines.append(f"| {step} | {one:.6g} | {other:.6g} | {other - one:+.2e} |")
    apart = [abs(other - one) for one, other in pairs]
    lines.append(f"\nlosses are apart by {sum(apart) / len(apart):.2e} in the mean, {max(apart):.2e} at most\n")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT", help="a commit, branch or tag; . is the working tree")
    parser.add_argument("--equal", action="store_true", help="exit with 1 if any number differs")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="(all)")
    parser.add_argument("--steps", type=int, default=50, help="updates of each stage (%(default)s)")
    parser.add_argument("--a", nargs="+", default=[], metavar="SETTING", help="overrides of the first side")
    parser.add_argument("--b", nargs="+", default=[], metavar="SETTING", help="overrides of the second")
    parser.add_argument("--all", nargs="+", default=[], metavar="SETTING", help="overrides of both")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps {options.steps} compares nothing; use 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
