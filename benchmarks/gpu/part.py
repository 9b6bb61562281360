"""A part of `make gpu`: measurements run one after the other, each in its own process. Results are saved immediately.

A crash, a sticky CUDA error or an out-of-memory error therefore affects only one measurement. A second call resumes,
and repeats failed and interrupted measurements.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.card import name_of

ROOT = Path(__file__).parents[2]
LEAST = 20  # minimum seconds left to start a measurement, unless its part sets another value
TAIL = 25  # lines kept of the output of a failed measurement

Figures = dict[str, Any]
"""Results of a measurement by name, as JSON can hold them."""


class NotPossible(Exception):
    """Raised if a measurement is impossible on this machine. The message states the reason with numbers."""


@dataclass(frozen=True)
class Setting:
    """Arguments of a measurement."""

    device: torch.device
    quick: bool  # toy sizes, to check that everything runs
    folder: Path  # folder for files that are kept between calls
    ends: float  # time.time() at which the measurement is stopped


@dataclass(frozen=True)
class Part:
    name: str
    measurements: Callable[[bool], dict[str, Callable[[Setting], Figures]]]  # quick -> {name: measurement}, in order
    page: Callable[[dict[str, Figures]], list[str]]  # {name: results} -> Markdown lines
    least: dict[str, float] = field(default_factory=dict)  # minimum seconds left to start long measurements


def run(part: Part, device: str, quick: bool, out: Path, minutes: float) -> bool:
    """Run the missing measurements. Returns True if all are done or impossible on this machine."""
    ends = time.time() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out / f"{part.name}.json", part.name, _machine(device), quick)
    for name in part.measurements(quick):
        if record.is_made(name):
            continue
        if ends - time.time() < part.least.get(name, LEAST):
            record.add(name, {"status": "not begun", "reason": f"{minutes:g} minutes were over"})
            continue
        print(f"gpu-{part.name}: {name} ...", flush=True)
        outcome = _in_a_process(part.name, name, device, quick, out, ends)
        record.add(name, outcome)
        print(f"gpu-{part.name}: {name}: {outcome['status']} after {outcome['seconds']:.0f} s", flush=True)
        if reason := outcome.get("reason"):
            print(f"  {reason.splitlines()[-1]}", flush=True)
    page = "\n".join([*record.heading(), *part.page(record.figures()), "", *record.problems()]) + "\n"
    (out / f"{part.name}.md").write_text(page, encoding="utf-8")
    left = [name for name in part.measurements(quick) if not record.is_made(name)]
    if left:
        print(f"gpu-{part.name}: {len(left)} left: {', '.join(left)}; the same command goes on with them", flush=True)
    return not left


def measure(part: Part, name: str, setting: Setting, result: Path) -> None:
    """Run one measurement in this process and write its outcome to the file `result`."""
    try:
        outcome = {"status": "done", "figures": part.measurements(setting.quick)[name](setting)}
    except NotPossible as reason:
        outcome = {"status": "skipped", "reason": str(reason)}
    result.write_text(json.dumps(outcome), encoding="utf-8")


class Record:
    """Results file of a part: the machine and the outcome of each measurement."""

    def __init__(self, path: Path, part: str, machine: dict[str, Any], quick: bool):
        self.path = path
        self.facts: dict[str, Any] = {
            "part": part,
            "command": f"make gpu-{part}" + (f" DEVICE={machine['device']} QUICK=1" if quick else ""),
            "quick": quick,
            "machine": machine,
            "measurements": {},
        }
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if all(before[key] == self.facts[key] for key in ("machine", "quick")):
                self.facts = before
            else:
                aside = path.with_name(f"{path.stem}-{int(path.stat().st_mtime)}.json")
                path.rename(aside)
                print(f"gpu-{part}: {aside.name} has the figures of another machine, version or size; starting anew")

    def is_made(self, name: str) -> bool:
        return self.facts["measurements"].get(name, {}).get("status") in ("done", "skipped")

    def add(self, name: str, outcome: dict[str, Any]) -> None:
        self.facts["measurements"][name] = outcome
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def figures(self) -> dict[str, Figures]:
        made = self.facts["measurements"].items()
        return {name: outcome["figures"] for name, outcome in made if outcome["status"] == "done"}

    def heading(self) -> list[str]:
        measurements = self.facts["measurements"].values()
        commits = sorted({each["commit"] for each in measurements if "commit" in each})
        toy = ["", "Toy sizes, to see that everything runs: no figures to quote."] if self.facts["quick"] else []
        return [
            f"# gpu-{self.facts['part']}",
            "",
            f"{name_of(self.facts['machine'])}. `{self.facts['command']}`, commit {', '.join(commits) or 'none'}.",
            *toy,
            "",
        ]

    def problems(self) -> list[str]:
        lines = []
        for name, outcome in self.facts["measurements"].items():
            if outcome["status"] != "done":
                *_, last = outcome["reason"].strip().splitlines() or [""]
                lines.append(f"- {name}: {outcome['status']}: {last}")
        return ["Not measured:", "", *lines] if lines else []


def commit() -> str:
    """Return the commit of the working tree, with a + if there are uncommitted changes."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _machine(device: str) -> dict[str, Any]:
    """Describe the machine, in a subprocess, so that this process holds no GPU memory."""
    asked = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "facts", "--device", device], cwd=ROOT, capture_output=True, text=True
    )
    if asked.returncode:
        raise SystemExit(asked.stderr.strip().splitlines()[-1])
    return json.loads(asked.stdout.splitlines()[-1])


def _in_a_process(part: str, name: str, device: str, quick: bool, out: Path, ends: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "measure", part, name, "--device", device]
    command += ["--out", str(out.resolve()), "--ends", str(ends)] + (["--quick"] if quick else [])
    begin = time.time()
    told = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit()}
    with tempfile.NamedTemporaryFile() as result, open(out / f"{part}.log", "ab+") as log:
        start = log.seek(0, os.SEEK_END)
        # a new session, so that its workers and commands can be ended with it
        process = subprocess.Popen(
            [*command, "--result", result.name], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(timeout=max(1.0, ends - begin))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"status": "cut off", "reason": "the time was over", "seconds": time.time() - begin, **told}
        content = result.read()
        log.seek(start)
        printed = log.read().decode(errors="replace").splitlines()
    outcome = json.loads(content) if content else {"status": "failed", "reason": "\n".join(printed[-TAIL:])}
    if not content and not printed:
        outcome["reason"] = f"the process ended with status {status} and said nothing"
    return {**outcome, "seconds": time.time() - begin, **told}
