"""Requirements of every stage: reproducible batches, training on any data set, checkpoints that load alone."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_stages import BLOCKS, CONFIGS, CPU, SIZE, build

from dalle import checkpoint
from dalle.bundled import KINDS
from dalle.checkpoint import CheckpointError
from dalle.cli.train import check_stages
from dalle.cli.train_config import TrainConfig
from dalle.data.emoji import EmojiConfig
from dalle.data.folder import FolderConfig
from dalle.models.dvae.config import DVAEConfig
from dalle.planning.cards import find_card
from dalle.planning.plan import Planner
from dalle.stages import STAGES
from dalle.stages.decoder import EncodedBatch
from dalle.stages.dvae import DVAEStageConfig
from dalle.stages.transformer import TokenizedBatch
from dalle.training.flops import flop_counter
from dalle.training.logger import WandbConfig
from dalle.training.loop import train
from dalle.training.run import Run

METRICS = {
    "dvae": {
        *("nll", "kl", "negative_elbo", "true_negative_elbo", "bound_gap"),
        *("soft_error", "hard_error", "codes_used", "code_perplexity"),
    },
    "clip": {"loss", "accuracy"},
    "transformer": {"loss", "text", "image"},
    "decoder": {"loss", "rmse", "dvae_rmse"},
}


def parts(batch) -> list[torch.Tensor]:
    """Return the tensors of a batch, and its captions as one value."""
    if isinstance(batch, TokenizedBatch):
        return [batch.caption, batch.image]
    if isinstance(batch, EncodedBatch):
        return [batch.images, batch.tokens]
    return [batch.images, torch.tensor([hash(caption) for caption in batch.captions])]


def some_batches(stage, start: int, count: int) -> list[list[torch.Tensor]]:
    source = stage.batches(start)
    return [parts(next(source)) for _ in range(count)]


def all_equal(ones, others) -> bool:
    return all(a.equal(b) for one, other in zip(ones, others, strict=True) for a, b in zip(one, other, strict=True))


def data_named(name: str, pictures_folder):
    if name == "emoji":
        pytest.importorskip("resvg_py", reason="the extra `data` is not installed")
        return EmojiConfig(image_size=SIZE)
    if name == "folder":
        return FolderConfig(path=str(pictures_folder), image_size=SIZE, validation_share=0.3)
    return BLOCKS


@pytest.mark.parametrize("data_name", ["blocks", "emoji", "folder"])
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_trains_on_every_data_set(name, data_name, dvae_folder, pictures_folder, tmp_path):
    data = data_named(data_name, pictures_folder)
    stage = build(name, dvae_folder, data)
    before = [parameter.detach().clone() for parameter in stage.model.parameters()]
    train(stage, stage.config, Run(tmp_path, {"stage": {"steps": 2}}, 0, CPU, WandbConfig("disabled")))

    assert any(not one.equal(other) for one, other in zip(before, stage.model.parameters(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {(line["split"], line["step"]) for line in lines} == {("train", 2), ("val", 2)}
    assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    _, meta = checkpoint.read_config(tmp_path, name)
    assert meta["data"]["name"] == data_name
    assert meta["data"]["image_size"] == SIZE
    assert meta["step"] == 2


@pytest.mark.parametrize("name", STAGES)
def test_batch_depends_only_on_its_number(name, dvae_folder):
    changes: dict[str, Any] = {"bpe_dropout": 0.5} if name == "transformer" else {}
    stage = build(name, dvae_folder, transform="dvae", **changes)
    first = some_batches(stage, 0, 4)
    assert all_equal(some_batches(stage, 2, 2), first[2:])
    assert not all_equal(first[:1], first[1:2])
    assert all_equal(some_batches(build(name, dvae_folder, transform="dvae", **changes), 0, 4), first)
    other_seed = build(name, dvae_folder, transform="dvae", seed=1, **changes)
    assert not all_equal(some_batches(other_seed, 0, 1), first[:1])


@pytest.mark.parametrize("name", STAGES)
def test_micro_batches_contain_the_whole_batch(name, dvae_folder):
    changes: dict[str, Any] = {"bpe_dropout": 0.5} if name == "transformer" else {}
    whole = some_batches(build(name, dvae_folder, transform="dvae", **changes), 3, 1)
    halves = some_batches(build(name, dvae_folder, transform="dvae", accumulate=2, **changes), 6, 2)
    assert [len(part) for part in halves[0]] == [4, 4]
    assert all_equal(whole, [[torch.cat(pair) for pair in zip(*halves, strict=True)]])


@torch.no_grad()
@pytest.mark.parametrize("name", STAGES)
def test_validation_is_finite_and_reproducible(name, dvae_folder):
    stage = build(name, dvae_folder)
    stage.model.eval()
    metrics = stage.validate(stage.model)
    assert metrics.keys() == METRICS[name]
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    torch.manual_seed(9)
    assert stage.validate(stage.model) == metrics


@torch.no_grad()
@pytest.mark.parametrize("name", STAGES)
def test_validation_uses_no_augmentation(name, dvae_folder):
    """Neither augmentation, BPE dropout nor the training batch size changes it."""
    changes: dict[str, Any] = {"bpe_dropout": 0.9} if name == "transformer" else {}
    plain, disturbed = build(name, dvae_folder), build(name, dvae_folder, transform="dvae", **changes)
    assert plain.validate(plain.model) == disturbed.validate(disturbed.model)
    seen = [key for batch in plain.data.held_out(10) for key in batch.keys]
    assert seen == [f"val/{index:06d}" for index in range(10)]


@torch.no_grad()
@pytest.mark.parametrize("name", STAGES)
def test_preview_is_an_image_if_the_stage_has_one(name, dvae_folder):
    stage = build(name, dvae_folder)
    preview = stage.preview(stage.model.eval())
    if name == "clip":
        assert preview is None
        return
    assert isinstance(preview, Image.Image)
    assert preview.mode == "RGB"
    assert len(preview.getcolors(1 << 20) or []) > 8


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 10, 99])
def test_number_of_held_out_images_is_that_requested_or_available(count):
    stage = build("dvae", batch_size=4)
    keys = [key for batch in stage.data.held_out(count) for key in batch.keys]
    assert keys == [f"val/{index:06d}" for index in range(min(count, 10))]


@torch.no_grad()
@pytest.mark.parametrize("name", STAGES)
def test_the_config_of_a_stage_names_its_model_and_loss(name, dvae_folder):
    stage = build(name, dvae_folder)
    assert type(stage.model) is type(stage.config).model_class
    dvae = checkpoint.load_config(dvae_folder, "dvae", DVAEConfig)
    config = replace(stage.config, model=stage.config.model_for(SIZE, dvae))
    loss = config.example_loss(config.model_class(config.model), config.example_batch(2, SIZE), 1)
    assert loss.shape == () and loss.isfinite()
    if config.trained_on_tokens:
        with pytest.raises(CheckpointError, match=f"the {name} is trained on the tokens of a dVAE"):
            build(name, None)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("transformer", {"transform": "transformer"}),
        ("transformer", {"image_targets": "soft"}),
        ("transformer", {"crops": 1}),
        ("transformer", {"steps": 100}),  # a run in which images are seen more than once
        ("decoder", {}),
    ],
    ids=["crops", "soft targets", "cached crops", "cached images", "decoder"],
)
def test_planned_encoding_has_the_flops_of_that_of_a_batch(name, changes, dvae_folder, tmp_path):
    stage = build(name, dvae_folder, tokens=tmp_path, **changes)
    batches = stage.batches(0)
    with flop_counter() as counter:
        next(batches)
    dvae = checkpoint.load_config(dvae_folder, "dvae", DVAEConfig)
    assert stage.config.encoding_cost(SIZE, dvae).flops * stage.config.batch_size == counter.get_total_flops()
    assert bool(counter.get_total_flops()) == (name == "decoder" or not ("crops" in changes or "steps" in changes))


@dataclass(frozen=True)
class OtherConfig(DVAEStageConfig):
    name: str = "other"


def test_a_stage_that_is_in_no_list_can_be_planned_and_checked(tmp_path):
    stage = OtherConfig(model=CONFIGS["dvae"].model, batch_size=8)
    assert Planner(SIZE, 1, find_card("h100")).plan(stage, "ddp").parameters > 0
    check_stages([(TrainConfig(stage=stage, data=BLOCKS), tmp_path)])


def test_a_checkpoint_of_every_stage_is_a_part_of_a_pipeline():
    assert tuple(STAGES) == KINDS


def test_stage_name_matches_its_config():
    for name, entry in STAGES.items():
        assert entry.config().name == entry.build.name == name


@pytest.mark.parametrize("name", CONFIGS)
def test_validation_does_not_depend_on_batch_size(name, dvae_folder):
    whole, split = (build(name, dvae_folder, accumulate=accumulate) for accumulate in (1, 4))
    whole.model.eval(), split.model.eval()
    assert split.validate(split.model) == pytest.approx(whole.validate(whole.model), abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_validation_split_raises_before_training(name):
    with pytest.raises(ValueError, match="validation_images=0 must be at least 1"):
        replace(CONFIGS[name], validation_images=0)


def test_clip_may_be_trained_on_smaller_images_than_the_other_stages():
    stage = build("clip", image_size=8)
    assert stage.data.image_size == stage.model.config.image_size == 8
    assert build("clip").model.config.image_size == SIZE
