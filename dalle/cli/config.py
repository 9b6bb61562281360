"""Command-line options of each command, checked before work starts. Errors are reported as one sentence."""

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dalle import distributed
from dalle.ablation_config import AblationConfig
from dalle.ablations.report_config import ReportConfig
from dalle.cli import config_groups
from dalle.cli.arguments import hydra_argument, without_sweep
from dalle.cli.config_groups import CONFIG_DIR, writable
from dalle.cli.errors import (
    ERROR_STATUS,
    all_keys,
    explain_hydra_error,
    unknown_keys,
    unknown_option,
    unknown_setting_message,
    wrong_option_message,
)
from dalle.cli.help import MAIN_SETTINGS, help_text, is_main_setting, print_help
from dalle.cli.prepare_config import PrepareConfig
from dalle.cli.train_config import TrainConfig
from dalle.evaluation.evaluate_config import EvaluateConfig
from dalle.sampling.command_config import SampleCommandConfig
from dalle.signals import Interrupted
from dalle.studio.config import StudioConfig

USER_ERRORS = (ValueError, OSError, OmegaConfBaseException)  # reported as one sentence, without a traceback
HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
SUBMITIT = "SUBMITIT_EXECUTOR"  # environment variable that submitit sets in its jobs, on a SLURM cluster for instance
HYDRA_FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable; 1 shows the traceback of an error

# keep Hydra from creating folders and logs, which the commands do themselves
HYDRA_OVERRIDES = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=outputs/.multirun",
    "hydra.sweep.subdir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)

COMMANDS = {
    "train": TrainConfig,
    "sample": SampleCommandConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "prepare": PrepareConfig,
    "studio": StudioConfig,
}


@cache
def register() -> None:
    """Register with Hydra the dataclass of each command, as the schema of its YAML file, and all config groups."""
    for name, schema in COMMANDS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=writable(schema))
    config_groups.register()


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """Compose the options of the command `name` with `overrides` as on its command line. Returns its dataclass."""
    return to_object(_compose(name, overrides))


def chosen_option(group: str) -> str:
    """Return the option of a config group that the running command was given, or its default."""
    return HydraConfig.get().runtime.choices[group]


def run_name(name: str) -> str:
    """Return a run's name for its folder: `name`, and in a sweep also the overrides that differ between jobs."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return name
    job_overrides = [
        override for override in HydraConfig.get().overrides.task if override not in sys.argv
    ]  # vary by job
    parts = [
        _folder_part(override.removeprefix("stage.")) for override in job_overrides if not override.startswith("run=")
    ]
    full_name = "-".join([name, *parts])
    return full_name if len(full_name) <= 120 else f"{full_name[:110]}-{_short_hash(full_name)}"


def _folder_part(override: str) -> str:
    """Return an override as a part of a folder's name, with a hash if letters of its value had to be replaced."""
    key, _, value = override.partition("=")
    key, safe_value = re.sub(r"[^\w.]+", "_", key), re.sub(r"[^\w.+-]+", "_", value)
    return f"{key}_{value}" if safe_value == value else f"{key}_{safe_value.strip('_')}-{_short_hash(value)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def command(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Return a decorator that turns `main(config)` into a command. It reads the command line and runs sweeps.

    A user error, and the loss of another rank, print one sentence on stderr and exit with `ERROR_STATUS`; any other
    error keeps its traceback and exits with 1. A stop signal exits with 128 + its number, as in a shell. A failed job
    does not stop a sweep; failed jobs are listed at the end.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        full_error = os.environ.get(HYDRA_FULL_ERROR) == "1"
        failures: list[str] = []  # failed jobs of a sweep
        command_line: list[str] = []  # `sys.argv` when Hydra started

        def run_job(composed: DictConfig) -> None:
            in_submitit_job = SUBMITIT in os.environ  # a process of its own, with a pickled copy of this function
            if in_submitit_job:
                sys.argv[:] = command_line  # `run_name` compares it with the job's overrides
            sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
            try:
                main(to_object(composed))
            except Interrupted as stopped:
                _print_error(str(stopped))
                raise SystemExit(128 + stopped.signum) from None
            except KeyboardInterrupt:
                _print_error("stopped")
                raise SystemExit(130) from None
            except Exception as error:
                sentence = explain_error(error)
                if full_error or (not sweeping and sentence is None):
                    raise
                _print_error(traceback.format_exc() if sentence is None else sentence)
                if not sweeping:
                    raise SystemExit(ERROR_STATUS) from None
                message = f"{type(error).__name__}: {error}" if sentence is None else sentence
                failure = f"{' '.join(HydraConfig.get().overrides.task)}: {message}"
                if in_submitit_job:
                    raise ValueError(failure) from None  # tells SLURM and the process of the sweep that the job failed
                failures.append(failure)  # continue with other jobs

        def run() -> None:
            failures.clear()
            try:
                register()
            except ValueError as error:
                _print_error(str(error))
                raise SystemExit(ERROR_STATUS) from None
            with _hydra_arguments(name) as arguments:
                message = wrong_command_message(name, arguments)
                if option := unknown_option(arguments, {*HELP, HELP_ALL}):
                    message = wrong_option_message(option, valid_keys(name, arguments))
                if message:
                    _print_error(message)
                    raise SystemExit(ERROR_STATUS)
                try:
                    if not {*HELP, HELP_ALL}.isdisjoint(arguments):
                        print_command_help(name, arguments)
                        return
                    command_line[:] = sys.argv
                    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(run_job)()
                except (HydraException, OmegaConfBaseException) as error:
                    if full_error:
                        raise
                    _print_error(explain_hydra_error(error, valid_keys(name, arguments), arguments))
                    raise SystemExit(ERROR_STATUS) from None
                except ValueError as error:  # --help with a value that its dataclass rejects
                    if full_error:
                        raise
                    _print_error(str(error))
                    raise SystemExit(ERROR_STATUS) from None
            if failures:
                jobs = "job" if len(failures) == 1 else "jobs"
                _print_error("\n  ".join([f"{len(failures)} {jobs} of this sweep failed:", *failures]))
                raise SystemExit(ERROR_STATUS)

        return run

    return decorate


