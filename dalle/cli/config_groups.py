"""Register config groups with Hydra: dataclasses (stage=dvae) and sections of YAML files (preset=small).

Hydra reads the files in configs/<group> of other groups itself. Preset and size files contain one section per stage;
a stage uses the section with its own name.
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

from dalle.cli.prepare_config import with_import
from dalle.data import DATA_SETS
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import ALL_STAGES, STAGES

PACKAGED_CONFIGS = Path(__file__).parents[1] / "configs"  # where pyproject.toml puts configs/ in a wheel
CONFIG_DIR = PACKAGED_CONFIGS if PACKAGED_CONFIGS.is_dir() else Path(__file__).parents[2] / "configs"


class StoreBeforeFiles(SearchPathPlugin):
    """Search path plugin that puts registered configs before files, because presets and sizes are not read as files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # "schema" is Hydra's name of the ConfigStore, "main" that of the folder of files
        search_path.prepend("schema", "structured://", anchor="main")


@cache
def register() -> None:
    """Register all config groups with Hydra. Raises ValueError for a preset or a size that cannot be read."""
    store = ConfigStore.instance()
    for name, schema in STAGES.configs.items():
        store.store(group="stage", name=name, node=writable(schema))
    store.store(group="stage", name="all", node={"defaults": [f"{stage}@{stage}" for stage in ALL_STAGES]})
    for name, schema in EDITS.configs.items():
        store.store(group="edit", name=name, node=writable(schema))
    for name, schema in IMPORTS.configs.items():
        store.store(group="import", name=name, node=writable(with_import(schema)), package="_global_")
    for name, schema in DATA_SETS.configs.items():
        store.store(group="data", name=name, node=writable(schema))
    for path in sorted(CONFIG_DIR.glob("preset/*.yaml")):
        register_preset(path)
    for path in sorted(CONFIG_DIR.glob("size/*.yaml")):
        register_size(path)
    Plugins.instance().register(StoreBeforeFiles)


def register_preset(path: Path) -> None:
    """Register a preset file. It has a section for each stage, with the settings that differ from the defaults.

    Stages outside of stage=all may have no section, and then have their defaults.
    preset/<name> itself is empty; configs/train.yaml merges preset/<stage>/<name> into the stage.
    """
    store, name = ConfigStore.instance(), path.stem
    other_settings, sections = read_sections(path)
    if other_settings:
        (unknown_stage, *_) = other_settings
        closest = get_close_matches(str(unknown_stage), STAGES, n=1)
        hint = f"did you mean {closest[0]}?" if closest else f"sections of a preset are {', '.join(STAGES)}"
        raise ValueError(f"{path}: there is no stage {unknown_stage}; {hint}")
    if missing := [stage for stage in ALL_STAGES if stage not in sections]:
        raise ValueError(f"{path} has no section {missing[0]}; to use the stage's defaults, write {missing[0]}: {{}}")
    store.store(group="preset", name=name, node={})
    for stage in STAGES:
        store.store(group=f"preset/{stage}", name=name, node=sections.get(stage, {}))
    all_stages = [f"/preset/{stage}/{name}@{stage}" for stage in ALL_STAGES]
    store.store(group="preset/all", name=name, node={"defaults": all_stages})


def register_size(path: Path) -> None:
    """Register a size file. It has settings of train.py and optional sections with settings of a stage."""
    store, name = ConfigStore.instance(), path.stem
    other_settings, sections = read_sections(path)
    store.store(group="size", name=name, node=other_settings, package="_global_")
    for stage, section in sections.items():
        store.store(group=f"size/{stage}", name=name, node=section)


def read_sections(path: Path) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Read a YAML file: (settings outside of all stage sections, settings of each section by stage)."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"cannot read a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain settings of the form name: value")
    sections = {stage: {} if content[stage] is None else content[stage] for stage in STAGES if stage in content}
    for stage, section in sections.items():
        if not isinstance(section, dict):
            raise ValueError(f"{path}: section {stage} must contain settings, not {section!r}")
    return {key: value for key, value in content.items() if key not in sections}, sections


def groups() -> list[str]:
    """Return the names of all config groups: ablation, data, edit, ..."""
    register()
    folders = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}
    registered = {name for name, group_node in ConfigStore.instance().repo.items() if isinstance(group_node, dict)}
    return sorted(folders | registered - {"hydra"})


def options(group: str) -> list[str]:
    """Return the names of the options of a group: base, paper, small, ..."""
    register()
    store = ConfigStore.instance()
    files = {path.name for path in (CONFIG_DIR / group).glob("*.yaml")}
    registered = store.list(group) if store.get_type(group) == ObjectType.GROUP else []
    names = [name.removesuffix(".yaml") for name in {*files, *registered} if name.endswith(".yaml")]
    return sorted(name for name in names if not name.endswith("_schema"))


def writable(schema: type) -> DictConfig:
    """Convert a dataclass to a writable structured config. Hydra does not allow overrides of frozen dataclasses."""

    def thaw(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                thaw(child)

    structure = OmegaConf.structured(schema)
    thaw(structure)
    return structure
