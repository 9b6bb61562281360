"""Transformer stage: captions and dVAE tokens as one sequence, validation, and checkpoints with their dVAE."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_stages import BLOCKS, CONFIGS, build, overfit

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.data import open_source
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.models.transformer.sequence import PAD
from dalle.sampling.pipeline import DALLE
from dalle.stages.transformer import TransformerStageConfig
from dalle.training.schedules import Schedule


def test_one_batch_overfits(dvae_folder):
    stage = build("transformer", dvae_folder, bpe_dropout=0.0)
    batch = next(stage.batches(0))
    found = overfit(stage, batch, 120, 1e-2)
    assert found[0] > 2.5  # of which ln 16 = 2.77 for each image token
    assert found[-1] < 0.15
    assert (stage.model(batch.caption, batch.image).image.argmax(dim=-1) == batch.image).float().mean() > 0.97


@torch.no_grad()
def test_loss_weighs_text_one_eighth_and_image_seven_eighths(dvae_folder):
    stage = build("transformer", dvae_folder)
    for head in (stage.model.text_head, stage.model.image_head):  # which start at zero
        head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    batch = next(stage.batches(0))
    loss, metrics = stage.loss(stage.model, batch, 0, torch.Generator())
    logits = stage.model(batch.caption, batch.image)
    targets = stage.model.sequence.text_targets(batch.caption, "first")
    asked = targets != -100
    text = F.cross_entropy(logits.text[asked], targets[asked])
    image = F.cross_entropy(logits.image.flatten(0, 1), batch.image.flatten())
    torch.testing.assert_close(metrics["text"], text)
    torch.testing.assert_close(metrics["image"], image)
    torch.testing.assert_close(loss, text / 8 + image * 7 / 8)


@torch.no_grad()
@pytest.mark.parametrize("pads", ["none", "first", "all"])
def test_pads_count_in_text_loss_as_configured(dvae_folder, pads):
    stage = build("transformer", dvae_folder, pad_loss=pads)
    head = stage.model.text_head
    head.bias[-1] = 100.0  # whatever it reads it answers "pad"
    _, metrics = stage.loss(stage.model, next(stage.batches(0)), 0, torch.Generator())
    tokens = (next(stage.batches(0)).caption != PAD).sum().item()
    asked = {"none": tokens, "first": tokens + 8, "all": 8 * 24}[pads]
    assert metrics["text"].item() == pytest.approx(100 * tokens / asked, rel=0.01)


@torch.no_grad()
def test_validation_is_the_mean_over_held_out_images(dvae_folder):
    stage = build("transformer", dvae_folder, batch_size=5)
    metrics = stage.validate(stage.model)
    sums = {"text": 0.0, "image": 0.0}
    for batch in stage.data.held_out(10):
        loss, measures = stage.loss(stage.model, stage._tokenize(batch), 0, torch.Generator())
        for name in sums:
            sums[name] += measures[name].item() / 2
    assert metrics == pytest.approx({"loss": sums["text"] / 8 + 7 / 8 * sums["image"], **sums})


@torch.no_grad()
def test_validation_of_extra_splits(dvae_folder):
    plain, both = (build("transformer", dvae_folder, batch_size=10, also_validate=splits) for splits in ([], ["novel"]))
    for stage in (plain, both):  # a fresh model finds all tokens equally probable, whatever the split
        stage.model.image_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    metrics = both.validate(both.model)
    assert {name: value for name, value in metrics.items() if "novel" not in name} == plain.validate(both.model)
    novel = open_source(BLOCKS, "novel")
    (batch,) = both.data.held_out(10, "novel")
    assert batch.keys == [novel[index].key for index in range(10)]
    _, measures = both.loss(both.model, both._tokenize(batch), 0, torch.Generator())
    assert metrics["novel_image"] == pytest.approx(measures["image"].item())
    assert metrics["novel_image"] != pytest.approx(metrics["image"])


def test_image_tokens_are_argmax_codes_in_raster_order(dvae_folder):
    stage = build("transformer", dvae_folder)
    batch, pictures = next(stage.batches(2)), next(stage.data.batches(2))
    tokens = DiscreteVAE.load(dvae_folder).encode(pictures.images.float() / 255)
    assert batch.image.equal(tokens.reshape(8, 16))
    assert tokens.unique().numel() > 1


# --- draws and distributions instead of the most probable codes ----------------------------------------------


def test_sampled_tokens_are_reproducible_by_batch_number(dvae_folder):
    probable = next(build("transformer", dvae_folder).batches(2)).image
    stage = build("transformer", dvae_folder, image_targets="sampled")
    stream = stage.batches(0)
    third = [next(stream) for _ in range(3)][2]
    assert third.image_targets is third.image
    assert next(stage.batches(2)).image.equal(third.image)
    assert 0 < (third.image != probable).float().mean() < 1
    halves = build("transformer", dvae_folder, image_targets="sampled", accumulate=2).batches(4)
    assert torch.cat([next(halves).image, next(halves).image]).equal(third.image)


@torch.no_grad()
def test_soft_targets_are_dvae_distributions_with_cross_entropy(dvae_folder):
    stage = build("transformer", dvae_folder, image_targets="soft")
    stage.model.image_head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    batch, pictures = next(stage.batches(2)), next(stage.data.batches(2))
    assert batch.image.equal(next(build("transformer", dvae_folder, image_targets="sampled").batches(2)).image)
    logits = DiscreteVAE.load(dvae_folder).logits(pictures.images.float() / 255)
    posterior = logits.softmax(dim=1).flatten(2).mT
    torch.testing.assert_close(batch.image_targets, posterior)
    _, metrics = stage.loss(stage.model, batch, 0, torch.Generator())
    answer = stage.model(batch.caption, batch.image).image.log_softmax(dim=-1)
    torch.testing.assert_close(metrics["image"], -(posterior * answer).sum(dim=-1).mean())


@torch.no_grad()
def test_validation_uses_argmax_codes(dvae_folder):
    found = []
    for name in ("argmax", "sampled", "soft"):
        stage = build("transformer", dvae_folder, image_targets=name)
        stage.model.image_head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        found.append(stage.validate(stage.model))
    assert found[0] == found[1] == found[2]


def test_unknown_image_targets_raise_before_training():
    with pytest.raises(ValueError, match="image_targets='hard' is unknown"):
        TransformerStageConfig(image_targets="hard")


@pytest.mark.parametrize(
    "reading",
    [
        {"pads": "masked"},
        {"attention_normalisation": "separate"},
        {"row_counts_itself": False},
        {"convolution_wraps": False},
        {"image_position_embedding": "own"},
    ],
    ids=str,
)
def test_every_paper_variant_trains_and_samples_after_loading(dvae_folder, tmp_path, reading):
    stage = build("transformer", dvae_folder, model=replace(CONFIGS["transformer"].model, **reading))
    found = overfit(stage, next(stage.batches(0)), 8, 1e-2)
    assert found[-1] < found[0]
    stage.save(tmp_path, stage.model, {})
    dalle = DALLE.load(tmp_path)
    assert {name: getattr(dalle.transformer.config, name) for name in reading} == reading
    assert dalle.generate("a red circle", candidates=1, keep=1).images[0].size == (16, 16)


def test_dvae_is_not_trained(dvae_folder):
    stage = build("transformer", dvae_folder)
    overfit(stage, next(stage.batches(0)), 2, 0.1)
    assert not any(parameter.requires_grad for parameter in stage.dvae.parameters())
    assert not any("dvae" in name for name, _ in stage.model.named_parameters())
    stored = DiscreteVAE.load(dvae_folder).state_dict()
    assert all(tensor.equal(stored[name]) for name, tensor in stage.dvae.state_dict().items())


# --- the dVAE and the sizes that come from it ------------------------------------------------------------------


def test_dvae_trained_at_another_image_size_gives_a_warning(dvae_folder, tmp_path, caplog):
    build("transformer", dvae_folder)
    assert not caplog.messages or "trained on images" not in " ".join(caplog.messages)
    DiscreteVAE.load(dvae_folder).save(tmp_path, {"data": {"image_size": 32}})
    build("transformer", tmp_path)
    assert f"the dVAE {tmp_path} was trained on images of 32 pixels, but data.image_size is 16" in caplog.messages


def test_sizes_come_from_dvae_data_and_tokenizer(dvae_folder):
    stage = build("transformer", dvae_folder)
    config = stage.model.config
    assert (config.image_vocabulary, config.grid) == (16, 4)
    assert config.text_vocabulary == stage.tokenizer.vocabulary
    assert build("transformer", dvae_folder, replace(BLOCKS, image_size=24)).model.config.grid == 6


def test_missing_dvae_setting_says_how_to_give_one():
    with pytest.raises(CheckpointError, match=r"set dvae=<checkpoint folder>.*train one first"):
        build("transformer", None)


def test_missing_dvae_checkpoint_raises(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere"):
        build("transformer", tmp_path / "nowhere")


def test_checkpoint_of_another_kind_raises(dvae_folder, tmp_path):
    build("clip").save(tmp_path, build("clip").model, {})
    with pytest.raises(CheckpointError, match="holds a clip, not a dvae"):
        build("transformer", tmp_path)


def test_indivisible_image_size_raises(dvae_folder):
    with pytest.raises(ValueError, match=r"images of 18 pixels do not divide .*4 pixels each: set data.image_size"):
        build("transformer", dvae_folder, replace(BLOCKS, image_size=18))


def test_checkpoint_meta_has_data_and_dvae(dvae_folder, tmp_path):
    stage = build("transformer", dvae_folder)
    stage.save(tmp_path / "transformer", stage.model, {"step": 7})
    _, meta = checkpoint.read_config(tmp_path / "transformer", "transformer")
    assert meta["step"] == 7
    assert meta["data"] == {**meta["data"], "name": "blocks", "image_size": 16, "train": 64, "val": 10}
    assert meta["caption_dropout"] == 0.0
    assert meta["dvae"]["digest"] == checkpoint.digest(dvae_folder)
    assert not Path(meta["dvae"]["path"]).is_absolute()
    assert (tmp_path / "transformer" / meta["dvae"]["path"]).resolve() == dvae_folder.resolve()


def test_checkpoint_samples_only_with_its_dvae(dvae_folder, tmp_path):
    run = tmp_path / "run"
    own = Path(shutil.copytree(dvae_folder, run / "dvae"))
    stage = build("transformer", own)
    stage.save(run / "transformer", stage.model, {})
    moved = run.rename(tmp_path / "moved")  # the two together
    dalle = DALLE.load(moved / "transformer")
    result = dalle.generate("a red circle", candidates=2, keep=1)
    assert result.images[0].size == (16, 16)
    torch.manual_seed(3)
    DiscreteVAE(DVAEConfig(vocabulary=16, width=16, groups=3, blocks_per_group=1)).save(moved / "dvae")
    with pytest.raises(CheckpointError, match="was trained on the tokens of dVAE"):
        DALLE.load(moved / "transformer")


def test_defaults_are_the_papers():
    config = TransformerStageConfig()
    optimizer = config.optimizer
    assert (config.steps, config.batch_size, config.clip_norm) == (430_000, 1_024, 4.0)
    assert (config.text_weight, config.bpe_dropout, config.transform) == (1 / 8, 0.1, "transformer")
    assert (config.image_targets, config.caption_dropout) == ("argmax", 0.0)
    assert optimizer.learning_rate == Schedule("constant", 4.5e-4)
    assert (optimizer.warmup_steps, optimizer.plateau.max_reductions) == (5_000, 5)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.96), 1e-8, 4.5e-2)
    assert (config.ema.decay, config.ema.every) == (0.99, 25)
    assert CONFIGS["transformer"].model != config.model


def test_unknown_validation_split_raises_before_training(dvae_folder):
    with pytest.raises(ValueError, match="nvel"):
        build("transformer", dvae_folder, also_validate=["nvel"])


def test_unknown_pad_targets_and_zero_tokenizer_records_raise_before_training():
    with pytest.raises(ValueError, match="pad_loss='frist' is unknown; choose one of none, first, all"):
        replace(CONFIGS["transformer"], pad_loss="frist")
    with pytest.raises(ValueError, match="tokenizer_records=0 must be at least 1"):
        replace(CONFIGS["transformer"], tokenizer_records=0)


def test_preview_size_does_not_depend_on_accumulation(dvae_folder):
    sizes = []
    for accumulate in (1, 8):
        stage = build("transformer", dvae_folder, accumulate=accumulate)
        sizes.append(stage.preview(stage.model.eval()).size)
    assert sizes[0] == sizes[1]


def test_a_split_without_images_raises_before_training(dvae_folder):
    with pytest.raises(ValueError, match="the split novel has no images to validate on"):
        build("transformer", dvae_folder, replace(BLOCKS, novel=0), also_validate=["novel"])
    with pytest.raises(ValueError, match="the split val has no images to validate on"):
        build("transformer", dvae_folder, replace(BLOCKS, val=0))


@pytest.mark.parametrize("setting", [{"sampling_temperature": -1.0}, {"guidance": 1000.0, "caption_dropout": 0.1}])
def test_defaults_that_sampling_would_refuse_raise_before_training(setting):
    with pytest.raises(ValueError, match="is out of range"):
        replace(CONFIGS["transformer"], **setting)
