"""Metric `alignment`: CLIP score, recall@k and accuracy of samples, their settings, and notes without a CLIP."""

from dataclasses import replace

import pytest

from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.metrics import alignment
from dalle.evaluation.sampling_settings import captions_digest
from dalle.sampling.sampling_defaults import SamplingDefaults


def test_every_split_has_clip_score_accuracy_recall_and_an_image_grid(context, config):
    result = alignment.measure(context, config)
    for split in ("val", "novel"):
        names = {f"clip_{split}_{name}" for name in ("top", "first", "real")}
        names |= {f"judge_{split}_{name}" for name in ("top", "first", "mean", "any", "top_colours", "top_relation")}
        names |= {f"retrieval_{split}_{kind}_image_to_text_R@{k}" for kind in ("first", "real") for k in (1, 5, 10)}
        assert names <= result.numbers.keys()
    assert set(result.images) == {"samples_val", "samples_novel"}
    assert result.notes == []


def test_first_is_candidate_0_and_top_scores_no_worse(context, config):
    numbers = alignment.measure(context, config).numbers
    assert numbers["clip_val_top"] >= numbers["clip_val_first"]
    captions = [context.sources["val"][index].captions[0] for index in range(5)]
    results = context.pipeline.generate_many(captions, candidates=1, keep=1, truncate=True)
    scores = [result.scores[0] for result in results]
    assert numbers["clip_val_first"] == pytest.approx(sum(scores) / 5, abs=1e-5)


def test_settings_have_everything_that_determines_the_samples(context, config):
    settings = alignment.measure(context, config).settings
    assert (settings["candidates"], settings["seed"], settings["rerank"]["by"]) == (3, 0, "clip")
    assert settings["val"]["captions"] == 5
    captions = [context.sources["val"][index].captions[0] for index in range(5)]
    assert settings["val"]["captions_digest"] == captions_digest(captions) != captions_digest(captions[:4])


def test_guidance_is_that_of_the_checkpoint_or_of_the_config(context, config, monkeypatch):
    monkeypatch.setattr(context.pipeline, "defaults", SamplingDefaults(caption_dropout=0.1))
    default, guided = (alignment.measure(context, replace(config, guidance=guidance)) for guidance in (None, 9.0))
    assert (default.settings["guidance"], guided.settings["guidance"]) == (1.0, 9.0)
    assert default.numbers["clip_val_first"] != guided.numbers["clip_val_first"]
    monkeypatch.setattr(context.pipeline, "defaults", SamplingDefaults(caption_dropout=0.1, guidance=9.0))
    assert alignment.measure(context, config).numbers == guided.numbers


def test_without_clip_there_is_accuracy_and_a_note(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    result = alignment.measure(EvaluationContext.load(config), config)
    assert result.notes == [alignment.NO_CLIP]
    assert not any(name.startswith(("clip", "retrieval")) for name in result.numbers)
    assert "judge_val_top" in result.numbers
