"""The part `fit`: what it measures of a model, and what it says where something is missing."""

from dataclasses import replace

import pytest

from dalle.evaluation.drawing import digest
from dalle.evaluation.metrics import fit
from dalle.evaluation.subject import Subject


def test_every_split_has_scores_facts_and_retrieval_and_a_sheet(subject, config):
    found = fit.measure(subject, config)
    for split in ("val", "novel"):
        names = {f"clip_{split}_{name}" for name in ("top", "first", "real")}
        names |= {f"judge_{split}_{name}" for name in ("top", "first", "mean", "any", "top_colours", "top_relation")}
        names |= {f"retrieval_{split}_{kind}_to_caption_{rank}" for kind in ("first", "real") for rank in (1, 5, 10)}
        assert names <= found.numbers.keys()
    assert set(found.pictures) == {"samples_val", "samples_novel"}
    assert found.notes == []


def test_first_ones_are_those_that_nothing_has_chosen_and_favourites_score_no_worse(subject, config):
    numbers = fit.measure(subject, config).numbers
    assert numbers["clip_val_top"] >= numbers["clip_val_first"]
    captions = [subject.sources["val"][index].captions[0] for index in range(5)]
    unchosen = subject.dalle.generate_many(captions, candidates=1, keep=1, truncate=True)
    scores = [result.scores[0] for result in unchosen]
    assert numbers["clip_val_first"] == pytest.approx(sum(scores) / 5, abs=1e-5)


def test_all_that_decides_the_pictures_is_told(subject, config):
    told = fit.measure(subject, config).settings
    assert (told["candidates"], told["seed"], told["rerank"]["by"]) == (3, 0, "clip")
    assert told["val"]["captions"] == 5
    captions = [subject.sources["val"][index].captions[0] for index in range(5)]
    assert told["val"]["captions_digest"] == digest(captions) != digest(captions[:4])


def test_pictures_are_drawn_with_the_checkpoints_guidance_or_with_one_that_is_asked_for(subject, config, monkeypatch):
    monkeypatch.setattr(subject.dalle, "caption_dropout", 0.1)
    usual, asked = (fit.measure(subject, replace(config, guidance=guidance)) for guidance in (None, 9.0))
    assert (usual.settings["guidance"], asked.settings["guidance"]) == (1.0, 9.0)
    assert usual.numbers["clip_val_first"] != asked.numbers["clip_val_first"]
    monkeypatch.setattr(subject.dalle, "guidance", 9.0)
    assert fit.measure(subject, config).numbers == asked.numbers


def test_without_a_clip_the_judge_remains_and_the_lack_is_said(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    found = fit.measure(Subject.load(config), config)
    assert found.notes == [fit.NO_CLIP]
    assert not any(name.startswith(("clip", "retrieval")) for name in found.numbers)
    assert "judge_val_top" in found.numbers
