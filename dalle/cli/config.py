"""Command-line options of each command, checked before work starts. Errors are reported as one sentence."""

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dalle.ablation import AblationConfig
from dalle.ablations.settings import ReportConfig
from dalle.cli import choices
from dalle.cli.choices import FOLDER, writable
from dalle.cli.errors import all_keys, explain, strangers, unknown
from dalle.cli.help import FIRST, shown_first, usage
from dalle.cli.prepare_config import PrepareConfig
from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.command_config import SampleConfig
from dalle.training.interruption import Interrupted
from dalle.training.logger import WandbConfig

# settings that are read literally, including commas and quotes
TEXTS = ("caption", "data.path", "data.captions", "data.opt_out", "find")
LISTS = ("runs", "metrics")  # list settings that may be typed without brackets
MENDABLE = (ValueError, OSError, OmegaConfBaseException)  # user errors, reported as one sentence without traceback
HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable; 1 shows the traceback of an error

# Hydra only composes settings; the commands create folders and logs themselves
QUIET = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=outputs/.multirun",
    "hydra.sweep.subdir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


@dataclass(frozen=True)
class TrainConfig:
    """Options of train.py."""

    # model to train; all: dVAE, CLIP and transformer in turn, with settings such as stage.dvae.steps=...; the
    # transformer uses the dVAE trained before
    stage: Any = MISSING
    data: Any = MISSING  # captioned images to train on
    preset: Any = None  # model sizes and training recipe, merged into the settings of the stage
    size: str | None = None  # size of an ablation's runs; laptop: about a minute each on one CPU core
    ablation: AblationConfig | None = None  # the question that a sweep of runs answers: -m +ablation=<name>
    run: str = "default"  # name of the run; using the same name again resumes it
    out: str = "outputs"  # output folder: runs are in <out>/<stage>/<run>, with stage=all in <out>/<run>/<stage>
    seed: int = 0  # random seed of weights, data order and everything else
    dvae: str | None = None  # checkpoint folder of the dVAE that encodes images for the transformer
    tokens: str | None = None  # token cache, or the folder of token caches; null: <out>/tokens
    device: str = "auto"  # auto | cpu | cuda | cuda:0
    deterministic: bool = False  # bitwise reproducible results on a GPU, with slower kernels; a CPU always is
    resume: bool = True  # false: start over and move the existing run folder aside
    wandb: WandbConfig = field(default_factory=WandbConfig)


VERBS = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "prepare": PrepareConfig,
}


@cache
def register() -> None:
    """Register with Hydra the dataclass of each command, as the schema of its YAML file, and all config groups."""
    for name, schema in VERBS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=writable(schema))
    choices.register()


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """Compose the options of the command `name` with `overrides` as on its command line. Returns its dataclass."""
    return to_object(_compose(name, overrides))


def run_name(name: str) -> str:
    """Return the run name: `name`, and in a sweep also the overrides that differ between jobs."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return name
    chosen = [each for each in HydraConfig.get().overrides.task if each not in sys.argv]  # vary by job
    parts = [re.sub(r"[^\w.]+", "_", each.removeprefix("stage.")) for each in chosen if not each.startswith("run=")]
    full = "-".join([name, *parts])
    return full if len(full) <= 120 else f"{full[:110]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def verb(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Return a decorator that turns `main(config)` into a command. It reads the command line and runs sweeps.

    A user error prints one sentence on stderr and exits with status 2. A stop signal exits with 128 + its number, as
    in a shell. A failed job does not stop a sweep; failed jobs are listed at the end.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        full_error = os.environ.get(FULL_ERROR) == "1"
        failed: list[str] = []  # failed jobs of a sweep

        def job(composed: DictConfig) -> None:
            sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
            try:
                main(to_object(composed))
            except Interrupted as stopped:
                _say(str(stopped))
                raise SystemExit(128 + stopped.number) from None
            except KeyboardInterrupt:
                _say("stopped")
                raise SystemExit(130) from None
            except Exception as error:
                mendable = isinstance(error, MENDABLE)
                if full_error or (not sweeping and not mendable):
                    raise
                _say(str(error) if mendable else traceback.format_exc())
                if not sweeping:
                    raise SystemExit(2) from None
                told = str(error) if mendable else f"{type(error).__name__}: {error}"
                failed.append(f"{' '.join(HydraConfig.get().overrides.task)}: {told}")  # continue with the other jobs

        def command() -> None:
            try:
                register()
            except ValueError as error:
                _say(str(error))
                raise SystemExit(2) from None
            with _hydra_kept_quiet(name) as typed:
                if wrong := for_another_verb(name, typed):
                    _say(wrong)
                    raise SystemExit(2)
                try:
                    if not {*HELP, HELP_ALL}.isdisjoint(typed):
                        composed = compose(name, [_literal(each) for each in typed if "=" in each])
                        first = None if HELP_ALL in typed or name not in FIRST else partial(shown_first, name, typed)
                        print(usage(f"{name}.py", composed, choices_of(name), first))
                        return
                    hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=name)(job)()
                except (HydraException, OmegaConfBaseException) as error:
                    if full_error:
                        raise
                    _say(explain(error, known_keys(name, typed), typed))
                    raise SystemExit(2) from None
                except ValueError as error:  # --help with a value that its dataclass rejects
                    if full_error:
                        raise
                    _say(str(error))
                    raise SystemExit(2) from None
            if failed:
                _say("\n  ".join([f"jobs of this sweep that failed, {len(failed)}:", *failed]))
                raise SystemExit(2)

        return command

    return decorate


def for_another_verb(name: str, arguments: Sequence[str]) -> str | None:
    """Return an error message if the command line asks for an ablation of another command than `name`, else None."""
    asked = {each.lstrip("+").partition("=")[2] for each in arguments if each.lstrip("+").startswith("ablation=")}
    for path in (FOLDER / "ablation" / f"{ablation}.yaml" for ablation in asked):
        given: Any = OmegaConf.load(path) if path.is_file() else {}
        verb_of_sweep = given.get("ablation", {}).get("verb", AblationConfig.verb)
        if verb_of_sweep != name:
            return f"ablation={path.stem} is one of {verb_of_sweep}.py: python {verb_of_sweep}.py {' '.join(arguments)}"
    return None


def known_keys(name: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return all dotted settings of the command `name` with the groups chosen in `arguments`, and all group names."""
    groups = choices.groups()
    chosen = [each.split(",")[0] for each in arguments if each.lstrip("+").split("=")[0] in groups]
    schemas = [each for each in chosen if each.split("=")[0] in ("stage", "data", "edit", "import")]
    for given in (chosen, schemas, []):  # with fewer choices if one cannot be composed
        try:
            return [*all_keys(_compose(name, given)), *groups]
        except (HydraException, OmegaConfBaseException):
            continue
    return groups


