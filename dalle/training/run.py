"""Run folders: the config of a run, and the step from which it resumes."""

import json
from dataclasses import KW_ONLY, MISSING, asdict, dataclass, field, fields, is_dataclass
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
MUTABLE = {
    *("stage.log_every", "stage.validate_every", "stage.preview_every", "stage.save_every", "stage.keep_every"),
    *("stage.log_gradient_norms", "stage.spike_deviations", "stage.stall_minutes", "stage.max_skipped_steps"),
    *("stage.profile", "stage.profile_steps", "stage.async_save", "stage.keep_best", "stage.workers"),
}
ACCUMULATE = "stage.accumulate"
# settings that may change too: the updates are the same up to rounding, and noise that is drawn for each micro-batch
MUTABLE_MEMORY = {ACCUMULATE, "stage.recompute", "stage.recompute_layers"}
# places of files: `StageData.warn_if_changed` compares the records that are found there, by digest
MUTABLE_PATHS = {"data.path", "data.captions", "data.opt_out"}
STEPS = "stage.steps"
SCHEDULE_LENGTH = ("steps", "delay")  # settings of a schedule


class RunConfigMismatchError(CheckpointError):
    """The folder contains a run with other settings, which is left unchanged."""


@dataclass(frozen=True)
class ResumePoint:
    """Point from which a run resumes."""

    step: int = 0  # updates done; 0: a new run
    changes: tuple[str, ...] = ()  # settings that differ from those of the run so far


@dataclass(frozen=True)
class Run:
    """One training run: its folder and its settings."""

    folder: Path  # metrics.jsonl, previews/, the checkpoint, state/, checkpoints/, best/
    config: dict[str, Any]  # nested settings that must not change when the run resumes; "stage" has its "steps"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wandb: WandbConfig = field(default_factory=WandbConfig)
    _: KW_ONLY
    defaults: dict[str, Any] = field(default_factory=dict)  # default values of the settings in `config`
    mesh: DeviceMesh | None = None  # ranks over which weights are sharded; None: each rank has all weights
    accumulation_is_exact: bool = True  # `StageConfig.accumulation_is_exact`

    @cached_property
    def resume_point(self) -> ResumePoint:
        """Point from which the run resumes, decided once, when it is first read, which all ranks must do.

        A setting that the saved run lacks, since it was added later, is taken from `defaults`.

        Raises RunConfigMismatchError if the saved run has other settings than `config`, or no state to resume from, and
        CheckpointError if ranks see different states.
        """
        saved = read_shared_scalars(self.folder)
        if saved is None:
            if has_weights(self.folder) and not state_files.was_first_save_interrupted(self.folder):
                raise RunConfigMismatchError(
                    f"{self.folder} has a model but no training state to resume from. Choose another name with "
                    "run=<name>, or start over with resume=false, which renames that folder"
                )
            return ResumePoint()
        refused = differences(saved["identity"], self.config, self.defaults, self.accumulation_is_exact)
        if refused:
            raise RunConfigMismatchError(
                f"{self.folder} has a run with other settings: {'; '.join(refused)}. Choose another name with "
                "run=<name>, restore the settings, or start over with resume=false, which renames that folder"
            )
        changes = changed_settings(saved["identity"], self.config, self.defaults).items()
        return ResumePoint(
            saved["step"], tuple(f"{key} {_shown(new)} instead of {_shown(old)}" for key, (old, new) in changes)
        )


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


def changed_settings(
    old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two run configs, by dotted name: (old value, new value)."""
    before, after, default = _flat(old), _flat(new), _flat(defaults or {})
    pairs = {
        key: (before.get(key, default.get(key, "absent")), after.get(key, "absent")) for key in sorted(before | after)
    }
    return {key: (old_value, new_value) for key, (old_value, new_value) in pairs.items() if old_value != new_value}


def differences(
    old: dict[str, Any],
    new: dict[str, Any],
    defaults: dict[str, Any] | None = None,
    accumulation_is_exact: bool = True,
) -> list[str]:
    """List the differences between two run configs with which a run must not resume, as sentences.

    The number of steps may change, and with it the length of schedules that end with the run.
    """
    allowed = {STEPS, *MUTABLE, *MUTABLE_MEMORY, *MUTABLE_PATHS} - (set() if accumulation_is_exact else {ACCUMULATE})
    allowed |= {f"{schedule}.{name}" for schedule in _followed(_flat(old), _flat(new)) for name in SCHEDULE_LENGTH}
    changes = changed_settings(old, new, defaults)
    return [
        f"{key} was {old_value}, now {new_value}"
        for key, (old_value, new_value) in changes.items()
        if key not in allowed
    ]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return flatten(json.loads(json.dumps(config)))


def _followed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the schedules that end with the run in two flat configs with different numbers of steps."""
    if before.get(STEPS) == after.get(STEPS):
        return []
    schedules = sorted(key.removesuffix(".steps") for key in after if key.endswith(".steps") and key != STEPS)
    return [schedule for schedule in schedules if _ends_with_run(before, schedule) and _ends_with_run(after, schedule)]


def _ends_with_run(config: dict[str, Any], schedule: str) -> bool:
    steps, delay = (config.get(f"{schedule}.{name}") for name in SCHEDULE_LENGTH)
    return steps is not None and (delay or 0) + steps == config.get(STEPS)


def defaults_of(schema: type) -> dict[str, Any]:
    """Return the defaults of a dataclass, including nested ones, as a nested dict."""
    if not any(setting.default is MISSING and setting.default_factory is MISSING for setting in fields(schema)):
        return asdict(schema())  # built, since the defaults of schedules depend on other fields
    defaults: dict[str, Any] = {}
    for setting in fields(schema):
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        if default is not MISSING:
            defaults[setting.name] = (
                asdict(default) if is_dataclass(default) and not isinstance(default, type) else default
            )
    return defaults


def _shown(value: Any) -> str:
    """Write a value as on the command line; an empty one in quotes."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value) or "''"
