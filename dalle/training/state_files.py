"""Files of a training state, from which a run resumes.

    state/00000500/     state after 500 updates: state.json, and state.safetensors if one process writes it

A state that all ranks write has the files of `dalle.training.sharded_state` instead. A state is written under a
temporary name, flushed and renamed, so a state under its name is always complete. While a run saves for the first time
it has a model but no state yet; state/.00000000.part then tells it from a model without its run.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle.atomic_files import fsync
from dalle.checkpoint import CheckpointError, write_errors
from dalle.weights_files import read_json, read_tensors, write_json, write_tensors

FORMAT = 1
STATE = "state"
STATE_TENSORS = "state.safetensors"  # of a state that one process writes


def save_state(folder: str | Path, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Write the training state after `step` updates, then delete previous states.

    `scalars` is JSON-serialisable. Raises CheckpointError if the state cannot be written; the previous state is then
    kept.
    """
    with writing_state(folder, step, scalars) as temporary:
        write_tensors(temporary / STATE_TENSORS, tensors)


def temporary_state(folder: str | Path, step: int) -> Path:
    """Return the folder in which the state after `step` updates is written until it is complete."""
    return Path(folder) / STATE / f".{step:08d}.part"


def begin_first_save(folder: str | Path) -> None:
    """Mark `folder` as a run that saves for the first time, if it has no state; the first complete state ends that.

    Raises CheckpointError for an OSError.
    """
    mark = temporary_state(folder, 0)
    if newest_state(folder) is None:
        with write_errors(mark):
            mark.mkdir(parents=True, exist_ok=True)


def was_first_save_interrupted(folder: str | Path) -> bool:
    """Return True if the run in `folder` ended during its first save, so that it begins again with its first update."""
    return newest_state(folder) is None and temporary_state(folder, 0).exists()


@contextmanager
def writing_state(folder: str | Path, step: int, scalars: Mapping[str, Any]) -> Iterator[Path]:
    """Context with an empty folder for the tensors of a state, which gets its name at the end if all went well.

    Previous states are kept until then. Raises CheckpointError for an OSError.
    """
    temporary = temporary_state(folder, step)
    states, state = temporary.parent, temporary.with_name(f"{step:08d}")
    with write_errors(state):
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        temporary.mkdir(parents=True)
        try:
            yield temporary
            write_json(temporary / "state.json", {"format": FORMAT, "step": step, **scalars})
            for path in (*temporary.iterdir(), temporary):
                fsync(path)
            if state.exists():  # same step again: keep the old one under a name that load_state finds
                os.replace(state, states / f"{step:08d}.old")
            os.replace(temporary, state)
            fsync(states)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for other in states.iterdir():
        if other != state:
            shutil.rmtree(other, ignore_errors=True)


def load_state(folder: str | Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Load (step, tensors on the CPU, scalars) of the newest state in `folder`; None if there is none."""
    state = newest_state(folder)
    if state is None:
        return None
    tensors = read_tensors(state / STATE_TENSORS)
    scalars = _read_scalars(state)
    return scalars.pop("step"), tensors, scalars


def read_scalars(folder: str | Path) -> dict[str, Any] | None:
    """Read `step` and the scalars of the newest state, without its tensors; None if there is none."""
    state = newest_state(folder)
    return None if state is None else _read_scalars(state)


def newest_state(folder: str | Path) -> Path | None:
    """Return the folder of the newest complete state in `folder`; None if there is none."""
    states = (Path(folder) / STATE).glob("[0-9]*")
    return max(states, key=lambda path: (int(path.stem), path.suffix != ".old"), default=None)


def _read_scalars(state: Path) -> dict[str, Any]:
    scalars = read_json(state / "state.json")
    if scalars.pop("format", None) != FORMAT or not isinstance(scalars.get("step"), int):
        raise CheckpointError(f"{state} was written by another version of this code: use another run name")
    return scalars
