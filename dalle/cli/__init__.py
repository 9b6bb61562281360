"""Command-line entry points. Importing this package checks the Python version and the installed packages."""

import sys
from importlib.util import find_spec

MIN_PYTHON = (3, 10)  # requires-python in pyproject.toml; this file must be readable for older ones
# the dependencies in pyproject.toml, by the names of their modules
PACKAGES = ("torch", "einops", "numpy", "PIL", "hydra", "wandb", "tokenizers", "safetensors", "tqdm", "yaml")


def check_installation() -> None:
    """Exit with an error message if this Python is older than `MIN_PYTHON`, or lacks one of `PACKAGES`."""
    version = ".".join(map(str, sys.version_info[:2]))
    if tuple(sys.version_info[:2]) < MIN_PYTHON:
        remedy = "use another one, as in make install PYTHON=python3.12"
        sys.exit(f"dalle needs Python 3.10 to 3.13, and {sys.executable} is Python {version}: {remedy}")
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        remedy = "make install and source .venv/bin/activate, or pip install . with this Python"
        sys.exit(f"{sys.executable} (Python {version}) lacks the packages {', '.join(missing)}: {remedy}")


check_installation()
