"""Monitoring changes no result; gradient norms by part, and profiles."""

import gzip
import json
import math
from dataclasses import replace

import pytest
import torch
from line_stage import BlockStage, LineConfig, LineStage, fit

from dalle.models.clip.model import CLIP, CLIPConfig
from dalle.models.dvae.model import DiscreteVAE, DVAEConfig
from dalle.training.monitor.gradient_norms import parts_of

WATCHED = LineConfig(log_gradient_norms=True, profile=True, profile_steps=(2, 3))


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["split"] == "train"]


def weights(stage):
    return torch.cat([parameter.detach().flatten() for parameter in stage.model.parameters()])


def test_watching_does_not_change_the_run(tmp_path):
    watched = fit(tmp_path / "watched", WATCHED)
    alone = fit(tmp_path / "alone", LineConfig(stall_minutes=0, spike_deviations=0))
    assert torch.equal(weights(watched), weights(alone))
    for one, other in zip(lines(tmp_path / "watched"), lines(tmp_path / "alone"), strict=True):
        assert (one["loss"], one["gradient_norm"]) == (other["loss"], other["gradient_norm"])


def test_gradient_norms_of_the_parts_add_up_to_that_of_the_whole(tmp_path):
    config = replace(WATCHED, log_every=1, clip_norm=0.01)  # the norms are those before clipping
    fit(tmp_path, config, BlockStage(config))
    for line in lines(tmp_path):
        parts = {name: value for name, value in line.items() if name.startswith("gradient_norm/")}
        assert list(parts) == [f"gradient_norm/{name}" for name in ("expand", "blocks.0", "blocks.1", "out")]
        assert math.hypot(*parts.values()) == pytest.approx(line["gradient_norm"], rel=1e-5)


def test_parts_are_residual_blocks_and_top_level_children():
    dvae = DiscreteVAE(DVAEConfig(vocabulary=13, width=8, groups=2, blocks_per_group=2, decoder_input=8))
    assert {"encoder", "decoder", "encoder.groups.0.0", "decoder.groups.1.1"} <= set(parts_of(dvae))
    sizes = {"image_width": 64, "image_heads": 2, "image_size": 32, "embedding": 8, "text_width": 16, "text_depth": 2}
    clip = CLIP(CLIPConfig(image_encoder="resnet", image_blocks=[1, 1, 1, 1], **sizes))
    parts = parts_of(clip)
    assert {"text.blocks.0", "text.blocks.1", "text", "image", "log_scale"} <= set(parts)
    assert sum(len(parameters) for parameters in parts.values()) == len(list(clip.parameters()))


def test_a_profile_is_written_and_training_goes_on(tmp_path, capsys):
    fit(tmp_path, WATCHED)
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    assert any("addmm" in str(event.get("name")) for event in trace["traceEvents"])
    assert "addmm" in (tmp_path / "profile" / "operations.txt").read_text()
    assert "profile of updates 2 to 3 of this command" in capsys.readouterr().err
    assert lines(tmp_path)[-1]["step"] == 20


def test_a_profile_ends_with_the_run_and_a_failed_one_warns(tmp_path, monkeypatch, caplog):
    fit(tmp_path / "short", replace(WATCHED, profile_steps=(19, 500)))
    assert (tmp_path / "short" / "profile" / "trace.json.gz").exists()
    monkeypatch.setattr("dalle.training.monitor.profiler.profile", lambda **_: 1 / 0)
    fit(tmp_path / "failed", WATCHED)
    assert [record.message for record in caplog.records] == ["profiling failed; training continues: division by zero"]


def test_a_model_whose_flops_cannot_be_counted_trains_without_mfu(tmp_path, caplog):
    stage = LineStage(LineConfig())
    stage.image_cost = lambda: 1 / 0
    fit(tmp_path, LineConfig(), stage)
    assert "mfu" not in lines(tmp_path)[-1]
    assert "the FLOPs of the model could not be counted" in caplog.text


@pytest.mark.parametrize(
    "setting",
    [
        {"spike_deviations": -1.0},
        {"stall_minutes": -1.0},
        {"profile_steps": (3, 2)},
        {"profile_steps": (0, 2)},
        {"profile_steps": (3,)},
    ],
)
def test_invalid_settings_raise(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        LineConfig(**setting)


def test_watching_may_change_when_a_run_resumes(tmp_path):
    whole = fit(tmp_path / "whole", WATCHED)
    fit(tmp_path / "parts", replace(WATCHED, steps=10, log_gradient_norms=False))
    resumed = fit(tmp_path / "parts", WATCHED)
    assert torch.equal(weights(whole), weights(resumed))
