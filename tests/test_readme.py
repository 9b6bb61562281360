"""The README's commands, as its readers type them: whatever it shows exists and composes."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dalle.cli.config import VERBS, compose
from dalle.data import DATA_SETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
COMMANDS = [words for words in LINES if words]
RUNS = [words for words in COMMANDS if words[0] in ("python", "torchrun")]
MADE = [words[1] for words in COMMANDS if words[0] == "make"]


def first_of_sweep(override: str) -> str:
    """`key=a,b` of a sweep as its first job has it."""
    key, _, value = override.partition("=")
    return f"{key}={value.split(',')[0]}"


def composed(words: list[str]):
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    verb, overrides = Path(words[script]).stem, [word for word in words[script + 1 :] if word != "--help"]
    if "-m" in overrides:
        overrides = [first_of_sweep(each) for each in overrides if each != "-m"]
    # a place for the reader's own words
    return compose(verb, [each.replace("=...", "=given") for each in overrides])


def test_it_shows_every_verb():
    shown = {Path(word).stem for words in RUNS for word in words if word.endswith(".py")}
    assert shown == set(VERBS)


@pytest.mark.parametrize("words", RUNS, ids=lambda words: " ".join(words))
def test_every_command_composes(words):
    composed(words)


@pytest.mark.parametrize("target", sorted(set(MADE)))
def test_every_target_can_be_made(target):
    told = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr


def test_the_table_of_data_sets_is_whole():
    assert set(re.findall(r"^\| `data=(\w+)`", README, re.MULTILINE)) == set(DATA_SETS)


def test_every_file_and_picture_that_it_links_to_exists():
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert linked
    assert [link for link in linked if not (ROOT / link).is_file()] == []
