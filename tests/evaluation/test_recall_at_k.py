"""Recall@k of captions and images, for similarities with a known order."""

import pytest
import torch

from dalle.evaluation.metrics.recall_at_k import KS, recall_at_k

NAMES = [f"{direction}_R@{k}" for direction in ("image_to_text", "text_to_image") for k in KS]


def test_perfect_scorer_has_recall_1():
    recalls = recall_at_k(torch.eye(12), [f"caption {number}" for number in range(12)])
    assert recalls == dict.fromkeys(NAMES, 1.0)


def test_constant_scorer_has_recall_0():
    recalls = recall_at_k(torch.zeros(12, 12), [f"caption {number}" for number in range(12)])
    assert recalls == dict.fromkeys(NAMES, 0.0)


def test_directions_differ():
    """Every caption is nearest to image 0, and images other than 0 are nearest to caption 1."""
    similarities = torch.zeros(3, 3)
    similarities[0] = torch.tensor([0.9, 0.8, 0.7])
    similarities[1:, 1] = 0.5
    similarities[2, 2] = 0.4
    recalls = recall_at_k(similarities, ["a", "b", "c"])
    assert recalls["image_to_text_R@1"] == pytest.approx(2 / 3)  # caption 1 ranks before its own for image 2
    assert recalls["text_to_image_R@1"] == pytest.approx(1 / 3)
    assert recalls["image_to_text_R@5"] == 1


def test_equal_captions_are_correct_for_each_others_images():
    similarities = torch.tensor([[0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.5]])
    assert recall_at_k(similarities, ["a", "b", "c"])["image_to_text_R@1"] == pytest.approx(1 / 3)
    assert recall_at_k(similarities, ["a", "a", "c"])["image_to_text_R@1"] == 1


@pytest.mark.parametrize(
    ("rank", "expected"), [(0, (1, 1, 1)), (1, (0, 1, 1)), (4, (0, 1, 1)), (5, (0, 0, 1)), (10, (0, 0, 0))]
)
def test_recall_at_k_depends_on_the_rank_of_the_correct_answer(rank, expected):
    similarities = torch.full((20, 20), -1.0)
    for row in range(20):
        similarities[row, row] = 0.5
        for step in range(1, rank + 1):
            similarities[row, (row + step) % 20] = 0.6
    recalls = recall_at_k(similarities, [str(number) for number in range(20)])
    assert tuple(recalls[f"image_to_text_R@{k}"] for k in KS) == expected
