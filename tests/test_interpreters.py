"""Other versions of Python than the one that runs the tests: those that are not installed are named."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = re.findall(r"\d\.\d+", re.search(r"python=\[(.*)\]", (ROOT / "noxfile.py").read_text(encoding="utf-8"))[1])
# models and sampling; make interpreters runs all tests
TESTS = ["-n", "2", "-m", "not slow and not gpu", "tests/models", "tests/sampling", "tests/test_config.py"]


def is_installed(version: str) -> bool:
    """Return True if python3.X starts; a command that pyenv has for a version that is not active does not."""
    python = shutil.which(f"python{version}")
    return python is not None and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def test_the_versions_are_those_that_the_package_names():
    assert VERSIONS == ["3.10", "3.11", "3.12", "3.13"]
    assert RUNNING in VERSIONS


def test_make_test_and_make_interpreters_run_the_same_tests():
    makefile, noxfile = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "noxfile.py"))
    options = re.search(r"^test: .*\n\t\$\(PYTEST\) (.*)$", makefile, re.MULTILINE)[1]
    assert shlex.split(options) == ast.literal_eval(re.search(r"posargs or (\[.*?\])", noxfile)[1])[2:]


@pytest.mark.slow
@pytest.mark.parametrize("version", [version for version in VERSIONS if version != RUNNING])
def test_models_and_sampling_work_on_another_version(version):
    if not is_installed(version):
        pytest.skip(f"Python {version} is not installed: not tested")
    command = [sys.executable, "-m", "nox", "--session", f"tests-{version}", "--", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