def choices_of(name: str) -> dict[str, list[str]]:
    """Return the config groups of the command `name` with their options: {"stage": ["all", "clip", ...], ...}."""
    given: Any = OmegaConf.load(FOLDER / f"{name}.yaml")
    named = [str(group) for each in given.defaults if isinstance(each, DictConfig) for group in each]
    return {group: choices.options(group) for group in named if group in choices.groups()}


def _say(sentence: str) -> None:
    rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"{rank}{sentence}", file=sys.stderr)


@contextmanager
def _hydra_kept_quiet(name: str) -> Iterator[list[str]]:
    """Context in which Hydra makes no folders or logs and raises its errors. Yields the user's arguments."""
    typed = sys.argv[1:]
    sweeping = not {"-m", "--multirun"}.isdisjoint(typed)  # in a sweep, commas separate the values of jobs
    given = typed if sweeping else [_literal(each) for each in typed]
    # insert next to the user's overrides: Hydra's parser requires overrides to be consecutive
    place = next((at for at, each in enumerate(typed) if "=" in each and not each.startswith("-")), len(typed))
    environment = os.environ.get(FULL_ERROR)
    sys.argv[1:] = [*given[:place], *QUIET, f"hydra.job.name={name}", *given[place:]]
    os.environ[FULL_ERROR] = "1"
    try:
        yield typed
    finally:
        sys.argv[1:] = typed
        os.environ.pop(FULL_ERROR)
        if environment is not None:
            os.environ[FULL_ERROR] = environment


def _literal(argument: str) -> str:
    """Quote an argument that sets one of `TEXTS`, so that Hydra reads it literally. Others are returned unchanged.

    An argument that sets one of `LISTS` gets brackets, so that Hydra reads it as a list.
    """
    key, _, text = argument.partition("=")
    if key in LISTS and not text.startswith("["):
        return f"{key}=[{text}]"
    in_quotes = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if key not in TEXTS or in_quotes:
        return argument
    text = re.sub(r'(\\+)(?="|$)', r"\1\1", text)  # elsewhere Hydra reads backslashes literally
    text = text.replace('"', '\\"').replace("${", "\\${")
    return f'{key}="{text}"'


def initialised() -> AbstractContextManager[Any]:
    """Context in which Hydra composes the configs in `FOLDER`. Does nothing if Hydra is initialized already."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_dir(str(FOLDER), version_base="1.3")


def _compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    register()
    with initialised():
        return hydra.compose(name, list(overrides))


def to_object(composed: DictConfig) -> Any:
    """Convert composed options to dataclasses. Raises ValueError for a key added with + that no dataclass has."""
    added = list(strangers(composed))
    if added:
        raise ValueError(unknown(added[0], [key for key in all_keys(composed) if key not in added]))
    return OmegaConf.to_object(composed)
