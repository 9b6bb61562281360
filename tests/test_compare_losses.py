"""tools/compare_losses.py trains two versions and reports the first bit that differs."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "compare_losses.py"))
Losses, first_difference = TOOL["Losses"], TOOL["first_difference"]


def training(*losses: float, weights: str = "same", norm: float = 1.0):
    return Losses([{"loss": loss, "gradient_norm": norm} for loss in losses], weights)


@pytest.fixture
def run(capsys):
    """Function that runs the tool in this process; the trainings are processes. Returns (exit status, output)."""

    def run(*arguments: str) -> tuple[int, str]:
        try:
            status, message = TOOL["main"]([*arguments]), ""
        except SystemExit as end:
            status, message = 1, str(end)  # as the interpreter does with a message
        printed = capsys.readouterr()
        return status, printed.out + printed.err + message

    return run


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
def test_tree_equals_itself_and_differs_with_other_settings(run, monkeypatch, stage):
    module, found = TOOL["main"].__globals__, []
    losses = module["losses"]

    def first_side_once(side, *arguments):
        """Train; the first side, which has the same settings in both calls, twice for the first and not again."""
        if len(found) < 2 or side.settings:
            found.append(losses(side, *arguments))
            return found[-1]
        return found[0]

    monkeypatch.setitem(module, "losses", first_side_once)
    settings = ["--stages", stage, "--steps", "2", "--equal"]
    settings += ["--all", "stage.batch_size=8", "stage.tokenizer_records=64", "data.train=64"]
    status, printed = run(".", ".", *settings)
    assert status == 0, printed
    assert "clip: all numbers of 2 steps and the weights are equal" in printed
    status, printed = run(".", ".", *settings, "--b", "stage.optimizer.weight_decay=0.1")
    assert status == 1
    assert "clip: " in printed and "differ" in printed
    assert len(found) == 3


def test_unknown_commit_shows_the_git_error(run):
    status, printed = run("no-such-commit", ".")
    assert status == 1
    assert "no-such-commit" in printed


def test_failed_run_shows_its_output(run):
    status, printed = run(".", ".", "--stages", "clip", "--steps", "2", "--a", "stage.stepz=3")
    assert status == 1
    assert "failed" in printed and "stage.steps" in printed
