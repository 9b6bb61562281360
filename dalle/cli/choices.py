"""Register with Hydra what is chosen by name: dataclasses (stage=dvae), and sections of YAML files (preset=small).

Other choices are files in configs/<group>, which Hydra reads by itself. Presets and sizes are files too, but each holds
sections, of which a stage takes the one that is called like it.
"""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from dalle.data import DATA_SETS
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES

FOLDER = Path(__file__).parents[2] / "configs"


class RegisteredFirst(SearchPathPlugin):
    """Let Hydra find what is registered before it looks for a file, as presets and sizes are not read as files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Hydra calls its store of what is registered "schema", and the folder of files "main"
        search_path.prepend("schema", "structured://", anchor="main")


@cache
def register() -> None:
    """Make all choices known to Hydra. Raises ValueError for a preset or a size that cannot be read."""
    store = ConfigStore.instance()
    for name, schema in STAGES.configs.items():
        store.store(group="stage", name=name, node=writable(schema))
    store.store(group="stage", name="all", node={"defaults": [f"{stage}@{stage}" for stage in STAGES]})
    for name, schema in EDITS.configs.items():
        store.store(group="edit", name=name, node=writable(schema))
    for name, schema in IMPORTS.configs.items():
        store.store(group="import", name=name, node=writable(schema), package="_global_")
    for name, schema in DATA_SETS.configs.items():
        store.store(group="data", name=name, node=writable(schema))
    for path in sorted(FOLDER.glob("preset/*.yaml")):
        register_preset(path)
    for path in sorted(FOLDER.glob("size/*.yaml")):
        register_size(path)
    Plugins.instance().register(RegisteredFirst)


def register_preset(path: Path) -> None:
    """Register a file that holds a section for each stage, the settings that differ from the stage's defaults.

    preset/<name> itself sets nothing; configs/train.yaml takes preset/<stage>/<name> into the stage.
    """
    store, name = ConfigStore.instance(), path.stem
    outside, sections = read_sections(path)
    if outside:
        (wrong, *_) = outside
        near = get_close_matches(str(wrong), STAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"a preset has {', '.join(STAGES)}"
        raise ValueError(f"{path}: there is no stage {wrong} that a section could be for; {hint}")
    if missing := [stage for stage in STAGES if stage not in sections]:
        raise ValueError(f"{path} has no section {missing[0]}; for the stage's defaults, write {missing[0]}: {{}}")
    store.store(group="preset", name=name, node={})
    for stage, section in sections.items():
        store.store(group=f"preset/{stage}", name=name, node=section)
    together = [f"/preset/{stage}/{name}@{stage}" for stage in STAGES]
    store.store(group="preset/all", name=name, node={"defaults": together})


def register_size(path: Path) -> None:
    """Register a file that holds settings of train.py, and further ones in a section for each stage that has some."""
    store, name = ConfigStore.instance(), path.stem
    outside, sections = read_sections(path)
    store.store(group="size", name=name, node=outside, package="_global_")
    for stage, section in sections.items():
        store.store(group=f"size/{stage}", name=name, node=section)


def read_sections(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Split a YAML file into what stands outside of sections that are called like stages, and these sections."""
    try:
        read = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"cannot read a YAML file: {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} has to hold settings, as name: value")
    sections = {stage: {} if read[stage] is None else read[stage] for stage in STAGES if stage in read}
    for stage, section in sections.items():
        if not isinstance(section, dict):
            raise ValueError(f"{path}: section {stage} has to hold settings, not {section!r}")
    return {key: value for key, value in read.items() if key not in sections}, sections


def groups() -> list[str]:
    """Name all groups: ablation, data, edit, ..."""
    register()
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    registered = {name for name, below in ConfigStore.instance().repo.items() if isinstance(below, dict)}
    return sorted(folders | registered - {"hydra"})


def options(group: str) -> list[str]:
    """Name what can be chosen in a group: base, paper, small, ..."""
    register()
    store = ConfigStore.instance()
    files = {path.name for path in (FOLDER / group).glob("*.yaml")}
    registered = store.list(group) if store.get_type(group) == ObjectType.GROUP else []
    names = [name.removesuffix(".yaml") for name in {*files, *registered} if name.endswith(".yaml")]
    return sorted(name for name in names if not name.endswith("_schema"))


def writable(schema: type) -> DictConfig:
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
