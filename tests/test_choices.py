"""Presets and sizes: one file each, every section of which reaches the stage that it is for."""

import copy
from dataclasses import asdict
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from dalle.cli import choices, config
from dalle.cli.choices import FOLDER, groups, options, read_sections, register, register_preset, register_size
from dalle.cli.config import compose
from dalle.stages import STAGES

SIZES = options("size")
SECTIONS = [(preset, stage) for preset in options("preset") for stage in STAGES]


def read(group: str, name: str) -> tuple[dict, dict[str, Any]]:
    return read_sections(FOLDER / group / f"{name}.yaml")


def lacking(given: Any, composed: Any, prefix: str = "") -> list[str]:
    """Settings of `given`, as a file has them, that are otherwise in `composed`."""
    if not isinstance(given, dict):
        return [] if given == composed else [prefix]
    return [each for key, below in given.items() for each in lacking(below, composed[key], f"{prefix}.{key}")]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a preset or a size of the name `mine`, which later tests do not see; gives its path."""
    register()
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("preset", "stage"), SECTIONS)
def test_every_section_of_a_preset_reaches_its_stage_alone_and_among_all(preset, stage):
    outside, sections = read("preset", preset)
    assert outside == {} and list(sections) == list(STAGES)
    section = sections[stage]
    base = section.pop("defaults", [])
    alone = compose("train", [f"stage={stage}", f"preset={preset}"])
    assert lacking(section, asdict(alone.stage)) == []
    assert compose("train", ["stage=all", f"preset={preset}"]).stage[stage] == alone.stage
    assert alone.preset == {}  # it is in the stage, and nowhere else
    if base:  # what the section does not change is as in the preset that it starts from
        assert base == [f"/preset/{stage}/paper@_here_"]
        paper = asdict(compose("train", [f"stage={stage}", "preset=paper"]).stage)
        assert merged(paper, section) == asdict(alone.stage)


def merged(settings: dict, changes: dict) -> dict:
    below = {key: merged(settings[key], value) if isinstance(value, dict) else value for key, value in changes.items()}
    return {**settings, **below}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_section_of_a_size_reaches_a_run_of_its_stage(size, stage):
    outside, sections = read("size", size)
    assert outside.pop("defaults") and outside["size"] == size
    composed = asdict(compose("train", [f"stage={stage}", f"size={size}"]))
    section = sections.get(stage, {})
    assert lacking(section, composed) == []
    assert lacking({key: value for key, value in outside.items() if key not in section}, composed) == []


def test_a_command_line_wins_over_a_preset_and_a_size():
    for given in ("preset=tiny", "size=laptop"):
        composed = compose("train", ["stage.steps=7", "stage.optimizer.warmup_steps=3", given])
        assert (composed.stage.steps, composed.stage.optimizer.warmup_steps) == (7, 3)
    composed = compose("train", ["size=laptop", "preset=small"])
    assert (composed.stage.model.width, composed.stage.steps) == (128, 700)  # the size's section is merged last


def test_a_preset_starts_from_another_and_says_what_differs():
    paper, small = (compose("train", ["stage=transformer", f"preset={name}"]).stage for name in ("paper", "paper-3b"))
    assert (paper.compression.rank, small.compression.rank) == (896, 512)
    assert small.precision == paper.precision == "float16"
    assert (small.model.width, small.model.depth) == (1920, paper.model.depth)


def test_a_new_file_is_a_new_choice(write):
    transformer = "{ defaults: [/preset/transformer/tiny@_here_], model: { depth: 3 } }"
    register_preset(write(f"dvae: {{ steps: 5 }}\nclip:\ntransformer: {transformer}\n"))
    assert "mine" in options("preset")
    composed = compose("train", ["stage=all", "preset=mine"]).stage
    assert (composed["dvae"].steps, composed["clip"]) == (5, compose("train", ["stage=clip"]).stage)
    assert (composed["transformer"].model.depth, composed["transformer"].model.width) == (3, 128)
    register_size(write("seed: 3\ndvae: { stage: { steps: 6 } }\n"))
    assert [compose("train", [f"stage={each}", "size=mine"]).seed for each in ("dvae", "clip", "all")] == [3, 3, 3]
    assert compose("train", ["size=mine"]).stage.steps == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "dvea: {}\nclip: {}\ntransformer: {}\n",
            "there is no stage dvea that a section could be for; did you mean dvae?",
        ),
        ("width: 3\n", "there is no stage width that a section could be for; a preset has dvae, clip, transformer"),
        ("dvae: {}\nclip: {}\n", "has no section transformer; for the stage's defaults, write transformer: {}"),
        ("dvae: 3\nclip: {}\ntransformer: {}\n", "section dvae has to hold settings, not 3"),
        ("- dvae\n", "has to hold settings, as name: value"),
        ("dvae: {\n", "cannot read a YAML file: "),
    ],
)
def test_what_is_wrong_with_a_preset_is_said_in_a_sentence_that_names_the_file(write, text, sentence):
    path = write(text)
    with pytest.raises(ValueError) as error:
        register_preset(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_a_broken_file_ends_a_command_with_that_sentence(write, tmp_path, monkeypatch, command):
    (tmp_path / "preset").mkdir()
    write("dvea: {}\n").rename(tmp_path / "preset" / "mine.yaml")
    monkeypatch.setattr(choices, "FOLDER", tmp_path)
    for cached in (choices.register, config.register):
        cached.cache_clear()
    calls, status, told = command("preset=mine")
    assert (calls, status) == ([], 2)
    assert (
        told == f"{tmp_path}/preset/mine.yaml: there is no stage dvea that a section could be for; did you mean dvae?\n"
    )


@pytest.mark.parametrize(
    ("stage", "hint"), [("dvae", "stage.stepz; did you mean stage.steps?"), ("all", "stage.dvae.stepz; did you mean")]
)
def test_an_unknown_setting_of_a_preset_is_named_with_its_file_and_section(write, command, stage, hint):
    register_preset(write("dvae: { stepz: 5 }\nclip: {}\ntransformer: {}\n"))
    calls, status, told = command(f"stage={stage}", "preset=mine")
    assert (calls, status) == ([], 2)
    assert told.startswith(f"configs/preset/mine.yaml, section dvae: there is no setting {hint}")
    assert "stage.dvae.steps" in told or stage == "dvae"


def test_a_wrong_value_in_a_size_is_named_with_its_file(write, command):
    register_size(write("dvae: { stage: { steps: many } }\n"))
    assert command("size=mine")[1:] == (
        2,
        "configs/size/mine.yaml, section dvae: stage.steps: "
        "Value 'many' of type 'str' could not be converted to Integer\n",
    )


def test_groups_and_options_are_those_of_files_and_of_dataclasses():
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert set(groups()) == folders | {"stage", "data", "edit", "import"}
    assert all(options(group) for group in groups())
    assert options("data") == ["blocks", "coco", "emoji", "folder", "webdataset"]
