"""The commands. Before any of them is imported, a Python that cannot run them is refused in one sentence."""

import sys
from importlib.util import find_spec

MIN_PYTHON = (3, 10)  # requires-python in pyproject.toml; this file must be readable for older ones
# the dependencies in pyproject.toml, by the names of their modules
PACKAGES = ("torch", "einops", "numpy", "PIL", "hydra", "wandb", "tokenizers", "safetensors", "tqdm", "yaml")


def check_installation() -> None:
    """Exit with a sentence if this Python is too old, or lacks packages that the commands need."""
    version = ".".join(map(str, sys.version_info[:2]))
    if tuple(sys.version_info[:2]) < MIN_PYTHON:
        remedy = "use another one, as in make install PYTHON=python3.12"
        sys.exit(f"dalle needs Python 3.10 to 3.13, and {sys.executable} is Python {version}: {remedy}")
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        remedy = "make install and source .venv/bin/activate, or pip install . with this Python"
        sys.exit(f"{sys.executable} (Python {version}) lacks the packages {', '.join(missing)}: {remedy}")


check_installation()
