"""Files in configs/: each is used by a command, contains only what differs from the defaults, and fits the models."""

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.cli.config import COMMANDS, compose
from dalle.cli.config_groups import CONFIG_DIR, options, read_sections
from dalle.cli.train_config import TrainConfig
from dalle.models.clip.model import CLIP
from dalle.models.decoder.model import DiffusionDecoder
from dalle.models.dvae.model import DiscreteVAE
from dalle.models.transformer.model import Transformer
from dalle.pretrained import IMPORTS
from dalle.sampling.edits import EDITS
from dalle.stages import STAGES
from dalle.training.schedules import Schedule

FILES = sorted(path.relative_to(CONFIG_DIR) for path in CONFIG_DIR.rglob("*.yaml"))
PRESETS = [file.stem for file in FILES if file.parent == Path("preset")]
EXPERIMENTS = [file.stem for file in FILES if file.parent == Path("experiment")]
EXPERIMENT_SIZES = [(file.parent.name, file.stem) for file in FILES if file.parent.parent == Path("experiment")]
RECIPES = {f"preset={name}": ["stage=all"] for name in PRESETS}
RECIPES |= {f"experiment={name}": [] for name in EXPERIMENTS}
RECIPES |= {f"size={size}": [f"experiment={name}"] for name, size in EXPERIMENT_SIZES}
# pictures' side, parameters of dVAE, CLIP and transformer
SIZES = {
    "paper": (256, 97_616_006, 151_288_833, 12_292_844_929, 5_911_344),
    "paper-6b": (256, 97_616_006, 151_288_833, 5_685_007_489, 5_911_344),
    "paper-3b": (256, 97_616_006, 151_288_833, 2_928_264_577, 5_911_344),
    "paper-1b": (256, 97_616_006, 151_288_833, 1_197_119_425, 5_911_344),
    "base": (256, 58_592_390, 134_381_569, 302_875_649, 23_062_064),
    "small": (128, 22_407_302, 28_635_649, 48_474_625, 5_911_344),
    "tiny": (64, 678_454, 995_841, 966_401, 954_800),
    "drawings": (128, 966_070, 7_451_121, 8_970_497, 1_530_288),
}


def names_in(folder: str) -> set[str]:
    return {file.stem for file in FILES if file.parent == Path(folder)}


def stages_of(config: TrainConfig) -> dict[str, Any]:
    return config.stage if isinstance(config.stage, dict) else {config.stage.name: config.stage}


def test_every_file_is_used_by_a_command():
    """Data sets, presets and experiments are tested in test_config.py, ablations and sizes in test_ablations.py."""
    tested = {"data", "preset", "experiment", "prompts", "filters", "ablation", "size"}
    tested |= {f"experiment/{name}" for name, _ in EXPERIMENT_SIZES}
    untested = [file for file in FILES if file.parent != Path(".") and file.parent.as_posix() not in tested]
    assert untested == []
    assert len(FILES) <= 50  # a dataclass or a section of another file needs no file


@pytest.mark.parametrize(("experiment", "size"), EXPERIMENT_SIZES)
def test_a_size_of_an_experiment_changes_it_and_names_its_run(experiment, size):
    assert size in options("size")
    composed = compose("train", [f"experiment={experiment}", f"size={size}"])
    assert composed.size == size and composed.run == f"{experiment}-{size}"
    others = [other for name, other in EXPERIMENT_SIZES if name == experiment and other != size]
    assert all(compose("train", [f"experiment={experiment}", f"size={other}"]) != composed for other in others)


def test_a_size_of_an_experiment_is_refused_for_an_ablation():
    with pytest.raises(ValueError, match="size=overnight is a size of experiment=drawings"):
        compose("train", ["+ablation=pool", "size=overnight"])


def test_every_stage_can_be_chosen():
    assert options("stage") == sorted([*STAGES, "all"])


def test_every_command_has_a_file():
    assert names_in(".") == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_to_the_defaults_of_its_dataclass(command):
    composed = compose(command)
    assert type(composed) is COMMANDS[command]
    if command != "train":
        assert composed == COMMANDS[command]()


@pytest.mark.parametrize("name", IMPORTS)
def test_every_import_composes_to_the_defaults_of_its_dataclass(name):
    options, composed = IMPORTS[name].config, compose("prepare", [f"import={name}"])
    assert isinstance(composed, options) and isinstance(composed, COMMANDS["prepare"])
    assert asdict(composed) == asdict(COMMANDS["prepare"]()) | asdict(options())


def test_every_import_can_be_chosen():
    assert options("import") == sorted(IMPORTS)


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_composes_to_the_defaults_of_its_dataclass(name):
    settings = EDITS[name].config
    assert compose("sample", [f"edit={name}"]) == replace(COMMANDS["sample"](), edit=settings())
    assert settings().name == name


def test_every_edit_can_be_chosen():
    assert options("edit") == sorted(EDITS)


