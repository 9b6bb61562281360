"""Commands in README.md and docs/*.md: every one composes, and every make target exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dalle.cli.arguments import LITERAL_SETTINGS
from dalle.cli.config import COMMANDS, compose
from dalle.data import DATA_SETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_LINES = [
    (page.name, words)
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line, comments=True))
]
RUNS = [
    (page, words)
    for page, words in COMMAND_LINES
    if (words[0] == "dalle" and words[1] in COMMANDS)
    or (
        words[0] in ("python", "torchrun")
        and {Path(word).stem for word in words if word.endswith(".py")} & set(COMMANDS)
    )
]
TARGETS = sorted({words[1] for _, words in COMMAND_LINES if words[0] == "make"})


def first_of_sweep(override: str) -> str:
    """Return `key=a,b` of a sweep with the value of its first job."""
    key, _, value = override.partition("=")
    return f"{key}={value.split(',')[0]}"


def quoted(override: str) -> str:
    """Quote a value that the command line reads literally, and replace a placeholder."""
    key, _, value = override.partition("=")
    value = "given" if value == "..." else value
    return f'{key}="{value}"' if key in LITERAL_SETTINGS else f"{key}={value}"


def composed(words: list[str]):
    script = 1 if words[0] == "dalle" else next(index for index, word in enumerate(words) if word.endswith(".py"))
    command, overrides = Path(words[script]).stem, [word for word in words[script + 1 :] if word != "--help"]
    if "-m" in overrides:
        overrides = [first_of_sweep(override) for override in overrides if override != "-m"]
        # launchers are tested in test_slurm.py, since their package is optional
        overrides = [
            override for override in overrides if not override.startswith(("hydra/launcher=", "hydra.launcher."))
        ]
    return compose(command, [quoted(override) for override in overrides])


def test_the_pages_show_every_command():
    shown = {name for name in COMMANDS for _, words in RUNS if f"{name}.py" in words or words[:2] == ["dalle", name]}
    assert shown == set(COMMANDS)


def test_the_readme_describes_every_command_and_fits_three_screens():
    described = set(re.findall(r"^\| `(?:(\w+)\.py|dalle (\w+))`", README, re.MULTILINE))
    assert {script or name for script, name in described} - {"verify"} == set(COMMANDS)
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(("page", "words"), RUNS, ids=[f"{page}: {' '.join(words)}" for page, words in RUNS])
def test_every_command_composes(page, words):
    composed(words)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_made(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_table_lists_all_data_sets():
    assert set(re.findall(r"^\| \[?`data=(\w+)`", README, re.MULTILINE)) == set(DATA_SETS)
