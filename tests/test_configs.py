"""The YAML files: each is reached from a command line, says only what differs, and describes models that fit."""

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dalle.config import FOLDER, VERBS, TrainConfig, compose
from dalle.interop import IMPORTS
from dalle.models.clip import CLIP
from dalle.models.dvae import DiscreteVAE
from dalle.models.transformer import Transformer
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES
from dalle.training.schedules import Schedule

FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
STAGE_PRESETS = [file for file in FILES if file.parts[0] == "preset" and file.parts[1] in STAGES]
EXPERIMENTS = [file.stem for file in FILES if file.parts[0] == "experiment"]
RECIPES = {f"preset={file.stem}": ["stage=all"] for file in FILES if file.parent == Path("preset")}
RECIPES |= {f"experiment={name}": [] for name in EXPERIMENTS}
# pictures' side, parameters of dVAE, CLIP and transformer
SIZES = {
    "paper": (256, 97_616_006, 151_288_833, 12_292_844_929),
    "paper-6b": (256, 97_616_006, 151_288_833, 5_685_007_489),
    "paper-3b": (256, 97_616_006, 151_288_833, 2_928_264_577),
    "paper-1b": (256, 97_616_006, 151_288_833, 1_197_119_425),
    "base": (256, 58_592_390, 134_381_569, 302_875_649),
    "small": (128, 22_407_302, 28_635_649, 48_474_625),
    "tiny": (64, 678_454, 995_841, 966_401),
}


def names_in(folder: str) -> set[str]:
    return {file.stem for file in FILES if file.parent == Path(folder)}


def stages_of(config: TrainConfig) -> dict[str, Any]:
    return config.stage if isinstance(config.stage, dict) else {config.stage.name: config.stage}


def test_every_file_is_reached_from_a_command_line():
    """By test_config.py: stages, data sets, presets, experiments. Below: verbs, prompts, imports and edits.

    By test_ablations.py: ablations and their scales.
    """
    reached = {"stage", "data", "import", "preset", "experiment", "prompts", "edit", "filters"}
    reached |= {"ablation", "scale", "scale/dvae", "scale/transformer"}
    reached |= {f"preset/{name}" for name in [*STAGES, "all"]}
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


@pytest.mark.parametrize("name", IMPORTS)
def test_every_import_composes_to_the_defaults_beside_its_code(name):
    settings, _ = IMPORTS[name]
    assert compose("prepare", [f"import={name}"]) == settings()


def test_every_import_has_a_file():
    assert names_in("import") == set(IMPORTS)


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_composes_to_the_defaults_beside_its_code(name):
    settings, _ = EDITS[name]
    assert compose("sample", [f"edit={name}"]) == replace(VERBS["sample"](), edit=settings())
    assert settings().name == name


def test_every_edit_has_a_file():
    assert names_in("edit") == set(EDITS)


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
    given: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / file)) or {}
    stage = file.parts[1]
    # what it starts from: another preset, or the defaults beside the code
    base, *_ = given.pop("defaults", [None])
    preset = base.removeprefix(f"/preset/{stage}/").removesuffix("@_here_") if base else None
    default = compose("train", [f"stage={stage}", f"preset={preset}"]).stage if preset else STAGES[stage][0]()
    assert list(repeated(given, asdict(default))) == []


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


@pytest.mark.parametrize(
    "recipe", [each for each in RECIPES if each.removeprefix("preset=") not in SIZES.keys() - {"tiny"}]
)
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


@pytest.mark.parametrize("preset", SIZES)
def test_presets_have_the_parameters_that_they_say(preset):
    side, *expected = SIZES[preset]
    stages = compose("train", ["stage=all", f"preset={preset}"]).stage
    begin = time.process_time()
    with torch.device("meta"):
        dvae = DiscreteVAE(stages["dvae"].model)
        clip = CLIP(replace(stages["clip"].model, image_size=side))
        sizes = {"grid": side // dvae.downsample, "image_vocabulary": dvae.vocabulary}
        models = (dvae, clip, Transformer(replace(stages["transformer"].model, **sizes)))
    assert time.process_time() - begin < 20
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert counts == expected
    for stage, count in zip(STAGES, counts, strict=True):
        header = (FOLDER / "preset" / stage / f"{preset}.yaml").read_text()
        told = re.match(r"# ([\d.]+)(M| billion) parameters", header)
        if told is None:
            assert "nothing differs" in header.lower()
        else:
            decimals = len(told[1].partition(".")[2])
            assert round(count / {"M": 1e6, " billion": 1e9}[told[2]], decimals) == float(told[1])


def test_every_size_is_counted():
    assert names_in("preset") == SIZES.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_under_its_own_name_and_says_how(name):
    assert compose("train", [f"experiment={name}"]).run == name
    assert f"# python train.py experiment={name}\n" in (FOLDER / "experiment" / f"{name}.yaml").read_text()
