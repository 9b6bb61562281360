"""The YAML files: each is reached from a command line, says only what differs, and describes models that fit."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dalle.config import FOLDER, VERBS, TrainConfig, compose
from dalle.models.clip import CLIP
from dalle.models.dvae import DiscreteVAE
from dalle.models.transformer import Transformer
from dalle.stages import STAGES
from dalle.training.schedules import Schedule

FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
STAGE_PRESETS = [file for file in FILES if len(file.parts) == 3 and file.parts[1] in STAGES]
EXPERIMENTS = [file.stem for file in FILES if file.parts[0] == "experiment"]
RECIPES = {f"preset={file.stem}": ["stage=all"] for file in FILES if file.parent == Path("preset")}
RECIPES |= {f"experiment={name}": [] for name in EXPERIMENTS}


def names_in(folder: str) -> set[str]:
    return {file.stem for file in FILES if file.parent == Path(folder)}


def stages_of(config: TrainConfig) -> dict[str, Any]:
    return config.stage if isinstance(config.stage, dict) else {config.stage.name: config.stage}


def test_every_file_is_reached_from_a_command_line():
    """By test_config.py: stages, data sets, presets, experiments. Below: verbs and prompts."""
    reached = {"stage", "data", "preset", "experiment", "prompts", *(f"preset/{name}" for name in [*STAGES, "all"])}
    strays = [file for file in FILES if file.parent != Path(".") and file.parent.as_posix() not in reached]
    assert strays == []
    assert names_in("stage") == {*STAGES, "all"}


@pytest.mark.parametrize("stage", [*STAGES, "all"])
def test_every_preset_has_sizes_for_every_stage(stage):
    assert names_in(f"preset/{stage}") == names_in("preset")


def test_every_verb_has_a_file():
    assert names_in(".") == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_composes_to_the_defaults_beside_its_code(verb):
    composed = compose(verb)
    assert type(composed) is VERBS[verb]
    if verb != "train":
        assert composed == VERBS[verb]()


@pytest.mark.parametrize("prompts", sorted(names_in("prompts")))
def test_prompts_are_captions_to_sample(prompts):
    composed = compose("sample", [f"+prompts={prompts}"])
    assert composed.captions
    assert all(caption.strip() for caption in composed.captions)
    assert len(set(composed.captions)) == len(composed.captions)
    assert replace(composed, captions=[]) == VERBS["sample"]()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_it_is_for(file):
    if file.parts[:2] == ("preset", "all"):
        return  # a list of the other presets
    first = next(line for line in (FOLDER / file).read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")


@pytest.mark.parametrize("file", STAGE_PRESETS, ids=str)
def test_presets_hold_only_what_differs(file):
    default = asdict(STAGES[file.parts[1]][0]())
    same = list(repeated(OmegaConf.to_container(OmegaConf.load(FOLDER / file)) or {}, default))
    assert same == []


def repeated(given: Any, default: Any, prefix: str = ""):
    """Settings of `given` that are as in `default` anyway; of a schedule, which is read as a whole, all."""
    for name, value in given.items():
        if isinstance(value, dict) and "kind" not in value:
            yield from repeated(value, default[name], f"{prefix}{name}.")
        elif value == default[name]:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_schedules_end_within_their_run(recipe):
    for name, stage in stages_of(compose("train", [*RECIPES[recipe], recipe])).items():
        schedules = [stage.optimizer.learning_rate, *(each for each in vars(stage).values() if type(each) is Schedule)]
        for schedule in schedules:
            length = 0 if schedule.kind == "constant" else schedule.delay + schedule.steps
            assert length <= stage.steps, f"{name}: {schedule} of {stage.steps} steps"
        assert stage.optimizer.warm_up < stage.steps


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_models_of_a_recipe_can_be_built_and_fit_each_other_and_the_data(recipe):
    config = compose("train", [*RECIPES[recipe], recipe])
    stages, size = stages_of(config), config.data.image_size
    with torch.device("meta"):
        if "clip" in stages:
            CLIP(replace(stages["clip"].model, image_size=size))
        if "dvae" not in stages:
            return
        dvae = DiscreteVAE(stages["dvae"].model)
        assert size % dvae.downsample == 0
        if "transformer" in stages:
            sizes = {"grid": size // dvae.downsample, "image_vocabulary": dvae.vocabulary}
            Transformer(replace(stages["transformer"].model, **sizes))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_under_its_own_name_and_says_how(name):
    assert compose("train", [f"experiment={name}"]).run == name
    assert f"# python train.py experiment={name}\n" in (FOLDER / "experiment" / f"{name}.yaml").read_text()
