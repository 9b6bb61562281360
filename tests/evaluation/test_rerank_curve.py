"""The part `rerank_curve`: its numbers, table and plot, and what it asks for where something is missing."""

from dataclasses import replace

import pytest
from PIL import Image

from dalle.checkpoint import CheckpointError
from dalle.data.folder import FolderConfig
from dalle.evaluation.metrics import rerank_curve
from dalle.evaluation.subject import Subject


def test_the_rerank_curve_has_the_choice_and_the_ceiling_a_table_and_a_plot(subject, config):
    found = rerank_curve.measure(subject, config)
    assert {f"judge_val_best_of_{size}" for size in (1, 2, 4)} <= found.numbers.keys()
    assert not any(name.startswith("clip_") for name in found.numbers)  # it chooses, and would only rise
    assert {f"kid_effnet_best_of_{size}" for size in (1, 2, 4)} <= found.numbers.keys()
    assert found.table.startswith("| quality | chosen by | 1 | 2 | 4 |")
    assert "| favourites as a set | 1 | 2 | 4 |" in found.table
    assert set(found.pictures) == {"rerank_curve", "rerank_sets"}
    assert found.settings["candidates"] == 4


def test_a_curve_of_what_nothing_ranks_asks_for_a_clip_or_another_way_to_rank(config, without_clip):
    config = replace(config, checkpoint=str(without_clip()))
    subject = Subject.load(config)
    with pytest.raises(CheckpointError, match="which a rerank curve by rerank=clip needs"):
        rerank_curve.measure(subject, config)
    found = rerank_curve.measure(subject, replace(config, rerank="image_likelihood"))
    assert "judge_val_best_of_4_by_perfect" in found.numbers


def test_where_nothing_independent_measures_that_is_said(config, tmp_path):
    for number in range(30):
        Image.new("RGB", (16, 16), (8 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture{number}")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.3)
    found = rerank_curve.measure(Subject.load(replace(config, data=data)), replace(config, data=data))
    assert "Nothing but the way of choosing itself could measure single pictures: no word is in 5 to" in found.about
    assert not any("val_best_of" in name for name in found.numbers)
    assert "kid_effnet_best_of_4" in found.numbers


def test_another_clip_may_measure(subject, config, checkpoints):
    found = rerank_curve.measure(subject, replace(config, scorer=str(checkpoints / "clip")))
    assert found.numbers["other_clip_val_best_of_4_by_perfect"] == pytest.approx(
        found.numbers["other_clip_val_best_of_4"]
    )
    assert 0 <= found.numbers["other_clip_val_real_pairs"] <= 1
    assert "had no part in training or choosing" in found.about


def test_data_without_known_facts_is_measured_by_words_that_nothing_has_chosen_by(config, tmp_path):
    """Pictures of one colour each: what their captions say can be read off them."""
    colours = ["red", "green", "blue", "white"]
    for number in range(160):
        name = colours[number % 4]
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a {name} picture")
    data = FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.3)
    config = replace(config, data=data, curve_captions=12)
    found = rerank_curve.measure(Subject.load(config), config)
    assert {f"words_val_best_of_{size}" for size in (1, 2, 4)} <= found.numbers.keys()
    assert found.numbers["words_val_real_pairs"] > 0.6  # neighbours may be of one colour
    assert "nothing in the choice has seen it" in found.about
