"""The part `rerank_curve`: its numbers, table and plot, and what it asks for where something is missing."""

from dataclasses import replace

import pytest

from dalle.checkpoint import CheckpointError
from dalle.evaluation import rerank_curve
from dalle.evaluation.subject import Subject


def test_the_rerank_curve_has_the_choice_and_the_ceiling_a_table_and_a_plot(subject, config):
    found = rerank_curve.measure(subject, config)
    assert {f"judge_val_best_of_{size}" for size in (1, 2, 4)} <= found.numbers.keys()
    assert found.numbers["clip_val_best_of_4_by_perfect"] == pytest.approx(found.numbers["clip_val_best_of_4"])
    assert found.table.startswith("| quality | chosen by | 1 | 2 | 4 |")
    assert set(found.pictures) == {"rerank_curve"}
    assert found.settings["candidates"] == 4


def test_a_curve_of_what_nothing_ranks_asks_for_a_clip_or_another_way_to_rank(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    subject = Subject.load(config)
    with pytest.raises(CheckpointError, match="which a rerank curve by rerank=clip needs"):
        rerank_curve.measure(subject, config)
    found = rerank_curve.measure(subject, replace(config, rerank="image_likelihood"))
    assert "judge_val_best_of_4_by_perfect" in found.numbers


def test_a_curve_of_nothing_measurable_asks_for_a_clip(config, without_clip, monkeypatch):
    config = replace(config, checkpoint=str(without_clip()))
    monkeypatch.setattr(rerank_curve, "caption_qualities", lambda *_: {})
    with pytest.raises(CheckpointError, match="a rerank curve of data without known facts needs"):
        rerank_curve.measure(Subject.load(config), config)
