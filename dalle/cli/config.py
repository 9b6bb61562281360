"""What users can type: each verb's options, checked before anything starts; what is wrong is said in a sentence."""

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
from dalle.evaluation.settings import EvaluateConfig
from dalle.pretrained.settings import PrepareConfig
from dalle.sampling.settings import SampleConfig
from dalle.training.interruption import Interrupted
from dalle.training.logger import WandbConfig

# settings that are read as they are typed, commas, quotes and all
TEXTS = ("caption", "data.path", "data.captions", "data.opt_out", "find")
LISTS = ("runs", "metrics")  # settings that are lists with or without brackets
MENDABLE = (ValueError, OSError, OmegaConfBaseException)  # by the user, who is told in a sentence
HELP, HELP_ALL = {"-h", "--help"}, "--help-all"
FULL_ERROR = "HYDRA_FULL_ERROR"  # 1 in the environment shows where an error was raised

# Hydra composes settings; folders and logs are the verbs' affair
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

    # what is trained; all: dVAE, CLIP and transformer in turn, the transformer on the dVAE just trained, with settings
    # such as stage.dvae.steps=...
    stage: Any = MISSING
    data: Any = MISSING  # captioned pictures to train on
    preset: Any = None  # sizes of the models, and the recipe for them: merged into the settings of the stage
    size: str | None = None  # of an ablation's runs; laptop: a minute or so each on one CPU core
    ablation: AblationConfig | None = None  # the question that a sweep of runs is to answer: -m +ablation=<name>
    run: str = "default"  # name of the run; the same name again goes on with it
    out: str = "outputs"  # runs lie in <out>/<stage>/<run>, those of stage=all in <out>/<run>/<stage>
    seed: int = 0  # of weights, data order and everything else that is random
    dvae: str | None = None  # checkpoint folder of the dVAE whose tokens the transformer learns
    tokens: str | None = None  # pictures encoded before, or the folder where such are kept; null: <out>/tokens
    device: str = "auto"  # auto | cpu | cuda | cuda:0
    deterministic: bool = False  # on a GPU the same bits each time, by slower kernels; a CPU's are the same anyway
    resume: bool = True  # false: start over, with what stood there moved aside
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
    """Make each verb's dataclass known to Hydra, as the schema that its YAML file begins with, and all choices."""
    for name, schema in VERBS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=writable(schema))
    choices.register()


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """The options of the verb `name`, with `overrides` as on its command line, as its dataclass."""
    return to_object(_compose(name, overrides))


def run_name(name: str) -> str:
    """`name`, and in a sweep what sets this job apart from the others."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return name
    chosen = [each for each in HydraConfig.get().overrides.task if each not in sys.argv]  # not the same for all
    parts = [re.sub(r"[^\w.]+", "_", each.removeprefix("stage.")) for each in chosen if not each.startswith("run=")]
    full = "-".join([name, *parts])
    return full if len(full) <= 120 else f"{full[:110]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def verb(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Turn `main(config)` into a command, which reads the command line, and runs each job where that is a sweep.

    What a user can mend is said in a sentence on stderr, with exit status 2. Being asked to stop ends with 128 and
    the signal's number, as in a shell. A job that fails does not stop its sweep, which lists it at the end.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        full_error = os.environ.get(FULL_ERROR) == "1"
        failed: list[str] = []  # jobs of a sweep

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
                failed.append(f"{' '.join(HydraConfig.get().overrides.task)}: {told}")  # other jobs still run

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
                except ValueError as error:  # --help beside a value that its dataclass refuses
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
    """What is wrong with asking the verb `name` for a sweep that another one does, if that is so."""
    asked = {each.lstrip("+").partition("=")[2] for each in arguments if each.lstrip("+").startswith("ablation=")}
    for path in (FOLDER / "ablation" / f"{ablation}.yaml" for ablation in asked):
        given: Any = OmegaConf.load(path) if path.is_file() else {}
        verb_of_sweep = given.get("ablation", {}).get("verb", AblationConfig.verb)
        if verb_of_sweep != name:
            return f"ablation={path.stem} is one of {verb_of_sweep}.py: python {verb_of_sweep}.py {' '.join(arguments)}"
    return None


def known_keys(name: str, arguments: Sequence[str] = ()) -> list[str]:
    """Every setting of the verb `name`, dotted, and every group, given the groups chosen in `arguments`."""
    groups = choices.groups()
    chosen = [each.split(",")[0] for each in arguments if each.lstrip("+").split("=")[0] in groups]
    schemas = [each for each in chosen if each.split("=")[0] in ("stage", "data", "edit", "import")]
    for given in (chosen, schemas, []):  # fewer where a choice cannot be composed
        try:
            return [*all_keys(_compose(name, given)), *groups]
        except (HydraException, OmegaConfBaseException):
            continue
    return groups


def choices_of(name: str) -> dict[str, list[str]]:
    """List what the verb `name` can be given by name: {"stage": ["all", "clip", ...], ...}."""
    given: Any = OmegaConf.load(FOLDER / f"{name}.yaml")
    named = [str(group) for each in given.defaults if isinstance(each, DictConfig) for group in each]
    return {group: choices.options(group) for group in named if group in choices.groups()}


def _say(sentence: str) -> None:
    rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"{rank}{sentence}", file=sys.stderr)


@contextmanager
def _hydra_kept_quiet(name: str) -> Iterator[list[str]]:
    """Within it, Hydra makes no folders or logs and raises what goes wrong; yields what the user typed."""
    typed = sys.argv[1:]
    sweeping = not {"-m", "--multirun"}.isdisjoint(typed)  # where commas separate the jobs' values
    given = typed if sweeping else [_literal(each) for each in typed]
    # side by side with the user's overrides, as Hydra's parser wants them all in one row
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
    """An argument that gives one of `TEXTS`, in the quotes that make Hydra take it literally; others as they are.

    One of `LISTS` gets the brackets that make Hydra take it as a list.
    """
    key, _, text = argument.partition("=")
    if key in LISTS and not text.startswith("["):
        return f"{key}=[{text}]"
    in_quotes = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if key not in TEXTS or in_quotes:
        return argument
    text = re.sub(r'(\\+)(?="|$)', r"\1\1", text)  # elsewhere Hydra takes backslashes literally anyway
    text = text.replace('"', '\\"').replace("${", "\\${")
    return f'{key}="{text}"'


def initialised() -> AbstractContextManager[Any]:
    """Within it, Hydra composes what lies in `FOLDER`; within a verb it does so anyway."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_dir(str(FOLDER), version_base="1.3")


def _compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    register()
    with initialised():
        return hydra.compose(name, list(overrides))


def to_object(composed: DictConfig) -> Any:
    """The composed options as dataclasses; ValueError for one that was added with a + and that none of them has."""
    added = list(strangers(composed))
    if added:
        raise ValueError(unknown(added[0], [key for key in all_keys(composed) if key not in added]))
    return OmegaConf.to_object(composed)
