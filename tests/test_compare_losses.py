"""tools/compare_losses.py trains two versions and reports the first bit that differs."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "compare_losses.py"))
Losses, first_difference = TOOL["Losses"], TOOL["first_difference"]


def training(*losses: float, weights: str = "same", norm: float = 1.0):
    return Losses([{"loss": loss, "gradient_norm": norm} for loss in losses], weights)


def run(*arguments: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, ROOT / "tools" / "compare_losses.py", *arguments], capture_output=True, text=True
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_first_difference_is_reported_with_step_and_name():
    assert first_difference(training(1.0, 0.5), training(1.0, 0.5)) is None
    one_bit = 0.5 + 2.0**-53
    assert first_difference(training(1.0, 0.5, 0.1), training(1.0, one_bit, 0.2)) == (
        f"loss differs first at step 2: 0.5, {one_bit!r}"
    )
    assert "gradient_norm differs first at step 1" in first_difference(training(1.0), training(1.0, norm=2.0))
    assert "the weights differ after the last step" in first_difference(training(1.0), training(1.0, weights="other"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip"])
def test_tree_equals_itself_and_differs_with_other_settings(stage):
    settings = ["--stages", stage, "--steps", "3", "--equal"]
    status, printed = run(".", ".", *settings)
    assert status == 0, printed
    assert "clip: all numbers of 3 steps and the weights are equal" in printed
    status, printed = run(".", ".", *settings, "--b", "stage.optimizer.weight_decay=0.1")
    assert status == 1
    assert "clip: " in printed and "differ" in printed


def test_unknown_commit_shows_the_git_error():
    status, printed = run("no-such-commit", ".")
    assert status == 1
    assert "no-such-commit" in printed


def test_failed_run_shows_its_output():
    status, printed = run(".", ".", "--stages", "clip", "--steps", "2", "--a", "stage.stepz=3")
    assert status == 1
    assert "failed" in printed and "stage.steps" in printed
