"""Time several runners, interleaved: images per second of processor time."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Runner:
    """A function to be timed that processes `count` images, and its name in tables."""

    name: str
    output: str  # result of the last processing step: "decoded" | "none" | "transformer" | "tokens"
    count: int
    work: Callable[[], Any]


@dataclass(frozen=True)
class Throughput:
    """Measured speed of one runner, absolute and relative to a reference runner."""

    name: str
    output: str
    images_per_second: float  # per second of processor time of one core
    times_reference: float | None  # speed relative to the reference runner; None: there is none


def time_interleaved(runners: list[Runner], rounds: int, reference: str | None) -> list[Throughput]:
    """Time all runners, interleaved in rounds, and return the speed of each.

    Other load on the machine therefore affects all of them.

    reference: name of the runner that the others are compared with.
    """
    times: list[list[float]] = [[] for _ in runners]
    for round_number in range(rounds + 1):
        for seconds, runner in zip(times, runners, strict=True):
            begin = time.process_time()
            runner.work()
            if round_number > 0:  # the first round reads files from disk
                seconds.append(time.process_time() - begin)
    speeds = [
        runner.count / max(statistics.median(seconds), 1e-9) for runner, seconds in zip(runners, times, strict=True)
    ]
    reference_speed = {runner.name: speed for runner, speed in zip(runners, speeds, strict=True)}.get(reference or "")
    pairs = zip(runners, speeds, strict=True)
    return [
        Throughput(runner.name, runner.output, speed, speed / reference_speed if reference_speed else None)
        for runner, speed in pairs
    ]


def table(rows: list[Throughput], title: str) -> str:
    """Return the speeds of runners as a Markdown table with one row each."""
    lines = [f"| {title} | output | images/s | times reference |", "|---|---|---|---|"]
    for row in rows:
        times = "" if row.times_reference is None else f"{row.times_reference:.2f}"
        lines.append(f"| {row.name} | {row.output} | {row.images_per_second:,.0f} | {times} |")
    return "\n".join(lines)
