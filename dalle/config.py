"""What users can type: each verb's options, checked before anything starts; what is wrong is said in a sentence."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dalle import distributed
from dalle.data import CONFIGS as DATA
from dalle.evaluation.settings import EvaluateConfig
from dalle.sampling.settings import SampleConfig
from dalle.stages import STAGES
from dalle.training.interruption import Interrupted
from dalle.training.logger import WandbConfig

FOLDER = Path(__file__).parents[1] / "configs"
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

    stage: Any = MISSING  # what is trained: dvae, clip, transformer, or all of them in turn
    data: Any = MISSING  # captioned pictures: blocks, emoji, folder
    preset: Any = None  # sizes, by name; the choice is merged into the stage
    run: str = "default"  # name of the run; the same name again goes on with it
    out: str = "outputs"  # runs lie in <out>/<stage>/<run>, those of stage=all in <out>/<run>/<stage>
    seed: int = 0  # of weights, data order and everything else that is random
    dvae: str | None = None  # checkpoint folder of the dVAE whose tokens the transformer learns
    device: str = "auto"  # auto | cpu | cuda | cuda:0
    resume: bool = True  # false: start over, with what stood there moved aside
    wandb: WandbConfig = field(default_factory=WandbConfig)


VERBS = {"train": TrainConfig, "sample": SampleConfig, "evaluate": EvaluateConfig}


def register() -> None:
    """Make the dataclasses known to Hydra, each as the schema that its YAML files begin with."""
    store = ConfigStore.instance()
    for name, schema in VERBS.items():
        store.store(name=f"{name}_schema", node=_writable(schema))
    for name, (schema, _) in STAGES.items():
        store.store(group="stage", name=f"{name}_schema", node=_writable(schema))
    for name, schema in DATA.items():
        store.store(group="data", name=f"{name}_schema", node=_writable(schema))


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """The options of the verb `name`, with `overrides` as on its command line, as its dataclass."""
    return _to_object(_compose(name, overrides))


def run_name(name: str) -> str:
    """`name`, and in a sweep what sets this job apart from the others."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return name
    chosen = [each for each in HydraConfig.get().overrides.task if each not in sys.argv]  # not the same for all
    parts = [re.sub(r"[^\w.]+", "_", each.removeprefix("stage.")) for each in chosen if "run=" not in each[:5]]
    full = "-".join([name, *parts])
    return full if len(full) <= 120 else f"{full[:110]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def verb(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Turn `main(config)` into a command, which reads the command line, and runs each job where that is a sweep.

    What a user can mend is said in a sentence on stderr, with exit status 2. Being asked to stop ends with 128 and
    the signal's number, as in a shell.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        full_error = os.environ.get(FULL_ERROR) == "1"

        def job(composed: DictConfig) -> None:
            try:
                main(_to_object(composed))
            except Interrupted as stopped:
                _say(str(stopped))
                raise SystemExit(128 + stopped.number) from None
            except KeyboardInterrupt:
                _say("stopped")
                raise SystemExit(130) from None
            except (ValueError, OSError, OmegaConfBaseException) as error:
                if full_error:
                    raise
                _say(str(error))
                sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
                raise (_Said if sweeping else SystemExit)(2) from None  # other jobs of a sweep still run

        def command() -> None:
            register()
            with _hydra_kept_quiet(name):
                try:
                    hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=name)(job)()
                except _Said:
                    raise SystemExit(2) from None
                except (HydraException, OmegaConfBaseException) as error:
                    if full_error:
                        raise
                    _say(explain(error, name, sys.argv[1:]))
                    raise SystemExit(2) from None

        return command

    return decorate


def explain(error: Exception, name: str, arguments: Sequence[str] = ()) -> str:
    """One sentence on why the command line `arguments` of the verb `name` could not be composed."""
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, OverrideParseException) or "Ambiguous value" in text:
        wrong = next((each for each in arguments if each in text), "an option")
        key = wrong.split("=")[0]
        return f"cannot read {wrong}: text with commas, brackets or quotes needs quotes of its own, '{key}=\"a, b\"'"
    if isinstance(error, MissingConfigException) and (missing := re.search(r"'([^']+)/([^']+)'", text)):
        group, option = missing.groups()
        options = sorted(set(re.findall(r"^\t([\w-]+)$", text, re.MULTILINE)))
        shown = ", ".join(each for each in options if not each.endswith("_schema"))
        return f"there is no {group}={option}; choose one of {shown or 'the YAML files in configs/' + group}"
    key = re.search(r"full_key: (\S+)", text)
    keys = known_keys(name, arguments)
    if key and key[1] not in keys:
        return f"there is no setting {key[1]}{_nearest(key[1], keys)}"
    cause = str(error.__cause__ or error).splitlines()[0]
    given = next((each for each in arguments if key and each.lstrip("+~").startswith(f"{key[1]}=")), None)
    parts = [each for each in keys if key and each.startswith(f"{key[1]}.") and "." not in each[len(key[1]) + 1 :]]
    hint = f"; set one of its parts, {', '.join(parts)}" if parts else ""
    return f"{given or (key and key[1]) or name}: {cause}{hint}"


def known_keys(name: str, arguments: Sequence[str] = ()) -> list[str]:
    """Every setting of the verb `name`, dotted, and every group, given the groups chosen in `arguments`."""
    groups = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    choices = [each.split(",")[0] for each in arguments if each.lstrip("+").split("=")[0] in groups]
    try:
        composed = _compose(name, choices)
    except (HydraException, OmegaConfBaseException):
        composed = _compose(name)
    return [*_keys(composed), *groups]


class _Said(Exception):
    """The user knows already."""


def _say(sentence: str) -> None:
    rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"{rank}{sentence}", file=sys.stderr)
    if os.environ.get(FULL_ERROR): ...
