"""make install: an unsupported Python is named with its cure, before anything is written."""

import shutil
import subprocess
from pathlib import Path

import pytest

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
