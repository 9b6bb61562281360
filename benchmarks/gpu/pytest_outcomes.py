"""Pytest plugin: write the outcome of each test to a file, and skip tests that passed in an earlier call.

Load it with -p. The environment variable DALLE_GPU_OUTCOMES is the path of the file, with one JSON object per line.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest


def outcomes_file() -> Path:
    return Path(os.environ["DALLE_GPU_OUTCOMES"])


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last outcome of each test in the file, by test id."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {outcome["test"]: outcome for outcome in map(json.loads, lines)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    passed = {test for test, outcome in outcomes(outcomes_file()).items() if outcome["outcome"] == "passed"}
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    outcome = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(report.duration, 3),
        "properties": dict(report.user_properties),
    }
    if report.skipped and isinstance(report.longrepr, tuple):
        outcome["reason"] = report.longrepr[2].removeprefix("Skipped: ")
    if report.failed:
        outcome["reason"] = report.longreprtext[-3000:]
    with outcomes_file().open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(outcome) + "\n")
