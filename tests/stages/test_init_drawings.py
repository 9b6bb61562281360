"""init=drawings: the bundled model fits its preset, as the page on fine-tuning says."""

from pathlib import Path

import pytest

from dalle.checkpoint import CheckpointError
from dalle.cli.config import TrainConfig
from dalle.cli.train import list_runs
from dalle.cli.train_inputs import check_init

SETTINGS = ["init=drawings", "preset=drawings", "data=folder", "data.path=my/pictures", "data.image_size=128"]


def check(command, *more: str) -> list[str]:
    """Compose the settings and check init. Returns the stages that would run."""
    (config,), status, printed = command(*SETTINGS, *more)
    assert status == 0, printed
    assert isinstance(config, TrainConfig)
    runs = list_runs(config)
    check_init(runs)
    return [Path(folder).name for _, folder in runs]


def test_every_stage_starts_from_the_bundled_model(command):
    assert check(command, "stage=all") == ["dvae", "clip", "transformer"]
    assert check(command, "stage=clip", "run=mine") == ["mine"]


@pytest.mark.parametrize(("stage", "prefix"), [("all", "stage.clip."), ("clip", "stage.")])
def test_another_size_of_clips_images_is_refused_by_the_name_of_its_setting(command, stage, prefix):
    with pytest.raises(CheckpointError, match=f"{prefix}image_size is 64 there and 96 here. Add {prefix}image_size=64"):
        check(command, f"stage={stage}", f"{prefix}image_size=96")


def test_settings_of_the_chosen_image_encoder_are_compared(command):
    with pytest.raises(CheckpointError) as raised:
        check(command, "stage=clip", "stage.model.image_blocks=[1,1,2,1]", "stage.model.image_depth=9")
    assert "stage.model.image_blocks is [1,1,1,1] there and [1,1,2,1] here" in str(raised.value)
    assert "image_depth" not in str(raised.value)
