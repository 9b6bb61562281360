"""Presets and sizes: each section of a file is merged into its stage."""

import copy
from functools import cache
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dalle.cli import config, config_groups
from dalle.cli.config import compose
from dalle.cli.config_groups import CONFIG_DIR, groups, options, read_sections, register, register_preset, register_size
from dalle.cli.train_config import EXPERIMENT_SIZES
from dalle.stages import ALL_STAGES, STAGES

SIZES = sorted(set(options("size")) - EXPERIMENT_SIZES)
SECTIONS = [(preset, stage) for preset in options("preset") for stage in STAGES]


def read(group: str, name: str) -> tuple[dict, dict[str, Any]]:
    return read_sections(CONFIG_DIR / group / f"{name}.yaml")


def missing(given: Any, composed: Any, prefix: str = "") -> list[str]:
    """Return the keys of settings in `given`, the content of a file, that have another value in `composed`."""
    if not isinstance(given, dict):
        return [] if given == composed else [prefix]
    return [setting for key, below in given.items() for setting in missing(below, composed[key], f"{prefix}.{key}")]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Function that writes a preset or size named `mine` and returns its path. Undoes its registration afterwards."""
    register()
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@cache
def composed(*overrides: str) -> Any:
    """Return the options of train.py, which several tests compare and none changes."""
    return compose("train", overrides)


def settings_of(*overrides: str) -> dict[str, Any]:
    """Return all options of train.py before they are dataclasses, in which schedules have the length of the run."""
    return OmegaConf.to_container(config._compose("train", overrides))


@pytest.mark.parametrize(("preset", "stage"), SECTIONS)
def test_every_section_of_a_preset_is_merged_into_its_stage(preset, stage):
    others, sections = read("preset", preset)
    assert others == {} and list(sections) == list(STAGES)
    section = sections[stage]
    base = section.pop("defaults", [])
    alone = composed(f"stage={stage}", f"preset={preset}")
    settings = settings_of(f"stage={stage}", f"preset={preset}")["stage"]
    assert missing(section, settings) == []
    if stage in ALL_STAGES:
        assert composed("stage=all", f"preset={preset}").stage[stage] == alone.stage
    assert alone.preset == {}  # it is merged into the stage only
    if base:  # settings that the section does not set are those of its base preset
        (other,) = [entry.removeprefix(f"/preset/{stage}/").removesuffix("@_here_") for entry in base]
        assert other in options("preset") and other != preset
        assert merged(settings_of(f"stage={stage}", f"preset={other}")["stage"], section) == settings


def merged(settings: dict, changes: dict) -> dict:
    nested = {key: merged(settings[key], value) if isinstance(value, dict) else value for key, value in changes.items()}
    return {**settings, **nested}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_section_of_a_size_is_merged_into_its_stage(size, stage):
    others, sections = read("size", size)
    assert others.pop("defaults") and others["size"] == size
    composed = settings_of(f"stage={stage}", f"size={size}")
    section = sections.get(stage, {})
    assert missing(section, composed) == []
    assert missing({key: value for key, value in others.items() if key not in section}, composed) == []


def test_command_line_overrides_preset_and_size():
    for given in ("preset=tiny", "size=laptop"):
        composed = compose("train", ["stage.steps=7", "stage.optimizer.warmup_steps=3", given])
        assert (composed.stage.steps, composed.stage.optimizer.warmup_steps) == (7, 3)
    composed = compose("train", ["size=laptop", "preset=small"])
    assert (composed.stage.model.width, composed.stage.steps) == (128, 700)  # the size's section is merged last


def test_a_preset_can_extend_another():
    paper, paper_3b = (
        compose("train", ["stage=transformer", f"preset={name}"]).stage for name in ("paper", "paper-3b")
    )
    assert (paper.compression.rank, paper_3b.compression.rank) == (896, 512)
    assert paper_3b.precision == paper.precision == "float16"
    assert (paper_3b.model.width, paper_3b.model.depth) == (1920, paper.model.depth)


def test_a_new_file_is_a_new_option(write):
    transformer = "{ defaults: [/preset/transformer/tiny@_here_], model: { depth: 3 } }"
    register_preset(write(f"dvae: {{ steps: 5 }}\nclip:\ntransformer: {transformer}\n"))
    assert "mine" in options("preset")
    composed = compose("train", ["stage=all", "preset=mine"]).stage
    assert (composed["dvae"].steps, composed["clip"]) == (5, compose("train", ["stage=clip"]).stage)
    assert (composed["transformer"].model.depth, composed["transformer"].model.width) == (3, 128)
    register_size(write("seed: 3\ndvae: { stage: { steps: 6 } }\n"))
    assert [compose("train", [f"stage={stage}", "size=mine"]).seed for stage in ("dvae", "clip", "all")] == [3, 3, 3]
    assert compose("train", ["size=mine"]).stage.steps == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "dvea: {}\nclip: {}\ntransformer: {}\n",
            "there is no stage dvea; did you mean dvae?",
        ),
        ("width: 3\n", "there is no stage width; sections of a preset are dvae, clip, transformer"),
        ("dvae: {}\nclip: {}\n", "has no section transformer; to use the stage's defaults, write transformer: {}"),
        ("dvae: 3\nclip: {}\ntransformer: {}\n", "section dvae must contain settings, not 3"),
        ("- dvae\n", "must contain settings of the form name: value"),
        ("dvae: {\n", "cannot read a YAML file: "),
    ],
)
def test_an_invalid_preset_raises_an_error_with_its_path(write, text, sentence):
    path = write(text)
    with pytest.raises(ValueError) as error:
        register_preset(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_an_invalid_file_ends_a_command_with_an_error(write, tmp_path, monkeypatch, command):
    (tmp_path / "preset").mkdir()
    write("dvea: {}\n").rename(tmp_path / "preset" / "mine.yaml")
    monkeypatch.setattr(config_groups, "CONFIG_DIR", tmp_path)
    for cached in (config_groups.register, config.register):
        cached.cache_clear()
    calls, status, error = command("preset=mine")
    assert (calls, status) == ([], 2)
    assert error == f"{tmp_path}/preset/mine.yaml: there is no stage dvea; did you mean dvae?\n"


@pytest.mark.parametrize(
    ("stage", "hint"), [("dvae", "stage.stepz; did you mean stage.steps?"), ("all", "stage.dvae.stepz; did you mean")]
)
def test_an_unknown_setting_of_a_preset_is_reported_with_file_and_section(write, command, stage, hint):
    register_preset(write("dvae: { stepz: 5 }\nclip: {}\ntransformer: {}\n"))
    calls, status, error = command(f"stage={stage}", "preset=mine")
    assert (calls, status) == ([], 2)
    assert error.startswith(f"configs/preset/mine.yaml, section dvae: there is no setting {hint}")
    assert "stage.dvae.steps" in error or stage == "dvae"


def test_a_wrong_value_in_a_size_is_reported_with_its_file(write, command):
    register_size(write("dvae: { stage: { steps: many } }\n"))
    assert command("size=mine")[1:] == (
        2,
        "configs/size/mine.yaml, section dvae: stage.steps: "
        "Value 'many' of type 'str' could not be converted to Integer\n",
    )


def test_groups_and_options_come_from_files_and_dataclasses():
    folders = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}
    assert set(groups()) == folders | {"stage", "data", "edit", "import"}
    assert all(options(group) for group in groups())
    assert options("data") == ["blocks", "coco", "drawings", "emoji", "folder", "webdataset"]