@pytest.mark.parametrize("prompts", sorted(names_in("prompts")))
def test_prompts_are_captions_to_sample(prompts):
    composed = compose("sample", [f"+prompts={prompts}"])
    assert composed.captions
    assert all(caption.strip() for caption in composed.captions)
    assert len(set(composed.captions)) == len(composed.captions)
    assert replace(composed, captions=[]) == COMMANDS["sample"]()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_starts_with_a_comment(file):
    first = next(line for line in (CONFIG_DIR / file).read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_contain_only_what_differs(preset, stage):
    given = read_sections(CONFIG_DIR / "preset" / f"{preset}.yaml")[1][stage]
    # what it starts from: another preset's section, or the defaults beside the code
    base, *_ = given.pop("defaults", [None])
    preset = base.removeprefix(f"/preset/{stage}/").removesuffix("@_here_") if base else None
    default = compose("train", [f"stage={stage}", f"preset={preset}"]).stage if preset else STAGES[stage].config()
    assert list(repeated(given, asdict(default))) == []


def repeated(given: Any, default: Any, prefix: str = ""):
    """Yield the settings of `given` that equal the default. A schedule replaces the default schedule as a whole."""
    for name, value in given.items():
        if isinstance(value, dict) and "kind" not in value:
            yield from repeated(value, default[name], f"{prefix}{name}.")
        elif value == default[name]:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_schedules_end_within_their_run(recipe):
    for name, stage in stages_of(compose("train", [*RECIPES[recipe], recipe])).items():
        schedules = [stage.optimizer.learning_rate, *(part for part in vars(stage).values() if type(part) is Schedule)]
        for schedule in schedules:
            length = 0 if schedule.kind == "constant" else schedule.delay + schedule.steps
            assert length <= stage.steps, f"{name}: {schedule} of {stage.steps} steps"
        assert stage.optimizer.warmup_steps < stage.steps
        assert stage.schedule_warning() is None


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", ["tiny", "small", "base", "drawings"])
def test_the_learning_rate_of_a_preset_decays_in_a_run_of_another_length(preset, stage):
    for steps in (100, 900_000):
        rate = compose("train", [f"stage={stage}", f"preset={preset}", f"stage.steps={steps}"]).stage.optimizer
        schedule = rate.learning_rate
        assert schedule.last_step == steps and schedule.end < schedule.start
        assert schedule.value(steps) == schedule.end < schedule.value(steps - 1)


def test_a_size_ends_the_learning_rate_of_any_preset_with_its_run():
    for stage in ("dvae", "transformer"):
        composed = compose("train", [f"stage={stage}", "size=laptop", "preset=paper"]).stage
        assert composed.optimizer.learning_rate.last_step == composed.steps


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES if recipe.removeprefix("preset=") not in SIZES.keys() - {"tiny"}]
)
def test_the_models_of_a_recipe_can_be_built_and_fit_together(recipe):
    config = compose("train", [*RECIPES[recipe], recipe])
    stages, size = stages_of(config), config.data.image_size
    with torch.device("meta"):
        if "clip" in stages:
            CLIP(replace(stages["clip"].model, image_size=stages["clip"].image_size or size))
        if "dvae" not in stages:
            return
        dvae = DiscreteVAE(stages["dvae"].model)
        assert size % dvae.downsample == 0
        if "transformer" in stages:
            sizes = {"grid": size // dvae.downsample, "image_vocabulary": dvae.vocabulary}
            Transformer(replace(stages["transformer"].model, **sizes))


@pytest.mark.parametrize("preset", SIZES)
def test_comments_of_presets_state_the_number_of_parameters(preset):
    side, *expected = SIZES[preset]
    stages = {stage: compose("train", [f"stage={stage}", f"preset={preset}"]).stage for stage in STAGES}
    begin = time.process_time()
    with torch.device("meta"):
        dvae = DiscreteVAE(stages["dvae"].model)
        clip = CLIP(replace(stages["clip"].model, image_size=stages["clip"].image_size or side))
        sizes = {"grid": side // dvae.downsample, "image_vocabulary": dvae.vocabulary}
        transformer = Transformer(replace(stages["transformer"].model, **sizes))
        decoder = DiffusionDecoder(replace(stages["decoder"].model, **sizes, code_channels=dvae.config.decoder_input))
        models = (dvae, clip, transformer, decoder)
    assert time.process_time() - begin < 20
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert counts == expected
    text = (CONFIG_DIR / "preset" / f"{preset}.yaml").read_text()
    for stage, count in zip(STAGES, counts, strict=True):
        stated = re.search(rf"^{stage}:\n  # ([\d.]+)(M| billion) parameters", text, re.MULTILINE)
        if stated is None:
            assert re.search(rf"^{stage}: {{.*}} # .*nothing differs", text, re.MULTILINE)
        else:
            decimals = len(stated[1].partition(".")[2])
            assert round(count / {"M": 1e6, " billion": 1e9}[stated[2]], decimals) == float(stated[1])


def test_every_preset_has_a_number_of_parameters():
    assert names_in("preset") == SIZES.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_its_own_run_name_and_states_its_command(name):
    composed = compose("train", [f"experiment={name}"])
    assert composed.run == "-".join(filter(None, (name, composed.size)))
    assert f"# python train.py experiment={name}\n" in (CONFIG_DIR / "experiment" / f"{name}.yaml").read_text()
