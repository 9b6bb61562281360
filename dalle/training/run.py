"""Run folders: check if a run may resume in a folder, and from which step."""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from dalle import checkpoint, distributed
from dalle.checkpoint import CheckpointError
from dalle.training.logger import WandbConfig

# settings of logging and data loading that may change when a run resumes
FREE = {"log_every", "validate_every", "preview_every", "save_every", "max_bad_steps", "workers"}
LENGTH = "stage.steps"


class AnotherRun(CheckpointError):
    """The folder contains a run with other settings, which is left unchanged."""


@dataclass(frozen=True)
class Run:
    """One training run: its folder and its settings."""

    folder: Path  # metrics.jsonl, previews/, the checkpoint, state/
    identity: dict[str, Any]  # nested settings that identify the run; includes "stage" with its "steps"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wandb: WandbConfig = field(default_factory=WandbConfig)
    defaults: dict[str, Any] = field(default_factory=dict)  # default values of the settings in `identity`


def steps_done(folder: Path, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> int:
    """Return the number of updates done by the run in `folder`; 0 for a new run.

    A setting that the saved run lacks, since it was added later, is taken from `defaults`.

    Raises AnotherRun if the saved run has other settings than `identity`, or no state to resume from.
    """
    saved = checkpoint.read_scalars(folder)
    if saved is None:
        if (folder / checkpoint.WEIGHTS).exists():
            raise AnotherRun(
                f"{folder} holds a model but no state to go on from: choose another name (run=...), or start"
                " over with resume=false, which moves that folder aside"
            )
        return 0
    changes = differences(saved["identity"], identity, defaults)
    if changes:
        raise AnotherRun(
            f"{folder} holds a run with other settings: {'; '.join(changes)}. Choose another name (run=...),"
            " put the settings back, or start over with resume=false, which moves that folder aside"
        )
    return saved["step"]


def set_aside(folder: Path) -> Path | None:
    """Rename `folder`, if it exists, to the first free name of folder.1, folder.2, ...; returns the new name."""
    aside = None
    if distributed.is_first() and folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
    distributed.barrier()
    return aside


def differences(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any] | None = None) -> list[str]:
    """List the differences between two run configs as sentences; ignores the number of steps and settings in FREE."""
    before, after, usual = (flat(json.loads(json.dumps(each))) for each in (old, new, defaults or {}))
    lengths = before.get(LENGTH), after.get(LENGTH)
    found = []
    for key in sorted(before | after):
        change = before.get(key, usual.get(key, "absent")), after.get(key, "absent")
        spans_the_run = key.endswith(".steps") and change == lengths  # a schedule as long as the run may grow with it
        if change[0] != change[1] and key.split(".")[-1] not in FREE and key != LENGTH and not spans_the_run:
            found.append(f"{key} was {change[0]}, now {change[1]}")
    return found


def defaults_of(schema: type) -> dict[str, Any]:
    """Return the defaults of a dataclass, including nested ones, as a nested dict."""
    found: dict[str, Any] = {}
    for each in fields(schema):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if default is not MISSING:
            found[each.name] = asdict(default) if is_dataclass(default) and not isinstance(default, type) else default
    return found


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dict: {"a": {"b": 1}} becomes {"a.b": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else key)
    return found
