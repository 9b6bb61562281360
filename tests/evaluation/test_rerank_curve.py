"""Metric `rerank_curve`: numbers, tables and plots, scorers for data without a judge, error messages."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from dalle.checkpoint import CheckpointError
from dalle.data.folder import FolderConfig
from dalle.evaluation.context import EvaluationContext
from dalle.evaluation.features import FeatureOutput
from dalle.evaluation.judges.word_probe import WordProbe
from dalle.evaluation.metrics import rerank_curve


def test_numbers_table_and_plots(context, config):
    result = rerank_curve.measure(context, config)
    assert {f"judge_val_best_of_{size}" for size in (1, 2, 4)} <= result.numbers.keys()
    assert not any(name.startswith("clip_") for name in result.numbers)  # it is the reranker
    assert {f"kid_effnet_best_of_{size}" for size in (1, 2, 4)} <= result.numbers.keys()
    assert result.table.startswith("| quality | ranked by | 1 | 2 | 4 |")
    assert "| set of best candidates | 1 | 2 | 4 |" in result.table
    assert set(result.images) == {"rerank_curve", "rerank_sets"}
    assert result.settings["candidates"] == 4


def test_clip_reranking_without_clip_raises(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    context = EvaluationContext.load(config)
    with pytest.raises(CheckpointError, match="which a rerank curve by rerank=clip needs"):
        rerank_curve.measure(context, config)
    result = rerank_curve.measure(context, replace(config, rerank="image_likelihood"))
    assert "judge_val_best_of_4_by_perfect" in result.numbers


def test_description_says_if_there_is_no_independent_scorer(config, tmp_path):
    for number in range(30):
        Image.new("RGB", (16, 16), (8 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture{number}")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.3)
    result = rerank_curve.measure(EvaluationContext.load(replace(config, data=data)), replace(config, data=data))
    assert (
        "No scorer is independent of the reranker, so single images are not scored: no word is in 5 to"
        in result.description
    )
    assert not any("val_best_of" in name for name in result.numbers)
    assert "kid_effnet_best_of_4" in result.numbers


def test_another_clip_as_the_scorer(context, config, checkpoints):
    result = rerank_curve.measure(context, replace(config, scorer=str(checkpoints / "clip")))
    assert result.numbers["other_clip_val_best_of_4_by_perfect"] == pytest.approx(
        result.numbers["other_clip_val_best_of_4"]
    )
    assert 0 <= result.numbers["other_clip_val_real_pairs"] <= 1
    assert "used neither for training nor for ranking" in result.description


def test_data_without_a_judge_are_scored_by_the_word_probe(config, tmp_path):
    """Images of one colour each, which their captions name."""
    colours = ["red", "green", "blue", "white"]
    for number in range(96):
        name = colours[number % 4]
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a {name} picture")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.3)
    config = replace(config, data=data, curve_captions=12)
    result = rerank_curve.measure(EvaluationContext.load(config), config)
    assert {f"words_val_best_of_{size}" for size in (1, 2, 4)} <= result.numbers.keys()
    assert result.numbers["words_val_real_pairs"] > 0.6  # the next image may have the same colour
    assert "independent of the reranker" in result.description


def test_the_word_probe_computes_features_of_a_few_images_at_a_time():
    """512 candidates at 224 pixels would take gigabytes."""
    sizes = []

    class Network:
        def __call__(self, images):
            sizes.append(len(images))
            return FeatureOutput(images.float().mean(dim=(2, 3)), torch.zeros(len(images), 1))

    probe = WordProbe(
        Network(),  # type: ignore[arg-type]
        ["red"],
        torch.zeros(3),
        torch.ones(3),
        torch.eye(3)[:, :1].double(),
        torch.tensor([0.5]),
    )
    images = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(150)]
    scores = probe.score(images, ["a red circle", "a green square"])
    assert scores.shape == (150, 2) and sum(sizes) == 150 and max(sizes) <= 64
    assert (scores[1:, 0] > 0).all() and (scores[:, 1] == 0).all()
