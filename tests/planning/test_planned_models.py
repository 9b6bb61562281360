"""Planned models are those that training builds: their codes are those of the dVAE that the run would use."""

import re
from pathlib import Path

import pytest
import torch

from dalle.cli.config import compose
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.stages import STAGES
from dalle.stages.data_module import StageContext

DATA = ["data=blocks", "data.train=40", "data.val=8"]
SMALL_PRESETS = {"tiny": 64, "drawings": 128, "small": 128}  # image sizes


def count_built(settings: list[str], dvae: Path) -> int:
    """Count the parameters of the model that a stage builds with the settings of train.py and a dVAE's checkpoint."""
    config = compose("train", settings)
    stage = STAGES.for_config(config.stage).build(
        config.stage, config.data, StageContext(0, torch.device("cpu"), dvae, dvae.parent / "tokens")
    )
    return sum(parameter.numel() for parameter in stage.model.parameters())


@pytest.fixture
def planned(train):
    """Function that plans a run by train.py. Returns the number of parameters of each stage."""

    def run(*settings):
        status, printed = train(*settings, "plan=true")
        assert status == 0, printed
        return {stage: int(count.replace(",", "")) for stage, count in re.findall(r"(\w+): .*?([\d,]+) par", printed)}

    return run


@pytest.mark.parametrize(("preset", "side"), SMALL_PRESETS.items())
def test_planned_parameters_are_those_of_the_model_that_training_builds(preset, side, planned, tmp_path):
    common = [f"preset={preset}", *DATA, f"data.image_size={side}"]
    dvae = tmp_path / "dvae"
    DiscreteVAE(compose("train", ["stage=dvae", *common]).stage.model).save(dvae)
    # vocabularies that the few words of `blocks` fill
    words = {"clip": ["stage.model.text_vocabulary=302"], "transformer": ["stage.model.text_vocabulary=300"]}
    built = {}
    for stage in STAGES:
        settings = [f"stage={stage}", *common, *words.get(stage, [])]
        built[stage] = count_built(settings, dvae)
        assert planned(*settings) == {stage: built[stage]}  # codes of the preset's dVAE
        if STAGES.configs[stage].trained_on_tokens:
            assert planned(*settings, f"dvae={dvae}") == {stage: built[stage]}
    of_all = [f"stage.{stage}.{setting.removeprefix('stage.')}" for stage, (setting,) in words.items()]
    del built["decoder"]
    assert planned("stage=all", *common, *of_all) == built


@pytest.mark.parametrize("stage", ["transformer", "decoder"])
def test_codes_of_a_plan_are_those_of_the_given_dvae(stage, planned, tmp_path):
    dvae = tmp_path / "mine"
    DiscreteVAE(DVAEConfig(vocabulary=50, width=8, groups=3, blocks_per_group=1, decoder_input=12)).save(dvae)
    settings = [f"stage={stage}", "preset=tiny", *DATA]
    settings.append("stage.model.text_vocabulary=300" if stage == "transformer" else "stage.model.levels=1")
    expected = count_built(settings, dvae)
    assert planned(*settings, f"dvae={dvae}")[stage] == expected != planned(*settings)[stage]


def test_codes_of_a_plan_of_one_stage_of_all_are_those_of_the_dvae_that_is_trained(planned):
    sizes = [planned("stage=all", "preset=tiny", *DATA, f"stage.dvae.model.vocabulary={codes}") for codes in (128, 129)]
    added = 128 + 128 + 1  # the embedding and the unembedding of a code
    assert sizes[1]["transformer"] - sizes[0]["transformer"] == added


def test_a_plan_refuses_the_dvae_that_training_would_refuse(train, tmp_path):
    transformer = ["stage=transformer", "preset=tiny", *DATA, "plan=true"]
    status, printed = train(*transformer, f"dvae={tmp_path / 'none'}")
    assert (status, "no checkpoint at" in printed) == (2, True)
    status, printed = train(*transformer, "data.image_size=68")
    assert (status, "images of 68 pixels do not divide into the codes of the dVAE" in printed) == (2, True)


def test_micro_batches_are_not_suggested_for_clip_whose_negatives_they_would_divide(train):
    command = ["stage=clip", "preset=base", "data=blocks", "data.image_size=256", "card=v100", "plan=true"]
    status, printed = train(*command)
    assert (status, "it fits with stage.optimizer.moments=paper16 stage.recompute=true (" in printed) == (2, True)
    assert "stage.accumulate" not in printed


def test_a_change_that_makes_one_of_all_stages_fit_names_its_section(train):
    status, printed = train("stage=all", "preset=tiny", *DATA, "stage.dvae.batch_size=65536", "card=v100", "plan=true")
    assert (status, "it fits with stage.dvae.optimizer.moments=paper16 stage.dvae.accumulate=" in printed) == (2, True)
