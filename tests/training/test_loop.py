import errno
import json
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from line_stage import BlockStage, LineConfig, LineStage, fit
from PIL import Image

from dalle import checkpoint
from dalle.checkpoint import CheckpointError
from dalle.training.ema import EMAConfig
from dalle.training.loop import DivergenceError
from dalle.training.optimizer import OptimizerConfig, PlateauConfig
from dalle.training.schedules import Schedule

EXACT = LineConfig(dropout=0.0, noise=0.0)


class Spoilt(LineStage):
    """A stage with the given loss, or an infinite gradient, in the updates after the first `when`."""

    def __init__(self, config, when, loss=math.nan):
        super().__init__(config)
        self.when, self.spoilt_loss = when, loss

    def loss(self, model, batch, step, generator):
        loss, metrics = super().loss(model, batch, step, generator)
        if step not in self.when:
            return loss, metrics
        if math.isfinite(self.spoilt_loss):
            return (loss * 0).sqrt() + self.spoilt_loss, metrics  # the root's slope at 0 is infinite
        return loss * self.spoilt_loss, {**metrics, "root": loss * math.nan}


class SpoiltBlocks(Spoilt, BlockStage):
    pass


def lines(folder, split="train"):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["split"] == split]


def weights(stage):
    return torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()])


def test_run_reduces_loss_and_writes_metrics_images_and_checkpoint(tmp_path):
    fit(tmp_path, replace(EXACT, steps=60))
    train, val = lines(tmp_path), lines(tmp_path, "val")
    assert [line["step"] for line in train] == list(range(3, 61, 3))
    assert [line["step"] for line in val] == list(range(5, 61, 5))
    assert val[-1]["loss"] < val[0]["loss"] / 10
    names = {"loss", "root", "gradient_norm", "learning_rate", "images_per_second", "seconds"}
    names |= {"tokens_per_second", "mfu", "memory_gb"}
    assert names <= set(train[0])
    previews = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert previews == [f"step-{step:06d}.png" for step in range(10, 61, 10)] + ["strip.png"]
    _, meta = checkpoint.read_config(tmp_path, "line")
    assert meta == {"step": 60, "images": 480, "seed": 0}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000060"]


def test_other_ranks_wait_while_the_first_previews_or_saves(tmp_path, monkeypatch):
    """Else they would wait in a collective of the next update, which NCCL ends after ten minutes."""
    waiting, done = [], []

    @contextmanager
    def wait(_=None):
        waiting.append(True)
        yield
        waiting.pop()

    class Noted(LineStage):
        def preview(self, model):
            done.append(("preview", bool(waiting)))

        def save(self, folder, model, meta):
            done.append((folder.parent.name, bool(waiting)))
            super().save(folder, model, meta)

    monkeypatch.setattr("dalle.training.loop.raised_together", wait)
    config = replace(EXACT, steps=10, keep_every=5, keep_best=True)
    fit(tmp_path / "run", config, Noted(config))
    assert {name for name, _ in done} == {"preview", "checkpoints", "run", tmp_path.name}  # best is in the run
    assert all(waits for _, waits in done)


def test_metrics_are_means_since_previous_log(tmp_path):
    fit(tmp_path, EXACT)
    assert [line["step_seen"] for line in lines(tmp_path)][:3] == [1.0, 4.0, 7.0]


def test_saved_model_is_the_ema(tmp_path):
    stage = fit(tmp_path, replace(EXACT, ema=EMAConfig(0.5, warmup=False)))
    saved = LineStage(EXACT)
    checkpoint.load_weights(tmp_path, saved.model)
    assert not torch.allclose(weights(saved), weights(stage))
    stage = fit(tmp_path / "raw", replace(EXACT, ema=EMAConfig(0.0)))
    checkpoint.load_weights(tmp_path / "raw", saved.model)
    assert torch.equal(weights(saved), weights(stage))


@pytest.mark.parametrize("accumulate", [2, 8])
def test_gradient_accumulation_matches_one_large_batch(tmp_path, accumulate):
    whole = fit(tmp_path / "whole", EXACT)
    parts = fit(tmp_path / "parts", replace(EXACT, accumulate=accumulate))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def test_micro_batches_draw_different_noise(tmp_path):
    """With noise of their own, equal micro-batches give different losses."""
    draws = []

    class Listening(LineStage):
        def loss(self, model, batch, step, generator):
            draws.append((step, torch.rand(1, generator=generator).item()))
            return super().loss(model, batch, step, generator)

    config = replace(EXACT, accumulate=2)
    fit(tmp_path, config, Listening(config))
    assert len({draw for _, draw in draws}) == len(draws) == 40


def test_indivisible_batch_size_raises():
    with pytest.raises(ValueError, match=r"batch_size=8 does not divide into 3 ranks x 1 micro-batches"):
        EXACT.micro_batch_size(3)


