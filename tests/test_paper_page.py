"""docs/paper.md names files, tests and switches: all of them exist."""

import ast
import re
from pathlib import Path

import pytest

from dalle.cli.config import compose, known_keys

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
QUOTED = [each.strip("'") for each in re.findall(r"`([^`]+)`", PAGE)]


def defined(file: Path) -> set[str]:
    """Names that a file defines: functions, classes, variables, and those within classes, as Class.name too."""
    found = set()

    def collect(body: list[ast.stmt], within: str = "") -> None:
        for node in body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            found.update(f"{within}{name}" for name in names)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")

    collect(ast.parse(file.read_text(encoding="utf-8")).body)
    return found


SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("dalle/**/*.py"), *ROOT.glob("tests/**/*.py")]
FILES = {path.relative_to(ROOT).as_posix(): defined(path) for path in SOURCES}
TESTS = {name for file, names in FILES.items() if file.startswith("tests/") for name in names}


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
    assert sorted(named - TESTS) == []


def test_every_file_that_is_named_exists():
    named = {each for each in QUOTED if re.fullmatch(r"[\w/]+\.py", each)}
    places = [ROOT, ROOT / "dalle", ROOT / "tests"]
    assert len(named) > 30
    assert sorted(each for each in named if not any((place / each).is_file() for place in places)) == []


def named_beside_files() -> list[tuple[str, str, str]]:
    """(file, class or "", name) for each name after a file: "`a.py`: `f`, `Config.x`, `.y`", y being of Config too."""
    found = []
    for file, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", PAGE):
        owner = ""
        for name in re.findall(r"`([\w.]+)`", names):
            first, _, rest = name.partition(".")
            owner, name = (first or owner, rest) if rest else ("", name)
            found.append((file, owner, name))
    return found


@pytest.mark.parametrize(("file", "owner", "name"), named_beside_files())
def test_what_is_named_beside_a_file_is_defined_in_it(file, owner, name):
    places = [place for place in (f"dalle/{file}", f"tests/{file}", file) if place in FILES]
    full = f"{owner}.{name}" if owner else name
    assert any(full in FILES[place] for place in places), f"{file} defines no {full}"


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
        *(f"{stage}{name}" for name in ("pad_loss", "image_targets")),
    }
