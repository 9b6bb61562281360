"""Models and data of an evaluation: they are found, fit each other, and are distinguished from others."""

from dataclasses import replace

import pytest

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data.blocks import BlocksConfig
from dalle.data.folder import FolderConfig
from dalle.evaluation import subject as module
from dalle.evaluation.subject import Subject
from dalle.models.dvae.model import DiscreteVAE


def test_models_and_both_held_out_splits_of_blocks_are_found(subject, checkpoints):
    assert subject.whole().clip is not None
    assert [(name, len(source)) for name, source in subject.sources.items()] == [("val", 12), ("novel", 12)]
    assert subject.digests == {part: checkpoint.digest(checkpoints / part) for part in ("dvae", "transformer", "clip")}


def test_other_data_has_one_held_out_split(config, tmp_path):
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a square")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.5)
    assert list(Subject.load(replace(config, data=data)).sources) == ["val"]


def test_without_a_word_the_data_are_those_of_training(config, tmp_path, make_transformer):
    with pytest.raises(CheckpointError, match="does not say which data it was trained on"):
        Subject.load(replace(config, data=None))
    dvae = DiscreteVAE.load(f"{config.checkpoint}/dvae")
    dvae.save(tmp_path / "dvae", {"data": {"name": "blocks", "image_size": 8, "val": 3}})
    found = Subject.load(replace(config, checkpoint=str(tmp_path / "dvae"), data=None))
    assert found.data == BlocksConfig(image_size=8, val=3)


def test_a_dvae_alone_can_be_measured_but_draws_nothing(config):
    alone = Subject.load(replace(config, checkpoint=f"{config.checkpoint}/dvae"))
    assert list(alone.digests) == ["dvae"]
    with pytest.raises(CheckpointError, match=r"is a dVAE alone, which draws nothing: .*metrics=\[reconstruction\]"):
        alone.whole()


def test_a_missing_clip_is_missed_only_by_what_needs_it(config, without_clip):
    found = Subject.load(replace(config, checkpoint=str(without_clip())))
    with pytest.raises(
        CheckpointError, match="has no clip/, which choosing needs; say where one is with clip=<folder>"
    ):
        found.clip("choosing")


@pytest.mark.parametrize(("size", "message"), [(16, "have 16 pixels and the models' 8: use data.image_size=8")])
def test_pictures_of_another_size_than_the_models_are_refused(config, size, message):
    with pytest.raises(ValueError, match=message):
        Subject.load(replace(config, data=BlocksConfig(image_size=size)))


def test_pictures_that_do_not_divide_into_codes_are_refused(config):
    with pytest.raises(ValueError, match="pictures of 9 pixels do not divide"):
        Subject.load(replace(config, checkpoint=f"{config.checkpoint}/dvae", data=BlocksConfig(image_size=9)))


def test_likelihood_and_temperature_come_from_the_dvaes_checkpoint(config, subject, tmp_path):
    assert subject.objective is None
    objective = {"likelihood": {"kind": "normal", "scale": 0.2, "floor": None}, "temperature": 0.4}
    DiscreteVAE.load(f"{config.checkpoint}/dvae").save(tmp_path / "dvae", {"step": 3, **objective})
    assert Subject.load(replace(config, checkpoint=str(tmp_path / "dvae"))).objective == objective


def test_the_environment_names_versions_and_device(subject):
    told = subject.environment()
    assert told["device"] == "cpu"
    assert told["versions"]["torch"].startswith("2.")
    assert {"dalle", "numpy", "pillow"} <= told["versions"].keys()


def test_a_package_that_is_on_the_path_but_not_installed_has_no_version(subject, monkeypatch):
    """As this one is where `make gpu` runs it from the working tree."""
    known = module.version

    def version(name: str) -> str:
        if name == "dalle":
            raise module.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(module, "version", version)
    versions = subject.environment()["versions"]
    assert versions["dalle"] is None and versions["torch"] == known("torch")
