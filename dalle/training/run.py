"""Run folders: the config of a run, and the step from which it resumes."""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from dalle import distributed
from dalle.checkpoint import CheckpointError
from dalle.config_validation import flatten
from dalle.training import state_files
from dalle.training.logger import WandbConfig
from dalle.weights_files import has_weights

# settings of logging, saving and data loading that may change when a run resumes: they do not change its results
MUTABLE = {"log_every", "validate_every", "preview_every", "save_every", "max_skipped_steps", "workers"}
MUTABLE |= {"log_gradient_norms", "spike_deviations", "stall_minutes", "profile", "profile_steps"}
MUTABLE |= {"async_save", "keep_every", "keep_best"}
STEPS = "stage.steps"
RENAMED = {  # settings of runs saved by earlier versions -> their present names
    "stage.ema.warm_up": "stage.ema.warmup",
    "stage.max_bad_steps": "stage.max_skipped_steps",
    "stage.optimizer.plateau.halvings": "stage.optimizer.plateau.max_reductions",
    "stage.optimizer.warm_up": "stage.optimizer.warmup_steps",
    "stage.pad_targets": "stage.pad_loss",
    "stage.validation_pictures": "stage.validation_images",
    "stage.views": "stage.crops",
}


class RunConfigMismatchError(CheckpointError):
    """The folder contains a run with other settings, which is left unchanged."""


@dataclass(frozen=True)
class Run:
    """One training run: its folder and its settings."""

    folder: Path  # metrics.jsonl, previews/, the checkpoint, state/, checkpoints/, best/
    config: dict[str, Any]  # nested settings that must not change when the run resumes; "stage" has its "steps"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wandb: WandbConfig = field(default_factory=WandbConfig)
    defaults: dict[str, Any] = field(default_factory=dict)  # default values of the settings in `config`
    mesh: DeviceMesh | None = None  # ranks over which weights are sharded; None: each rank has all weights

    @cached_property
    def done(self) -> int:
        """Updates done when training begins: `resume_step`, decided once. All ranks must read it for the first time."""
        return resume_step(self.folder, self.config, self.defaults)


def resume_step(folder: Path, config: dict[str, Any], defaults: dict[str, Any] | None = None) -> int:
    """Return the step from which the run in `folder` resumes: the number of updates done, 0 for a new run.

    A setting that the saved run lacks, since it was added later, is taken from `defaults`. All ranks must call it.

    Raises RunConfigMismatchError if the saved run has other settings than `config`, or no state to resume from, and
    CheckpointError if ranks see different states.
    """
    saved = read_shared_scalars(folder)
    if saved is None:
        if has_weights(folder) and not state_files.was_first_save_interrupted(folder):
            raise RunConfigMismatchError(
                f"{folder} has a model but no training state to resume from. Choose another name with run=<name>, or"
                " start over with resume=false, which renames that folder"
            )
        return 0
    changes = differences(saved["identity"], config, defaults)
    if changes:
        raise RunConfigMismatchError(
            f"{folder} has a run with other settings: {'; '.join(changes)}. Choose another name with run=<name>,"
            " restore the settings, or start over with resume=false, which renames that folder"
        )
    return saved["step"]


def read_shared_scalars(folder: Path) -> dict[str, Any] | None:
    """Read the scalars of the newest state in `folder`; None if there is none. All ranks must call it.

    Raises CheckpointError unless all ranks see the same state: a rank that saw none would start anew beside others.
    """
    saved = state_files.read_scalars(folder)
    state = None if saved is None else (saved["step"], saved.get("wandb_id"))  # the id is that of the run
    first, *others = distributed.all_gather_object((state, has_weights(folder)))
    if any(other != first for other in others):
        raise CheckpointError(f"ranks see different states of {folder}: put out= on a file system that all nodes share")
    return saved


def rename_existing(folder: Path) -> Path | None:
    """Rename `folder`, if it exists, to the first free name of folder.1, folder.2, ...; returns the new name."""
    renamed = None
    if distributed.is_main_process() and folder.exists():
        number = 1
        while (renamed := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(renamed)
    distributed.barrier()
    return renamed


def differences(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any] | None = None) -> list[str]:
    """List the differences between two run configs as sentences, except the number of steps and MUTABLE."""
    before, after, default = (flatten_config(json.loads(json.dumps(each))) for each in (old, new, defaults or {}))
    steps = before.get(STEPS), after.get(STEPS)
    found = []
    for key in sorted(before | after):
        change = before.get(key, default.get(key, "absent")), after.get(key, "absent")
        spans_run = key.endswith(".steps") and change == steps  # a schedule as long as the run grows with it
        if change[0] != change[1] and key.split(".")[-1] not in MUTABLE and key != STEPS and not spans_run:
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


def flatten_config(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten a run's config; settings that an earlier version saved get their present names."""
    return {RENAMED.get(key, key): value for key, value in flatten(config).items()}
