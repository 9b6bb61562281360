"""docs/paper.md names tests and settings: all of them exist. `test_docs.py` checks files, functions and links."""

import re

import pytest
from source_names import NAMES, ROOT

from dalle.cli.config import compose, valid_keys

PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
QUOTED = [name.strip("'") for name in re.findall(r"`([^`]+)`", PAGE)]


TESTS = {name for file, names in NAMES.items() if file.startswith("tests/") for name in names}


def switches() -> list[tuple[str, str]]:
    """Return the settings that the page names, with their stage."""
    part = PAGE.partition("## 2. ")[2].partition("## 3. ")[0]
    found = []
    for section in part.split("\n### ")[1:]:
        stage = section.split()[0].lower()
        for quoted in re.findall(r"`([^`]+)`", section):
            setting = quoted.strip("'")
            if re.match(r"(stage|preset)[\w.]*=", setting) and stage in ("dvae", "transformer"):
                found.append((stage, setting))
    return found


def test_every_named_test_exists():
    named = {name for name in QUOTED if re.fullmatch(r"test_\w+", name)}
    assert len(named) > 60
    assert sorted(named - TESTS) == []


@pytest.mark.parametrize(("stage", "setting"), switches())
def test_every_named_switch_works(stage, setting):
    key, _, value = setting.partition("=")
    assert key in valid_keys("train", [f"stage={stage}"])
    if value:
        compose("train", [f"stage={stage}", setting])


def test_every_alternative_has_a_switch():
    named = {setting.partition("=")[0] for _, setting in switches()}
    model, stage = "stage.model.", "stage."
    assert named >= {
        *(f"{model}{name}" for name in ("row_counts_itself", "convolution_wraps", "pads", "image_position_embedding")),
        *(f"{model}{name}" for name in ("attention_normalisation", "activation", "relaxation")),
        *(f"{stage}{name}" for name in ("pad_loss", "image_targets")),
    }
