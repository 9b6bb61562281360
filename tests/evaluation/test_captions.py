"""Metrics of drawn pictures, with a painter in the place of the models: perfect, wrong, or right when reranked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.blocks_world import BACKGROUND, one_fact_changed
from dalle.data.folder import FolderConfig, FolderSource
from dalle.evaluation.captions import caption_metrics, draw, first_captions, share_held
from dalle.models.clip import CLIP
from dalle.sampling.pipeline import DALLE, Result

BLANK = Image.new("RGB", (64, 64), BACKGROUND)


@pytest.fixture(scope="module")
def val() -> BlocksSource:
    return BlocksSource(BlocksConfig(val=12), "val")


class Painter:
    """Draws what `paint(caption, candidate)` gives; its scorer ranks the candidates as `order` says."""

    def __init__(self, paint: Callable[[str, int], Image.Image], order: Sequence[int] | None = None):
        self.paint, self.order = paint, order
        self.asked: list[dict[str, Any]] = []

    def generate_many(self, captions: Sequence[str], candidates: int, **settings: Any) -> list[Result]:
        self.asked.append({"captions": list(captions), "candidates": candidates, **settings})
        order = list(self.order or range(candidates))
        return [
            Result(
                caption,
                images=[self.paint(caption, candidate) for candidate in order],
                scores=None if self.order is None else [0.5 - 0.1 * place for place in range(candidates)],
                tokens=torch.zeros(candidates, 1, 1, dtype=torch.int64),
                candidates=order,
            )
            for caption in captions
        ]


def measured(painter: Any, source: Any, captions: int = 12, candidates: int = 2) -> dict[str, float]:
    return caption_metrics(painter, source, "val", captions, candidates, seed=7, batch_size=3)


def truth(source: BlocksSource) -> dict[str, Image.Image]:
    return {source[index].captions[0]: source[index].image for index in range(len(source))}


def test_perfect_pictures_have_every_fact_right(val):
    pictures = truth(val)
    metrics = measured(Painter(lambda caption, _: pictures[caption]), val)
    assert metrics == {"judge_val_top": 1.0, "judge_val_first": 1.0}


def test_wrong_pictures_have_none(val):
    metrics = measured(Painter(lambda *_: BLANK), val)
    assert metrics == {"judge_val_top": 0.0, "judge_val_first": 0.0}


def test_the_top_picture_is_the_scorers_choice_and_the_first_is_candidate_0(val):
    pictures = truth(val)
    right_if_second = Painter(lambda caption, candidate: pictures[caption] if candidate == 1 else BLANK, order=[1, 0])
    metrics = measured(right_if_second, val)
    assert metrics == {"clip_val_top": pytest.approx(0.5), "judge_val_top": 1.0, "judge_val_first": 0.0}


def test_without_a_scorer_the_first_picture_is_the_top_one(val):
    pictures = truth(val)
    painter = Painter(lambda caption, candidate: pictures[caption] if candidate == 0 else BLANK)
    assert measured(painter, val) == {"judge_val_top": 1.0, "judge_val_first": 1.0}


def test_shares_are_of_the_captions(val):
    pictures = truth(val)
    right = set(list(pictures)[:3])
    metrics = measured(Painter(lambda caption, _: pictures[caption] if caption in right else BLANK), val)
    assert metrics["judge_val_top"] == pytest.approx(3 / 12)


def test_captions_are_the_first_ones_in_order_and_settings_reach_the_drawing(val):
    painter = Painter(lambda *_: BLANK)
    measured(painter, val, captions=5, candidates=4)
    (asked,) = painter.asked
    assert asked["captions"] == [val[index].captions[0] for index in range(5)]
    assert (asked["candidates"], asked["keep"], asked["seed"], asked["batch_size"]) == (4, 4, 7, 3)


def test_no_more_captions_are_asked_for_than_there_are(val):
    painter = Painter(lambda *_: BLANK)
    measured(painter, val, captions=500)
    assert len(painter.asked[0]["captions"]) == 12


def test_a_picture_of_one_changed_fact_does_not_count(val):
    images = [val[index].image for index in range(12)]
    statements = [val.scene(index).statement for index in range(12)]
    changed = [next(iter(one_fact_changed(statement).values()))[0] for statement in statements]
    assert share_held(images, statements) == 1
    assert share_held(images, changed) == 0
    assert share_held(images, statements[:4] + changed[4:]) == pytest.approx(4 / 12)


@pytest.fixture
def folder(tmp_path) -> FolderSource:
    """Own pictures: one that is broken, and one with a caption longer than any model reads."""
    for number in range(6):
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"square {number}" + " and so on" * (30 * (number == 2)))
    source = FolderSource(FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.9), "val")
    Path(tmp_path, source._paths[1].decode()).write_bytes(b"no picture")
    return source


def test_other_data_is_measured_by_clip_alone(folder):
    assert measured(Painter(lambda *_: BLANK, order=[0, 1]), folder) == {"clip_val_top": pytest.approx(0.5)}
    assert measured(Painter(lambda *_: BLANK), folder) == {}


def test_records_that_cannot_be_read_are_passed_over(folder):
    captions = first_captions(folder, 99)
    assert len(captions) == len(folder) - 1 > 2
    assert captions[0] == folder[0].captions[0]
    assert captions[1:] == [folder[index].captions[0] for index in range(2, len(folder))]
    assert first_captions(folder, 2) == captions[:2]


def test_captions_too_long_for_the_transformer_are_drawn_by_their_beginning(checkpoints, folder):
    dalle, clip = DALLE.load(checkpoints), CLIP.load(checkpoints / "clip")
    captions = first_captions(folder, 99)
    assert any(len(dalle.tokenizer.encode(caption)) > 31 for caption in captions)
    drawn = draw(dalle, captions, candidates=2, seed=0, batch_size=8)
    assert [each.caption for each in drawn] == captions
    for each in drawn:
        scores = clip.score([each.first, each.best], [each.caption])[:, 0].tolist()
        assert each.score == pytest.approx(scores[1], abs=1e-5)
        assert scores[1] >= scores[0] - 1e-5


def test_the_first_picture_does_not_depend_on_how_many_are_drawn(checkpoints, val):
    dalle = DALLE.load(checkpoints)
    captions = ["a red circle", "three green triangles"]
    few, many = (draw(dalle, captions, candidates, seed=3, batch_size=8) for candidates in (1, 5))
    for one, other in zip(few, many, strict=True):
        assert one.first.tobytes() == one.best.tobytes() == other.first.tobytes()
