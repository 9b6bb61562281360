"""CLIP stage: the contrastive loss, validation, checkpoints, and defaults."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_stages import CONFIGS, build, overfit

from dalle import losses
from dalle.models.clip.model import CLIP
from dalle.stages.clip import CLIPStageConfig
from dalle.training.schedules import Schedule


def distinct_batch(stage):
    """Return a training batch in which no two captions are equal."""
    batch = next(stage.batches(0))
    assert len(set(batch.captions)) == len(batch.captions)
    return batch


def test_one_batch_overfits():
    stage = build("clip")
    batch = distinct_batch(stage)
    found = overfit(stage, batch, 64, 5e-4)
    assert found[0] > 1
    assert found[-1] < 0.1
    _, metrics = stage.loss(stage.model, batch, 0, torch.Generator())
    assert metrics["accuracy"] == 1


@torch.no_grad()
def test_loss_and_metrics_match_batch_features():
    stage = build("clip")
    batch = distinct_batch(stage)
    loss, metrics = stage.loss(stage.model, batch, 0, torch.Generator())
    pixels = batch.images.float() / 255
    images, captions = stage.model.encode_image(pixels), stage.model.encode_text(stage.model.tokenize(batch.captions))
    torch.testing.assert_close(loss, losses.contrastive(images, captions, torch.tensor(1 / 0.07)))
    right = [(images[i] @ captions.T).argmax().item() == i for i in range(8)]
    assert metrics["accuracy"].item() == pytest.approx(sum(right) / 8)
    assert metrics["scale"].item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("compiled", [False, True])
def test_captions_are_as_long_as_a_batch_needs_or_of_one_length_to_compile(compiled):
    stage = build("clip", compile=compiled, model=replace(CONFIGS["clip"].model, text_positions=64))
    given = []
    hook = stage.model.text.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    stage.loss(stage.model, distinct_batch(stage), 0, torch.Generator())
    hook.remove()
    (ids,) = given
    assert ids.is_contiguous()
    assert ids.shape[1] == 64 if compiled else (ids.shape[1] < 64 and ids[:, -8:].any())


@torch.no_grad()
def test_validation_weighs_batches_by_number_of_images():
    stage = build("clip", batch_size=4)  # 10 pictures: 4, 4 and 2
    expected = {"loss": 0.0, "accuracy": 0.0}
    for batch in stage.data.held_out(10):
        loss, metrics = stage.loss(stage.model, batch, 0, torch.Generator())
        expected["loss"] += loss.item() * len(batch.captions) / 10
        expected["accuracy"] += metrics["accuracy"].item() * len(batch.captions) / 10
    assert stage.validate(stage.model) == pytest.approx(expected)


@torch.no_grad()
def test_constant_features_score_at_chance():
    stage = build("clip", batch_size=10)
    for tower in (stage.model.image, stage.model.text):
        tower.projection.weight.zero_()
    assert stage.validate(stage.model)["loss"] == pytest.approx(math.log(10), rel=1e-4)


def test_long_captions_are_truncated_in_training():
    narrow = replace(CONFIGS["clip"].model, text_positions=6)
    stage = build("clip", model=narrow)
    loss, _ = stage.loss(stage.model, next(stage.batches(0)), 0, torch.Generator())
    assert torch.isfinite(loss)


def test_sizes_come_from_data_and_tokenizer():
    stage = build("clip")
    assert stage.model.config.image_size == 16
    assert stage.model.tokenizer.vocabulary <= CONFIGS["clip"].model.text_vocabulary - 2
    assert stage.model.config.text_vocabulary == stage.model.tokenizer.vocabulary + 2
    assert stage.model.tokenizer.vocabulary > 256  # it learned words


def test_saved_stage_loads_as_clip(tmp_path):
    stage = build("clip")
    stage.save(tmp_path, stage.model, {"step": 7})
    loaded = CLIP.load(tmp_path)
    record = stage.data.val[0]
    assert loaded.score([record.image], list(record.captions)).equal(
        stage.model.eval().score([record.image], list(record.captions))
    )


def test_defaults_are_openais():
    config = CLIPStageConfig()
    optimizer = config.optimizer
    assert config.batch_size == 32_768
    assert optimizer.learning_rate == Schedule("cosine", 5e-4, 0.0, config.steps)
    assert (optimizer.warmup_steps, optimizer.betas, optimizer.eps) == (2_000, (0.9, 0.98), 1e-6)
    assert (optimizer.weight_decay, optimizer.decay) == (0.2, "matrices")
    assert config.ema.decay == 0
    assert config.steps * config.batch_size == 32 * 400_000_000
