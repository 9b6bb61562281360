"""A run folder: may this run go on in it, and how far has it come?"""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from dalle import checkpoint, distributed
from dalle.checkpoint import CheckpointError
from dalle.training.logger import WandbConfig

# how a run is watched and fed, not what it is: a run may go on with other values of these
FREE = {"log_every", "validate_every", "preview_every", "save_every", "max_bad_steps", "workers"}
LENGTH = "stage.steps"


class AnotherRun(CheckpointError):
    """What stands in a folder is not the run that was asked for, and stays as it is."""


@dataclass(frozen=True)
class Run:
    """One training run: where it lives, and what it is."""

    folder: Path  # metrics.jsonl, previews/, the checkpoint, state/
    identity: dict[str, Any]  # nested settings that make it this run and no other; holds "stage" and its "steps"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wandb: WandbConfig = field(default_factory=WandbConfig)
    defaults: dict[str, Any] = field(default_factory=dict)  # of `identity`'s settings, where they have any


def steps_done(folder: Path, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> int:
    """How many updates the run in `folder` has behind it; 0 for a new one.

    A setting that is newer than that run had its default there, one of `defaults`.

    Raises AnotherRun if what stands there is of other settings than `identity`, or has no state to go on from.
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
    """Rename `folder`, if it is there, to the first free of folder.1, folder.2, ...; returns its new name."""
    aside = None
    if distributed.is_first() and folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
    distributed.barrier()
    return aside


def differences(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any] | None = None) -> list[str]:
    """What makes `new` another run than `old`, as sentences; being longer, or watched otherwise, does not."""
    before, after, usual = (flat(json.loads(json.dumps(each))) for each in (old, new, defaults or {}))
    lengths = before.get(LENGTH), after.get(LENGTH)
    found = []
    for key in sorted(before | after):
        change = before.get(key, usual.get(key, "absent")), after.get(key, "absent")
        spans_the_run = key.endswith(".steps") and change == lengths  # a schedule as long as the run grows with it
        if change[0] != change[1] and key.split(".")[-1] not in FREE and key != LENGTH and not spans_the_run:
            found.append(f"{key} was {change[0]}, now {change[1]}")
    return found


def defaults_of(schema: type) -> dict[str, Any]:
    """The defaults of a dataclass, and of those in it, as nested settings."""
    found: dict[str, Any] = {}
    for each in fields(schema):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if default is not MISSING:
            found[each.name] = asdict(default) if is_dataclass(default) and not isinstance(default, type) else default
    return found


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else key)
    return found
