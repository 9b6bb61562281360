"""What users can type: each verb's options, checked before anything starts; what is wrong is said in a sentence."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dalle.data import CONFIGS as DATA
from dalle.evaluation.settings import EvaluateConfig
from dalle.interop import IMPORTS
from dalle.interop.settings import PrepareConfig
from dalle.mistakes import all_keys, explain, strangers, unknown
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


VERBS = {"train": TrainConfig, "sample": SampleConfig, "evaluate": EvaluateConfig, "prepare": PrepareConfig}


def register() -> None:
    """Make the dataclasses known to Hydra, each as the schema that its YAML files begin with."""
    store = ConfigStore.instance()
    for name, schema in VERBS.items():
        store.store(name=f"{name}_schema", node=_writable(schema))
    for name, (schema, _) in STAGES.items():
        store.store(group="stage", name=f"{name}_schema", node=_writable(schema))
    for name, schema in DATA.items():
        store.store(group="data", name=f"{name}_schema", node=_writable(schema))
    for name, (schema, _) in IMPORTS.items():
        store.store(group="import", name=f"{name}_schema", node=_writable(schema), package="_global_")


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """The options of the verb `name`, with `overrides` as on its command line, as its dataclass."""
    return _to_object(_compose(name, overrides))


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
            with _hydra_kept_quiet(name) as typed:
                try:
                    hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=name)(job)()
                except _Said:
                    raise SystemExit(2) from None
                except (HydraException, OmegaConfBaseException) as error:
                    if full_error:
                        raise
                    _say(explain(error, known_keys(name, typed), typed))
                    raise SystemExit(2) from None

        return command

    return decorate


def known_keys(name: str, arguments: Sequence[str] = ()) -> list[str]:
    """Every setting of the verb `name`, dotted, and every group, given the groups chosen in `arguments`."""
    groups = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    choices = [each.split(",")[0] for each in arguments if each.lstrip("+").split("=")[0] in groups]
    try:
        composed = _compose(name, choices)
    except (HydraException, OmegaConfBaseException):
        composed = _compose(name)
    return [*all_keys(composed), *groups]


class _Said(Exception):
    """The user knows already."""


def _say(sentence: str) -> None:
    rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    print(f"{rank}{sentence}", file=sys.stderr)


@contextmanager
def _hydra_kept_quiet(name: str) -> Iterator[list[str]]:
    """Within it, Hydra makes no folders or logs and raises what goes wrong; yields what the user typed."""
    typed = sys.argv[1:]
    # side by side with the user's overrides, as Hydra's parser wants them all in one row
    place = next((at for at, each in enumerate(typed) if "=" in each and not each.startswith("-")), len(typed))
    environment = os.environ.get(FULL_ERROR)
    sys.argv[1:] = [*typed[:place], *QUIET, f"hydra.job.name={name}", *typed[place:]]
    os.environ[FULL_ERROR] = "1"
    try:
        yield typed
    finally:
        sys.argv[1:] = typed
        os.environ.pop(FULL_ERROR)
        if environment is not None:
            os.environ[FULL_ERROR] = environment


def _compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    register()
    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def _to_object(composed: DictConfig) -> Any:
    """The composed options as dataclasses; ValueError for one that was added with a + and that none of them has."""
    added = list(strangers(composed))
    if added:
        raise ValueError(unknown(added[0], [key for key in all_keys(composed) if key not in added]))
    return OmegaConf.to_object(composed)


def _writable(schema: type) -> DictConfig:
    """The dataclass as Hydra keeps it, though it be frozen: Hydra would not let a frozen one be overridden."""

    def thaw(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            below = node._get_node(key)
            if isinstance(below, DictConfig) and not below._is_none() and not below._is_missing():
                thaw(below)

    structure = OmegaConf.structured(schema)
    thaw(structure)
    return structure
