"""Recall of captions and pictures, on similarities whose order is known."""

import pytest
import torch

from dalle.evaluation.metrics.retrieval import RANKS, recalls

NAMES = [f"{direction}_{rank}" for direction in ("to_caption", "to_picture") for rank in RANKS]


def test_a_perfect_scorer_finds_everything_first():
    found = recalls(torch.eye(12), [f"caption {number}" for number in range(12)])
    assert found == dict.fromkeys(NAMES, 1.0)


def test_a_scorer_that_says_the_same_of_all_finds_nothing_by_chance():
    found = recalls(torch.zeros(12, 12), [f"caption {number}" for number in range(12)])
    assert found == dict.fromkeys(NAMES, 0.0)


def test_directions_are_told_apart():
    """Every caption is nearest to picture 0, whose own is nearest; all other pictures are nearest to caption 1."""
    similarities = torch.zeros(3, 3)
    similarities[0] = torch.tensor([0.9, 0.8, 0.7])
    similarities[1:, 1] = 0.5
    similarities[2, 2] = 0.4
    found = recalls(similarities, ["a", "b", "c"])
    assert found["to_caption_1"] == pytest.approx(2 / 3)  # picture 2 finds caption 1 before its own
    assert found["to_picture_1"] == pytest.approx(1 / 3)
    assert found["to_caption_5"] == 1


def test_captions_of_the_same_words_are_right_answers_for_each_others_pictures():
    similarities = torch.tensor([[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.5]])
    assert recalls(similarities, ["a", "b", "c"])["to_caption_1"] == pytest.approx(1 / 3)
    assert recalls(similarities, ["a", "a", "c"])["to_caption_1"] == 1


@pytest.mark.parametrize(
    ("place", "expected"), [(0, (1, 1, 1)), (1, (0, 1, 1)), (4, (0, 1, 1)), (5, (0, 0, 1)), (10, (0, 0, 0))]
)
def test_recall_at_each_rank_counts_those_before_the_right_one(place, expected):
    similarities = torch.full((20, 20), -1.0)
    for row in range(20):
        similarities[row, row] = 0.5
        for step in range(1, place + 1):
            similarities[row, (row + step) % 20] = 0.6
    found = recalls(similarities, [str(number) for number in range(20)])
    assert tuple(found[f"to_caption_{rank}"] for rank in RANKS) == expected
