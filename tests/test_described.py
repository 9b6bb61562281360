"""Every setting is told with what it means: by --help, and on the page docs/configs.md."""

import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dalle.cli.config import VERBS, choices_of, compose
from dalle.cli.help import FIRST, as_typed, comments, settings, usage
from dalle.data import DATA_SETS
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES

ROOT = Path(__file__).parents[1]
CHOSEN = [schema for choices in (STAGES, EDITS, IMPORTS) for schema in choices.configs.values()]


@dataclass
class Base:
    width: int = 8  # of the states
    # how many there are,
    # whatever they hold
    depth: int = 2
    kept: int = 1  # while it lasts


@dataclass
class Inner(Base):
    kept: int = 5
    colours: list[str] = field(default_factory=lambda: ["#ff0000"])  # in #rrggbb
    bare: float = 0.5


@dataclass
class Outer:
    name: str = "outer"
    inner: Inner = field(default_factory=Inner)  # never shown: what is in it is


def test_a_setting_means_what_the_comment_behind_or_above_it_says_and_may_inherit_that():
    assert comments(Inner) == {
        "width": "of the states",
        "depth": "how many there are, whatever they hold",
        "kept": "while it lasts",
        "colours": "in #rrggbb",
        "bare": "",
    }


def test_settings_are_dotted_and_have_the_values_of_this_very_config():
    found = {each.key: each.value for each in settings(Outer(inner=Inner(depth=3)), "stage.")}
    assert found == {
        "stage.inner.width": "8",
        "stage.inner.depth": "3",
        "stage.inner.kept": "5",
        "stage.inner.colours": "[#ff0000]",
        "stage.inner.bare": "0.5",
    }
    assert [each.key for each in settings({"a": Inner()}, "")][0] == "a.width"


@pytest.mark.parametrize(
    ("value", "typed"),
    [(None, "null"), (True, "true"), (0, "0"), (0.1, "0.1"), ("", '""'), ((1, None), "[1,null]"), ("a b", "a b")],
)
def test_values_look_as_they_are_typed(value, typed):
    assert as_typed(value) == typed


@pytest.mark.parametrize(
    "schema", [*VERBS.values(), *DATA_SETS.configs.values(), *CHOSEN], ids=lambda schema: schema.__name__
)
def test_no_setting_is_left_unexplained(schema):
    assert [each.key for each in settings(schema()) if not each.meaning] == []


def test_the_page_is_what_the_code_says():
    written = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert written == runpy.run_path(str(ROOT / "docs" / "configs.py"))["page"](), "run `make configs`"


def test_help_has_the_choices_and_each_setting_with_the_value_that_this_command_would_use(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = compose("train", ["stage=clip", "preset=tiny", "stage.steps=77"])
    text = usage("train.py", config, choices_of("train"))
    assert "all | clip | dvae | transformer" in text
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in text.splitlines() if line.strip()}
    assert lines["stage.steps=77"] == ["optimizer updates; raise it to train a finished run further"]
    told = {f"{each.key}={each.value}".split()[0] for each in settings(config) if each.key not in choices_of("train")}
    assert told <= lines.keys()


@pytest.mark.parametrize("columns", [20, 80, 132])
def test_help_fits_the_terminal_but_for_long_names(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in usage("sample.py", VERBS["sample"](), choices_of("sample")).splitlines():
        assert len(line) <= max(80, columns)


@pytest.mark.parametrize("verb", FIRST)
def test_help_begins_with_some_twenty_settings_that_there_are(verb):
    every = {each.key for each in settings(compose(verb, ["data=folder"] if verb == "train" else []))}
    also = {each.key for each in settings(compose("train", ["data=blocks"]))}
    assert 15 < len(FIRST[verb]) <= 24
    assert set(FIRST[verb]) <= every | (also if verb == "train" else set())


def test_help_shows_what_is_set_first_and_counts_the_rest():
    status, out, _ = run("train.py", "--help", "stage=clip", "stage.ema.decay=0.5")
    assert status == 0
    assert "stage.steps=" in out and "stage.ema.decay=0.5" in out
    assert "stage.model.patch" not in out
    assert "--help-all tells them" in out
    status, out, _ = run("train.py", "--help-all", "stage=clip")
    assert (status, "stage.model.patch=" in out, "--help-all" in out) == (0, True, False)


def run(*command):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env={**os.environ})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("verb", "choice"),
    [*(("sample", f"edit={name}") for name in EDITS), *(("prepare", f"import={name}") for name in IMPORTS)],
)
def test_help_and_the_page_show_a_command_for_every_edit_and_import(verb, choice):
    text = usage(f"{verb}.py", compose(verb, [choice]), choices_of(verb))
    (shown,) = re.findall(rf"^python {verb}.py .*{choice} .*$", text, re.MULTILINE)
    assert f"\n`{shown}`\n" in (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")


def test_help_says_what_the_chosen_stage_is_and_what_all_means():
    text = usage("train.py", compose("train", ["stage=transformer"]), choices_of("train"))
    assert "stage=transformer:\nStage 2, the transformer: the paper's recipe" in text
    assert "stage.dvae.steps=" in text  # as settings are called with stage=all


def test_help_is_asked_for_on_the_command_line_and_a_wrong_choice_is_said():
    status, out, _ = run("sample.py", "--help", "edit=outpaint", "caption=a red, green circle")
    assert (status, "edit.left=0" in out, "caption=a red, green circle" in out) == (0, True, True)
    status, out, error = run("sample.py", "--help", "edit=outpain")
    assert (status, out) == (2, "")
    assert "choose one of complete, inpaint, outpaint, remix, variations" in error


@pytest.mark.parametrize(
    ("command", "wrong"), [("sample.py", "keep=100 of candidates=64"), ("evaluate.py", "captions=0 must be at least 1")]
)
def test_help_beside_a_value_that_cannot_be_says_so_in_a_sentence(command, wrong):
    status, out, error = run(command, "--help", wrong.split()[0])
    assert (status, out) == (2, "")
    assert error.startswith(wrong) and error.count("\n") == 1
