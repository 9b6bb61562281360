"""An installation that cannot work is named with its cure: by make install, and by the commands."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.cli import MIN_PYTHON, PACKAGES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("version", [None, "3.9", "3.14"])
def test_an_unsupported_python_is_refused_with_a_cure(folder, version):
    python = folder / "python"
    if version is not None:  # an interpreter that reports this version
        numbers = version.replace(".", ", ")
        python.write_text(f'#!/bin/sh\nexec python3 -c "import sys; sys.version_info = ({numbers}); $2"\n')
        python.chmod(0o755)
    done = subprocess.run(["make", "install", f"PYTHON={python}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode
    assert "is missing or not Python 3.10 to 3.13: make install PYTHON=python3.12" in done.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("version", [(3, 9), (3, 6)])
def test_a_command_names_an_unsupported_python_and_the_cure(version):
    # this interpreter, which reports another version
    code = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0); import dalle.cli"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("dalle needs Python 3.10 to 3.13, and ")
    assert f"is Python {version[0]}.{version[1]}: use another one, as in make install PYTHON=" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["train.py"], ["sample.py", "caption=a red apple"], ["-m", "dalle", "--help"]])
def test_a_command_without_its_packages_names_them_and_the_cure(command):
    # -S leaves out site-packages, as in a clone that was not installed
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "lacks the packages torch, einops, numpy" in done.stderr
    assert "make install and source .venv/bin/activate, or pip install . with this Python" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_packages_that_commands_check_are_the_dependencies():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    names = re.findall(r'"([\w-]+)', dependencies[1])
    modules = {"pillow": "PIL", "hydra-core": "hydra", "pyyaml": "yaml"}
    assert [modules.get(name, name) for name in names] == list(PACKAGES)
    assert f'requires-python = ">={MIN_PYTHON[0]}.{MIN_PYTHON[1]}"' in text


def test_modules_import_only_the_dependencies():
    """Packages of extras are imported within functions, and by the studio, which has an extra of its own."""
    imported = {}
    for path in (ROOT / "dalle").rglob("*.py"):
        for node in [] if "studio" in path.parts else ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.split(".")[0]: path.name for name in names}
    ours = {"dalle", "omegaconf"}  # hydra-core pins its omegaconf
    undeclared = imported.keys() - set(PACKAGES) - sys.stdlib_module_names - ours
    assert {name: imported[name] for name in undeclared} == {}


def test_the_help_of_make_lists_every_target_with_a_description_and_fits_a_screen():
    command = ["make", "--no-print-directory", "help"]  # make test runs this in a make of its own
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    described = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split()[0] for line in lines[1:]] == described
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


def test_versions_that_cannot_be_listed_leave_the_constraints_as_they_are(folder):
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    (folder / ".venv/.installed").touch()
    before = (folder / "constraints.txt").read_bytes()
    done = subprocess.run(["make", "constraints"], cwd=folder, capture_output=True, text=True)
    assert done.returncode
    assert (folder / "constraints.txt").read_bytes() == before


PIP = """#!/bin/sh
# stand-in of an interpreter without a network: makes environments of itself, and cannot install what FAILING names
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *install*FAILING*) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("failing", "cure"),
    [
        ("torch==2", "torch cannot be installed: check the network and the free space"),
        ("editable", "a package cannot be installed: check the network; if its version does not exist, make install C"),
        ("dall-e", "dall-e cannot be installed: check the network"),
    ],
)
def test_a_package_that_cannot_be_installed_is_named_with_a_cure(folder, failing, cure):
    python = folder / "python"
    python.write_text(PIP.replace("FAILING", failing))
    python.chmod(0o755)
    command = ["make", "install", f"PYTHON={python}", "TORCH=torch==2.13.0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode
    assert f"make: {cure}" in done.stderr
    assert not (folder / ".venv/.installed").exists()
