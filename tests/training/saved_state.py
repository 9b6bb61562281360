"""Whole states of runs, for comparisons."""

from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.training.state import open_state


def load_state(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Load (step, whole tensors on the CPU, scalars) of the newest state in `folder`; None if there is none.

    All ranks must call it. Raises CheckpointError if the state is damaged.
    """
    saved = open_state(folder)
    return None if saved is None else (saved.step, saved.read(saved.names), saved.scalars)
