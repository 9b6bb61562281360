"""Evaluation context: models and data are loaded, checked against each other, and identified by digests."""

from dataclasses import replace

import pytest

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data.blocks import BlocksConfig
from dalle.data.folder import FolderConfig
from dalle.evaluation import context as module
from dalle.evaluation.context import EvaluationContext
from dalle.models.dvae.model import DiscreteVAE


def test_models_and_held_out_splits_of_blocks_are_loaded(context, checkpoints):
    assert context.require_pipeline().clip is not None
    assert [(name, len(source)) for name, source in context.sources.items()] == [("val", 12), ("novel", 12)]
    assert context.digests == {part: checkpoint.digest(checkpoints / part) for part in ("dvae", "transformer", "clip")}


def test_other_data_has_one_held_out_split(config, tmp_path):
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a square")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.5)
    assert list(EvaluationContext.load(replace(config, data=data)).sources) == ["val"]


def test_default_data_are_the_training_data(config, tmp_path, make_transformer):
    with pytest.raises(CheckpointError, match="does not record its training data"):
        EvaluationContext.load(replace(config, data=None))
    dvae = DiscreteVAE.load(f"{config.checkpoint}/dvae")
    dvae.save(tmp_path / "dvae", {"data": {"name": "blocks", "image_size": 8, "val": 3}})
    found = EvaluationContext.load(replace(config, checkpoint=str(tmp_path / "dvae"), data=None))
    assert found.data == BlocksConfig(image_size=8, val=3)


def test_dvae_without_transformer_cannot_sample(config):
    dvae_only = EvaluationContext.load(replace(config, checkpoint=f"{config.checkpoint}/dvae"))
    assert list(dvae_only.digests) == ["dvae"]
    with pytest.raises(
        CheckpointError, match=r"is a dVAE without a transformer, which cannot sample: .*metrics=\[reconstruction\]"
    ):
        dvae_only.require_pipeline()


def test_missing_clip_raises_when_required(config, without_clip):
    found = EvaluationContext.load(replace(config, checkpoint=str(without_clip())))
    with pytest.raises(CheckpointError, match="has no clip/, which reranking needs; give one with clip=<folder>"):
        found.require_clip("reranking")


@pytest.mark.parametrize(("size", "message"), [(16, "have 16 pixels and the models' 8: use data.image_size=8")])
def test_other_image_size_than_the_models_raises(config, size, message):
    with pytest.raises(ValueError, match=message):
        EvaluationContext.load(replace(config, data=BlocksConfig(image_size=size)))


def test_image_size_that_codes_do_not_divide_raises(config):
    with pytest.raises(ValueError, match="images of 9 pixels do not divide"):
        EvaluationContext.load(replace(config, checkpoint=f"{config.checkpoint}/dvae", data=BlocksConfig(image_size=9)))


def test_likelihood_and_temperature_are_read_from_the_dvae_checkpoint(config, context, tmp_path):
    assert context.objective is None
    objective = {"likelihood": {"kind": "normal", "scale": 0.2, "floor": None}, "temperature": 0.4}
    DiscreteVAE.load(f"{config.checkpoint}/dvae").save(tmp_path / "dvae", {"step": 3, **objective})
    assert EvaluationContext.load(replace(config, checkpoint=str(tmp_path / "dvae"))).objective == objective


def test_environment_has_versions_and_device(context):
    told = context.environment()
    assert told["device"] == "cpu"
    assert told["versions"]["torch"].startswith("2.")
    assert {"dalle", "numpy", "pillow"} <= told["versions"].keys()


def test_version_is_none_for_a_package_that_is_not_installed(context, monkeypatch):
    """`dalle` is not installed if `make gpu` runs it from the working tree."""
    known = module.version

    def version(name: str) -> str:
        if name == "dalle":
            raise module.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(module, "version", version)
    versions = context.environment()["versions"]
    assert versions["dalle"] is None and versions["torch"] == known("torch")


def test_results_are_written_beside_the_checkpoint_in_the_home_folder(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert replace(config, checkpoint="~/runs/mine", out=None).file == tmp_path / "runs" / "mine" / "metrics.json"
    assert replace(config, out="~/numbers.json").file == tmp_path / "numbers.json"
