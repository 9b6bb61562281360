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

from benchmarks.gpu import hardware

ROOT = Path(__file__).parents[2]
MIN_SECONDS = 20  # minimum seconds remaining to start a measurement, unless its part sets another value
TAIL = 25  # lines kept of the output of a failed measurement

Results = dict[str, Any]
"""Results of a measurement by name, as JSON can hold them."""


class NotPossible(Exception):
    """Raised if a measurement is impossible on this machine. The message states the reason with numbers."""


def out_of_memory(reason: str, free: int, device: torch.device) -> BaseException:
    """Return the exception for a measurement that did not fit into the `free` bytes that it found.

    NotPossible, unless other processes hold memory of the device: then SystemExit, so that the next call tries again.
    """
    if hardware.is_shared(device, free):
        return SystemExit(f"{reason}; other processes use the GPU")
    return NotPossible(reason)


@dataclass(frozen=True)
class Options:
    """Arguments of a measurement: the device, its size, a folder for its files, and the time when it must end."""

    device: torch.device
    quick: bool  # toy sizes, to check that everything runs
    folder: Path  # folder for files that are kept between calls
    deadline: float  # time.time() at which the measurement is stopped


@dataclass(frozen=True)
class Part:
    name: str
    measurements: Callable[[bool], dict[str, Callable[[Options], Results]]]  # quick -> {name: measurement}, in order
    page: Callable[[dict[str, Results]], list[str]]  # {name: results} -> Markdown lines
    min_seconds: dict[str, float] = field(default_factory=dict)  # minimum seconds remaining to start long measurements


def run(part: Part, device: str, quick: bool, out: Path, minutes: float) -> bool:
    """Run the missing measurements of a part. Returns True if all are done or impossible on this machine."""
    deadline = time.time() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    results_file = ResultsFile(out / f"{part.name}.json", part.name, _describe_machine(device), quick)
    for name in part.measurements(quick):
        if not results_file.has(name):  # counted by the summary, also if this command is interrupted
            results_file.add(name, {"status": "not started", "reason": "the command ended before"})
    for name in part.measurements(quick):
        if results_file.is_done(name):
            continue
        if deadline - time.time() < part.min_seconds.get(name, MIN_SECONDS):
            results_file.add(name, {"status": "not started", "reason": f"{minutes:g} minutes have passed"})
            continue
        print(f"gpu-{part.name}: {name} ...", flush=True)
        outcome = _run_in_process(part.name, name, device, quick, out, deadline)
        results_file.add(name, outcome)
        print(f"gpu-{part.name}: {name}: {outcome['status']} after {outcome['seconds']:.0f} s", flush=True)
        if reason := outcome.get("reason"):
            print(f"  {reason.splitlines()[-1]}", flush=True)
    page = "\n".join([*results_file.heading(), *part.page(results_file.results()), "", *results_file.problems()]) + "\n"
    (out / f"{part.name}.md").write_text(page, encoding="utf-8")
    remaining = [name for name in part.measurements(quick) if not results_file.is_done(name)]
    if remaining:
        print(
            f"gpu-{part.name}: {len(remaining)} left: {', '.join(remaining)}; to continue, run the same command again",
            flush=True,
        )
    return not remaining


def measure(part: Part, name: str, options: Options, result: Path) -> None:
    """Run the measurement `name` in this process and write its outcome to the JSON file `result`."""
    try:
        outcome = {"status": "done", "results": part.measurements(options.quick)[name](options)}
    except NotPossible as reason:
        outcome = {"status": "skipped", "reason": str(reason)}
    result.write_text(json.dumps(outcome), encoding="utf-8")


class ResultsFile:
    """JSON file with the results of a part: the machine and the outcome of each measurement."""

    def __init__(self, path: Path, part: str, machine: dict[str, Any], quick: bool):
        self.path = path
        self.content: dict[str, Any] = {
            "part": part,
            "command": f"make gpu-{part}" + (f" DEVICE={machine['device']} QUICK=1" if quick else ""),
            "quick": quick,
            "machine": machine,
            "measurements": {},
        }
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if all(before[key] == self.content[key] for key in ("machine", "quick")):
                self.content = before
            else:
                aside = path.with_name(f"{path.stem}-{int(path.stat().st_mtime)}.json")
                path.rename(aside)
                print(f"gpu-{part}: {aside.name} has the results of another machine, version or size; starting over")

    def has(self, name: str) -> bool:
        return name in self.content["measurements"]

    def is_done(self, name: str) -> bool:
        return self.content["measurements"].get(name, {}).get("status") in ("done", "skipped")

    def add(self, name: str, outcome: dict[str, Any]) -> None:
        self.content["measurements"][name] = outcome
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)

    def results(self) -> dict[str, Results]:
        measurements = self.content["measurements"].items()
        return {name: outcome["results"] for name, outcome in measurements if outcome["status"] == "done"}

    def heading(self) -> list[str]:
        measurements = self.content["measurements"].values()
        commits = sorted({measurement["commit"] for measurement in measurements if "commit" in measurement})
        machine = hardware.name_of(self.content["machine"])
        toy = ["", "Toy sizes, to check that everything runs: not for publication."] if self.content["quick"] else []
        return [
            f"# gpu-{self.content['part']}",
            "",
            f"{machine}. `{self.content['command']}`, commit {', '.join(commits) or 'none'}.",
            *toy,
            "",
        ]

    def problems(self) -> list[str]:
        lines = []
        for name, outcome in self.content["measurements"].items():
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


def _describe_machine(device: str) -> dict[str, Any]:
    """Describe the machine, in a subprocess, so that this process holds no GPU memory."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "describe", "--device", device],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise SystemExit(process.stderr.strip().splitlines()[-1])
    return json.loads(process.stdout.splitlines()[-1])


def _run_in_process(part: str, name: str, device: str, quick: bool, out: Path, deadline: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "measure", part, name, "--device", device]
    command += ["--out", str(out.resolve()), "--deadline", str(deadline)] + (["--quick"] if quick else [])
    begin = time.time()
    metadata = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit()}
    with tempfile.NamedTemporaryFile() as result, open(out / f"{part}.log", "ab+") as log:
        start = log.seek(0, os.SEEK_END)
        # a new session, so that its workers and commands can be ended with it
        process = subprocess.Popen(
            [*command, "--result", result.name], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(timeout=max(1.0, deadline - begin))
        except BaseException as error:  # Ctrl-C too: the next measurement must not run beside this one
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return {
                "status": "timed out",
                "reason": "the time limit was reached",
                "seconds": time.time() - begin,
                **metadata,
            }
        content = result.read()
        log.seek(start)
        printed = log.read().decode(errors="replace").splitlines()
    outcome = json.loads(content) if content else {"status": "failed", "reason": "\n".join(printed[-TAIL:])}
    if not content and not printed:
        outcome["reason"] = f"the process ended with status {status} and printed nothing"
    return {**outcome, "seconds": time.time() - begin, **metadata}
