"""Help of the commands: --help and docs/configs.md describe every setting."""

import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dalle.cli.config import COMMANDS, compose, group_options
from dalle.cli.help import MAIN_SETTINGS, field_comments, format_value, help_text, settings
from dalle.data import DATA_SETS
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES

ROOT = Path(__file__).parents[1]
CHOSEN = [schema for choices in (STAGES, EDITS, IMPORTS) for schema in choices.configs.values()]


@dataclass
class Base:
    width: int = 8  # width of the states
    # number of layers,
    # without the embedding
    depth: int = 2
    heads: int = 1  # attention heads


@dataclass
class Inner(Base):
    heads: int = 5
    colours: list[str] = field(default_factory=lambda: ["#ff0000"])  # in #rrggbb
    bare: float = 0.5


@dataclass
class Outer:
    name: str = "outer"
    inner: Inner = field(default_factory=Inner)  # not shown, only its fields


def test_the_description_is_the_comment_after_or_above_a_field_and_is_inherited():
    assert field_comments(Inner) == {
        "width": "width of the states",
        "depth": "number of layers, without the embedding",
        "heads": "attention heads",
        "colours": "in #rrggbb",
        "bare": "",
    }


def test_settings_have_dotted_keys_and_the_values_of_the_config():
    found = {setting.key: setting.value for setting in settings(Outer(inner=Inner(depth=3)), "stage.")}
    assert found == {
        "stage.inner.width": "8",
        "stage.inner.depth": "3",
        "stage.inner.heads": "5",
        "stage.inner.colours": "[#ff0000]",
        "stage.inner.bare": "0.5",
    }
    assert [setting.key for setting in settings({"a": Inner()}, "")][0] == "a.width"


@pytest.mark.parametrize(
    ("value", "typed"),
    [(None, "null"), (True, "true"), (0, "0"), (0.1, "0.1"), ("", '""'), ((1, None), "[1,null]"), ("a b", "a b")],
)
def test_values_are_formatted_as_they_are_typed(value, typed):
    assert format_value(value) == typed


@pytest.mark.parametrize(
    "schema", [*COMMANDS.values(), *DATA_SETS.configs.values(), *CHOSEN], ids=lambda schema: schema.__name__
)
def test_every_setting_has_a_description(schema):
    assert [setting.key for setting in settings(schema()) if not setting.description] == []


def test_the_page_of_settings_is_up_to_date():
    written = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert written == runpy.run_path(str(ROOT / "docs" / "configs.py"))["page"](), "run `make configs`"


def test_help_lists_config_groups_and_settings_with_their_values(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = compose("train", ["stage=clip", "preset=tiny", "stage.steps=77"])
    text = help_text("python train.py", config, group_options("train"))
    assert "all | clip | decoder | dvae | transformer" in text
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in text.splitlines() if line.strip()}
    assert lines["stage.steps=77"] == ["optimizer updates; raise it to train a finished run further"]
    expected = {
        f"{setting.key}={setting.value}".split()[0]
        for setting in settings(config)
        if setting.key not in group_options("train")
    }
    assert expected <= lines.keys()


@pytest.mark.parametrize("columns", [20, 80, 132])
def test_help_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in help_text("python sample.py", COMMANDS["sample"](), group_options("sample")).splitlines():
        assert len(line) <= max(80, columns)


@pytest.mark.parametrize("command", MAIN_SETTINGS)
def test_main_settings_exist_and_fit_on_a_screen(command):
    every = {setting.key for setting in settings(compose(command, ["data=folder"] if command == "train" else []))}
    also = {setting.key for setting in settings(compose("train", ["data=blocks"]))}
    assert 15 < len(MAIN_SETTINGS[command]) <= 24
    assert set(MAIN_SETTINGS[command]) <= every | (also if command == "train" else set())


def test_help_shows_main_settings_and_counts_the_others(run_command):
    status, out = run_command("train", "--help", "stage=clip", "stage.ema.decay=0.5")
    assert status == 0
    assert "stage.steps=" in out and "stage.ema.decay=0.5" in out
    assert "stage.model.patch" not in out
    assert "more settings: use --help-all" in out
    status, out = run_command("train", "--help-all", "stage=clip")
    assert (status, "stage.model.patch=" in out, "--help-all" in out) == (0, True, False)


def test_help_ends_without_an_error_when_its_reader_stops_early():
    reader, writer = os.pipe()
    os.close(reader)  # as head does after its last line
    command = [sys.executable, "train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "option"),
    [*(("sample", f"edit={name}") for name in EDITS), *(("prepare", f"import={name}") for name in IMPORTS)],
)
def test_help_and_the_page_show_a_command_for_every_edit_and_import(command, option):
    text = help_text(f"{command}.py", compose(command, [option]), group_options(command))
    (shown,) = re.findall(rf"^python {command}.py .*{option} .*$", text, re.MULTILINE)
    assert f"\n`{shown}`\n" in (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")


def test_help_describes_the_chosen_stage():
    text = help_text("python train.py", compose("train", ["stage=transformer"]), group_options("train"))
    assert "stage=transformer:\nStage 2, the transformer: the paper's recipe" in text
    assert "stage.dvae.steps=" in text  # as settings are called with stage=all


def test_help_shows_overrides_and_rejects_a_wrong_option(run_command):
    status, out = run_command("sample", "--help", "edit=outpaint", "caption=a red, green circle")
    assert (status, "edit.left=0" in out, "caption=a red, green circle" in out) == (0, True, True)
    status, out = run_command("sample", "--help", "edit=outpain")
    assert (status, "usage" in out, "edit.left" in out) == (2, False, False)
    assert f"choose one of {', '.join(sorted(EDITS))}" in out


@pytest.mark.parametrize(
    ("command", "wrong"), [("sample", "keep=100 of candidates=64"), ("evaluate", "captions=0 must be at least 1")]
)
def test_help_rejects_a_wrong_value_in_a_sentence(run_command, command, wrong):
    status, printed = run_command(command, "--help", wrong.split()[0])
    assert status == 2
    assert printed.startswith(wrong) and printed.count("\n") == 1
