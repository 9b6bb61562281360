"""Images per second of processor time of several runners, measured interleaved."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Runner:
    """A function that processes `count` images."""

    name: str
    what: str  # "decoded" | "none" | "transformer" | "tokens": the last processing step
    count: int
    work: Callable[[], Any]


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    images_per_second: float  # per second of processor time of one core
    times_floor: float | None  # speed relative to the floor, if there is one


def measured(runners: list[Runner], rounds: int, floor: str | None) -> list[Row]:
    """Time all runners, interleaved in rounds, so that other load on the machine affects all of them.

    floor: name of the runner that the others are compared with.
    """
    times: list[list[float]] = [[] for _ in runners]
    for turn in range(rounds + 1):
        for taken, runner in zip(times, runners, strict=True):
            begin = time.process_time()
            runner.work()
            if turn:  # the first round reads files from disk
                taken.append(time.process_time() - begin)
    speeds = [runner.count / max(statistics.median(taken), 1e-9) for runner, taken in zip(runners, times, strict=True)]
    limit = {runner.name: speed for runner, speed in zip(runners, speeds, strict=True)}.get(floor or "")
    pairs = zip(runners, speeds, strict=True)
    return [Row(runner.name, runner.what, speed, speed / limit if limit else None) for runner, speed in pairs]


def table(rows: list[Row], title: str) -> str:
    """Return the rows as a Markdown table."""
    lines = [f"| {title} | until | images/s | times floor |", "|---|---|---|---|"]
    for row in rows:
        times = "" if row.times_floor is None else f"{row.times_floor:.2f}"
        lines.append(f"| {row.name} | {row.what} | {row.images_per_second:,.0f} | {times} |")
    return "\n".join(lines)