def explain_error(error: Exception) -> str | None:
    """Return the sentence that explains an error of a command; None for one that is printed with its traceback."""
    if distributed.is_lost_rank(error):
        return "another rank ended, or did not answer: see its message"
    return str(error) if isinstance(error, USER_ERRORS) else None


def print_command_help(name: str, arguments: Sequence[str]) -> None:
    """Print the help of a command, with the values that `arguments` set. --help-all prints all settings."""
    composed = compose(name, [without_sweep(hydra_argument(argument)) for argument in arguments if "=" in argument])
    show_all = HELP_ALL in arguments or name not in MAIN_SETTINGS
    is_shown = None if show_all else partial(is_main_setting, name, arguments)
    program = sys.argv[0] if sys.argv[0].startswith("dalle ") else f"python {name}.py"
    print_help(help_text(program, composed, group_options(name), is_shown))


def wrong_command_message(name: str, arguments: Sequence[str]) -> str | None:
    """Return an error message if the command line asks for an ablation of another command than `name`, else None."""
    names = {
        argument.lstrip("+").partition("=")[2] for argument in arguments if argument.lstrip("+").startswith("ablation=")
    }
    for path in (CONFIG_DIR / "ablation" / f"{ablation}.yaml" for ablation in names):
        settings: Any = OmegaConf.load(path) if path.is_file() else {}
        expected = settings.get("ablation", {}).get("command", AblationConfig.command)
        if expected != name:
            return f"ablation={path.stem} is run by {expected}.py: use python {expected}.py {' '.join(arguments)}"
    return None


def valid_keys(name: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return all dotted settings of the command `name` with the groups chosen in `arguments`, and all group names."""
    groups = config_groups.groups()
    group_overrides = [argument.split(",")[0] for argument in arguments if argument.lstrip("+").split("=")[0] in groups]
    schema_overrides = [
        override for override in group_overrides if override.split("=")[0] in ("stage", "data", "edit", "import")
    ]
    for overrides in (group_overrides, schema_overrides, []):  # with fewer groups if one cannot be composed
        try:
            return [*all_keys(_compose(name, overrides)), *groups]
        except (HydraException, OmegaConfBaseException):
            continue
    return groups


def group_options(name: str) -> dict[str, list[str]]:
    """Return the config groups of the command `name` with their options: {"stage": ["all", "clip", ...], ...}."""
    command_config: Any = OmegaConf.load(CONFIG_DIR / f"{name}.yaml")
    group_names = [
        str(group) for default in command_config.defaults if isinstance(default, DictConfig) for group in default
    ]
    return {group: config_groups.options(group) for group in group_names if group in config_groups.groups()}


def _print_error(sentence: str) -> None:
    rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"{rank}{sentence}", file=sys.stderr)


@contextmanager
def _hydra_arguments(name: str) -> Iterator[list[str]]:
    """Context that sets `sys.argv` so that Hydra makes no folders or logs and raises errors. Yields the arguments."""
    arguments = sys.argv[1:]
    sweeping = not {"-m", "--multirun"}.isdisjoint(arguments)  # in a sweep, commas separate the values of jobs
    converted = [hydra_argument(argument, sweeping) for argument in arguments]
    # insert next to the user's overrides: Hydra's parser requires overrides to be consecutive
    start = next(
        (index for index, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-")),
        len(arguments),
    )
    environment = os.environ.get(HYDRA_FULL_ERROR)
    sys.argv[1:] = [*converted[:start], *HYDRA_OVERRIDES, f"hydra.job.name={name}", *converted[start:]]
    os.environ[HYDRA_FULL_ERROR] = "1"
    try:
        yield arguments
    finally:
        sys.argv[1:] = arguments
        os.environ.pop(HYDRA_FULL_ERROR)
        if environment is not None:
            os.environ[HYDRA_FULL_ERROR] = environment


def hydra_initialized() -> AbstractContextManager[Any]:
    """Context in which Hydra composes the configs in `CONFIG_DIR`. Does nothing if Hydra is initialized already."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3")


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    register()
    with hydra_initialized():
        return hydra.compose(name, list(overrides))


def to_object(composed: DictConfig) -> Any:
    """Convert composed options to dataclasses. Raises ValueError for an unknown key added with + and for ???."""
    unknown = list(unknown_keys(composed))
    if unknown:
        raise ValueError(unknown_setting_message(unknown[0], [key for key in all_keys(composed) if key not in unknown]))
    try:
        return OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise ValueError(f'{error.full_key}=??? is read as a missing value: write "??? ", with a space') from error
