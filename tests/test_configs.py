"""The YAML files: each is reached from a command line, says only what differs, and describes models that fit."""

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.cli.choices import FOLDER, options, read_sections
from dalle.cli.config import VERBS, TrainConfig, compose
from dalle.models.clip.model import CLIP
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES
from dalle.training.schedules import Schedule

FILES = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*.yaml"))
PRESETS = [file.stem for file in FILES if file.parent == Path("preset")]
EXPERIMENTS = [file.stem for file in FILES if file.parts[0] == "experiment"]
RECIPES = {f"preset={name}": ["stage=all"] for name in PRESETS}
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
    """By test_config.py: data sets, presets, experiments. Below: verbs, prompts.

    By test_ablations.py: ablations and their sizes.
    """
    reached = {"data", "preset", "experiment", "prompts", "filters", "ablation", "size"}
    strays = [file for file in FILES if file.parent != Path(".") and file.parent.as_posix() not in reached]
    assert strays == []
    assert len(FILES) <= 50  # what is only a dataclass, or a section of another file, needs none


def test_every_stage_can_be_chosen():
    assert options("stage") == sorted([*STAGES, "all"])


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
    options, composed = IMPORTS[name].config, compose("prepare", [f"import={name}"])
    assert isinstance(composed, options) and isinstance(composed, VERBS["prepare"])
    assert asdict(composed) == asdict(VERBS["prepare"]()) | asdict(options())


def test_every_import_can_be_chosen():
    assert options("import") == sorted(IMPORTS)


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_composes_to_the_defaults_beside_its_code(name):
    settings = EDITS[name].config
    assert compose("sample", [f"edit={name}"]) == replace(VERBS["sample"](), edit=settings())
    assert settings().name == name


def test_every_edit_can_be_chosen():
    assert options("edit") == sorted(EDITS)


@pytest.mark.parametrize("prompts", sorted(names_in("prompts")))
def test_prompts_are_captions_to_sample(prompts):
    composed = compose("sample", [f"+prompts={prompts}"])
    assert composed.captions
    assert all(caption.strip() for caption in composed.captions)
    assert len(set(composed.captions)) == len(composed.captions)
    assert replace(composed, captions=[]) == VERBS["sample"]()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_it_is_for(file):
    first = next(line for line in (FOLDER / file).read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_only_what_differs(preset, stage):
    given = read_sections(FOLDER / "preset" / f"{preset}.yaml")[1][stage]
    # what it starts from: another preset's section, or the defaults beside the code
    base, *_ = given.pop("defaults", [None])
    preset = base.removeprefix(f"/preset/{stage}/").removesuffix("@_here_") if base else None
    default = compose("train", [f"stage={stage}", f"preset={preset}"]).stage if preset else STAGES[stage].config()
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
        assert stage.optimizer.warmup_steps < stage.steps


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
    text = (FOLDER / "preset" / f"{preset}.yaml").read_text()
    for stage, count in zip(STAGES, counts, strict=True):
        told = re.search(rf"^{stage}:\n  # ([\d.]+)(M| billion) parameters", text, re.MULTILINE)
        if told is None:
            assert re.search(rf"^{stage}: {{.*}} # .*nothing differs", text, re.MULTILINE)
        else:
            decimals = len(told[1].partition(".")[2])
            assert round(count / {"M": 1e6, " billion": 1e9}[told[2]], decimals) == float(told[1])


def test_every_size_is_counted():
    assert names_in("preset") == SIZES.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_under_its_own_name_and_says_how(name):
    assert compose("train", [f"experiment={name}"]).run == name
    assert f"# python train.py experiment={name}\n" in (FOLDER / "experiment" / f"{name}.yaml").read_text()