def test_gradients_are_clipped_to_max_norm(tmp_path):
    step_size = OptimizerConfig(Schedule(start=1e-3), eps=1.0)  # so large an eps makes steps follow the gradient
    free = fit(tmp_path / "free", replace(EXACT, optimizer=step_size, steps=1))
    cut = fit(tmp_path / "cut", replace(EXACT, optimizer=step_size, steps=1, clip_norm=0.01))
    start = weights(LineStage(EXACT))
    assert (weights(cut) - start).norm() < (weights(free) - start).norm() / 10
    assert lines(tmp_path / "free")[0]["gradient_norm"] == lines(tmp_path / "cut")[0]["gradient_norm"] > 0.01


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.0])
def test_nonfinite_update_is_skipped_counted_and_logged(tmp_path, capsys, loss):
    config = replace(EXACT, steps=6, log_every=1)
    before = weights(fit(tmp_path / "before", replace(config, steps=2)))
    after = weights(fit(tmp_path / "after", replace(config, steps=3), Spoilt(config, {2}, loss)))
    assert torch.equal(before, after)
    stage = fit(tmp_path / "on", config, Spoilt(config, {2}, loss))
    assert torch.isfinite(weights(stage)).all()
    assert not torch.equal(weights(stage), before)
    written = lines(tmp_path / "on")
    assert [line["skipped"] for line in written] == [0, 0, 1, 1, 1, 1]
    assert [line["loss"] is None for line in written] == [False, False, True, False, False, False]
    assert "update 3 skipped" in capsys.readouterr().err


def test_skipped_updates_are_left_out_of_metric_means(tmp_path):
    config = replace(EXACT, steps=3)
    fit(tmp_path, config, Spoilt(config, {1}))
    (line,) = lines(tmp_path)
    assert line["step_seen"] == 1.0  # of updates 0 and 2
    assert math.isfinite(line["loss"])


def test_few_skipped_updates_with_a_scale_per_branch_give_advice(tmp_path, capsys):
    config = replace(EXACT, precision="float16", gradient_scaling="resblock", max_skipped_steps=4)
    sentence = "every 125 updates at most, and a run ends after 4 skipped ones: set stage.max_skipped_steps above 250"
    with pytest.raises(DivergenceError, match=sentence):
        fit(tmp_path, config, SpoiltBlocks(config, range(1, 9)))
    assert f"a gradient scale is lowered {sentence}" in capsys.readouterr().err
    fit(tmp_path, replace(config, max_skipped_steps=251, steps=1), BlockStage(config))
    assert "max_skipped_steps" not in capsys.readouterr().err


def test_many_consecutive_skipped_updates_stop_the_run_and_keep_last_checkpoint(tmp_path):
    config = replace(EXACT, max_skipped_steps=4)
    with pytest.raises(DivergenceError, match=r"last 4 updates, up to step 9; the last checkpoint, of step 5, is in "):
        fit(tmp_path, config, Spoilt(config, {3, 5, 6, 7, 8, 9, 10}))
    assert (tmp_path / "state" / "00000005").is_dir()
    saved = LineStage(config)
    checkpoint.load_weights(tmp_path, saved.model)
    assert torch.isfinite(weights(saved)).all()


def test_logging_does_not_change_the_run(tmp_path):
    often = fit(tmp_path / "often", replace(LineConfig(), validate_every=1, preview_every=1, save_every=1))
    never = fit(tmp_path / "never", replace(LineConfig(), validate_every=0, preview_every=0, save_every=0))
    assert torch.equal(weights(often), weights(never))
    assert len(lines(tmp_path / "never", "val")) == 1  # at the end


def test_failing_preview_warns_and_training_goes_on(tmp_path, caplog):
    stage = LineStage(EXACT)
    stage.preview = lambda model: 1 / 0
    fit(tmp_path, EXACT, stage)
    assert [record.message for record in caplog.records] == [
        "the preview of step 10 failed: division by zero",
        "the preview of step 20 failed: division by zero",
    ]
    assert (tmp_path / "state" / "00000020").is_dir()


def test_full_disk_ends_training_only_for_checkpoints(tmp_path, monkeypatch, caplog):
    def save(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    fit(tmp_path, EXACT)
    assert "the preview of step 10 could not be written; training continues" in caplog.text
    assert (tmp_path / "state" / "00000020").is_dir()
    monkeypatch.setattr(checkpoint, "write_weights", save)
    with pytest.raises(CheckpointError, match="No space left on device. Files not written yet are unchanged: free"):
        fit(tmp_path, replace(EXACT, steps=25))
    assert (tmp_path / "state" / "00000020").is_dir()


def test_plateau_halves_learning_rate(tmp_path):
    plateau = PlateauConfig(max_reductions=2, window=4, threshold=0.9, patience=0)
    fit(tmp_path, replace(EXACT, log_every=1, optimizer=OptimizerConfig(Schedule(start=1e-9), plateau=plateau)))
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates[7] == pytest.approx(1e-9)
    assert rates[8:16] == pytest.approx([5e-10] * 8)
    assert rates[16:] == pytest.approx([2.5e-10] * 4)


def test_bfloat16_training_keeps_float32_weights(tmp_path):
    stage = fit(tmp_path, replace(EXACT, precision="bfloat16", steps=60))
    assert lines(tmp_path, "val")[-1]["loss"] < 0.1
    assert {parameter.dtype for parameter in stage.model.parameters()} == {torch.float32}
