"""gpu-tests: run `pytest -m gpu` in one process per file, and each failed test again in its own process.

An illegal memory access breaks a process's CUDA context, so that all later tests fail too. Running the failed tests
alone shows which of them really fail.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import ROOT, Options, Part, Results
from benchmarks.gpu.pytest_outcomes import outcomes

MAX_REPEATED = 12  # maximum number of failed tests to repeat alone
# exit statuses of pytest if all tests ran: all passed, some failed, or none was left that had not passed before
COMPLETE = (0, 1, 5)


def files() -> list[Path]:
    """Return the test files with tests that are marked `gpu`."""
    paths = sorted(ROOT.glob("tests/**/test_*.py"))
    return [path.relative_to(ROOT) for path in paths if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def run_file(path: Path, options: Options) -> Results:
    """Run the tests in the file `path` that have not passed yet. Returns counts and the outcome of each test.

    Raises SystemExit if a test failed, or if pytest did not get to the end of the file.
    """
    outcomes_path = options.folder / f"{path.stem}.jsonl"
    status = _pytest([str(path)], outcomes_path, options)
    failed = [test for test, outcome in outcomes(outcomes_path).items() if outcome["outcome"] == "failed"]
    if 1 < len(failed) <= MAX_REPEATED:
        for test in failed:
            _pytest([test], outcomes_path, options)
    found = list(outcomes(outcomes_path).values())
    counts = {kind: sum(entry["outcome"] == kind for entry in found) for kind in ("passed", "failed", "skipped")}
    results = {**counts, "tests": found}
    if counts["failed"]:
        for entry in found:
            if entry["outcome"] == "failed":
                print(f"\n{entry['test']}\n{entry['reason']}")
        names = ", ".join(entry["test"].partition("::")[2] for entry in found if entry["outcome"] == "failed")
        raise SystemExit(f"{counts['failed']} failed, {counts['passed']} passed: {names}")
    if not found or status not in COMPLETE:
        raise SystemExit(f"pytest ended with status {status} before all tests of {path} had run")
    return results


def _pytest(selection: list[str], outcomes_path: Path, options: Options) -> int:
    """Run the selected tests, which append to the file `outcomes_path`. Returns the exit status of pytest."""
    environment = {
        **os.environ,
        "DALLE_TEST_DEVICE": str(options.device),
        "DALLE_GPU_OUTCOMES": str(outcomes_path),
        "OMP_NUM_THREADS": "4" if options.device.type == "cuda" else "1",
    }
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "benchmarks.gpu.pytest_outcomes"]
    command += ["-p", "no:cacheprovider", "--tb=short", *selection]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def measurements(quick: bool) -> dict[str, Any]:
    return {path.stem: partial(run_file, path) for path in files()}


def page(found: dict[str, Results]) -> list[str]:
    lines = ["| tests | passed | skipped |", "|---|---|---|"]
    lines += [f"| {name} | {result['passed']} | {result['skipped']} |" for name, result in found.items()]
    tests = [test for result in found.values() for test in result["tests"]]
    reasons = {test["reason"] for test in tests if test["outcome"] == "skipped"}
    if reasons:
        lines += ["", "Skipped: " + "; ".join(sorted(reasons)) + "."]
    properties = [
        (test["test"].partition("::")[2], name, value) for test in tests for name, value in test["properties"].items()
    ]
    if properties:
        lines += ["", "| test | reported value | |", "|---|---|---|"]
        lines += [f"| {test} | {name} | {_short(value)} |" for test, name, value in properties]
    return lines


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


PART = Part("tests", measurements, page)
