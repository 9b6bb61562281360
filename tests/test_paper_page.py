"""docs/paper.md names files, tests and switches: all of them exist."""

import re
from pathlib import Path

import pytest

from dalle.config import compose, known_keys

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
QUOTED = [each.strip("'") for each in re.findall(r"`([^`]+)`", PAGE)]
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
CODE = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("dalle/**/*.py")}


def switches() -> list[tuple[str, str]]:
    """Settings that the page names, and the stage that they are of."""
    part = PAGE.partition("## 2. ")[2].partition("## 3. ")[0]
    found = []
    for section in part.split("\n### ")[1:]:
        stage = section.split()[0].lower()
        for quoted in re.findall(r"`([^`]+)`", section):
            setting = quoted.strip("'")
            if re.match(r"(stage|preset)[\w.]*=", setting) and stage in ("dvae", "transformer"):
                found.append((stage, setting))
    return found


def test_every_test_that_is_named_exists():
    named = {each for each in QUOTED if re.fullmatch(r"test_\w+", each)}
    assert len(named) > 60
    assert sorted(each for each in named if f"def {each}(" not in TESTS) == []


def test_every_file_that_is_named_exists():
    named = {each for each in QUOTED if re.fullmatch(r"[\w/]+\.py", each)}
    places = [ROOT, ROOT / "dalle", ROOT / "tests"]
    assert len(named) > 30
    assert sorted(each for each in named if not any((place / each).is_file() for place in places)) == []


def test_what_is_named_beside_a_file_is_in_it():
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", PAGE):
        if (ROOT / "dalle" / file).is_file():
            for name in re.findall(r"`\.?([\w.]+)`", names):
                assert name.split(".")[-1] in CODE[f"dalle/{file}"], f"{file} has no {name}"


@pytest.mark.parametrize(("stage", "setting"), switches())
def test_every_switch_that_is_named_works(stage, setting):
    key, _, value = setting.partition("=")
    assert key in known_keys("train", [f"stage={stage}"])
    if value:
        compose("train", [f"stage={stage}", setting])


def test_there_is_a_switch_to_every_other_reading():
    named = {setting.partition("=")[0] for _, setting in switches()}
    model, stage = "stage.model.", "stage."
    assert named >= {
        *(f"{model}{name}" for name in ("row_counts_itself", "convolution_wraps", "pads", "image_places")),
        *(f"{model}{name}" for name in ("attention_normalisation", "activation", "relaxation")),
        *(f"{stage}{name}" for name in ("pad_targets", "image_targets", "ema.decay")),
    }
