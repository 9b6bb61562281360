"""Metrics of drawn pictures, with a painter in the place of the models: perfect, wrong, or right when reranked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.blocks_scene import BACKGROUND, COLOURS, Scene
from dalle.data.blocks_scene import draw as render
from dalle.data.folder import FolderConfig, FolderSource
from dalle.evaluation.metrics.captions import caption_metrics, caption_qualities, draw, first_captions
from dalle.sampling.pipeline import DALLE, Result
from dalle.sampling.sampling_config import SamplingConfig

BLANK = Image.new("RGB", (64, 64), BACKGROUND)


@pytest.fixture(scope="module")
def val() -> BlocksSource:
    return BlocksSource(BlocksConfig(val=12), "val")


class Half:
    """Finds that every picture half fits every caption."""

    def score(self, images: list[Image.Image], captions: list[str]) -> torch.Tensor:
        return torch.full((len(images), len(captions)), 0.5)


class Painter:
    """Draws what `paint(caption, candidate)` gives; its scorer ranks the candidates as `order` says."""

    def __init__(self, paint: Callable[[str, int], Image.Image], order: Sequence[int] | None = None):
        self.paint, self.order = paint, order
        self.clip = None if order is None else Half()
        self.asked: list[dict[str, Any]] = []

    def stream(self, captions: Sequence[str], config: SamplingConfig, **settings: Any) -> list[Result]:
        self.asked.append({"captions": list(captions), "config": config, **settings})
        candidates = config.candidates
        order = list(self.order or range(candidates))
        return [
            Result(
                caption,
                images=[self.paint(caption, candidate) for candidate in order],
                scores=None if self.order is None else [0.9 - 0.1 * place for place in range(candidates)],
                tokens=torch.zeros(candidates, 1, 1, dtype=torch.int64),
                candidates=order,
                drawn=candidates,
            )
            for caption in captions
        ]


def measured(painter: Any, source: Any, captions: int = 12, candidates: int = 2) -> dict[str, float]:
    config = SamplingConfig(candidates=candidates, keep=1, rerank="mixture", seed=7, batch_size=3)
    drawn = draw(painter, source, captions, config)
    found = caption_metrics(drawn, "val", painter.clip)
    return {name: value for name, value in found.items() if name not in FACTS}


FACTS = {f"judge_val_top_{fact}" for fact in ("objects", "colours", "shapes", "sizes", "relation", "count")}


def shares(top: float, first: float, mean: float, any: float) -> dict[str, float]:
    named = {"top": top, "first": first, "mean": mean, "any": any}
    return {f"judge_val_{name}": pytest.approx(share) for name, share in named.items()}


def truth(source: BlocksSource) -> dict[str, Image.Image]:
    return {source[index].captions[0]: source[index].image for index in range(len(source))}


def test_perfect_pictures_have_every_fact_right(val):
    pictures = truth(val)
    metrics = measured(Painter(lambda caption, _: pictures[caption]), val)
    assert metrics == shares(top=1, first=1, mean=1, any=1)


def test_wrong_pictures_have_none(val):
    metrics = measured(Painter(lambda *_: BLANK), val)
    assert metrics == shares(top=0, first=0, mean=0, any=0)


def test_the_top_picture_is_the_scorers_choice_and_the_first_is_candidate_0(val):
    pictures = truth(val)
    right_if_second = Painter(lambda caption, candidate: pictures[caption] if candidate == 1 else BLANK, order=[1, 0])
    metrics = measured(right_if_second, val)
    assert metrics == {"clip_val_top": pytest.approx(0.5), **shares(top=1, first=0, mean=1 / 2, any=1)}


def test_without_a_scorer_the_first_picture_is_the_top_one(val):
    pictures = truth(val)
    painter = Painter(lambda caption, candidate: pictures[caption] if candidate == 0 else BLANK)
    assert measured(painter, val) == shares(top=1, first=1, mean=1 / 2, any=1)


def test_what_was_drawn_but_not_chosen_counts_for_mean_and_any(val):
    pictures = truth(val)
    right = Painter(lambda caption, candidate: pictures[caption] if candidate == 2 else BLANK, order=[1, 2, 0, 3])
    found = measured(right, val, candidates=4)
    assert found == {"clip_val_top": pytest.approx(0.5), **shares(top=0, first=0, mean=1 / 4, any=1)}


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
    assert asked["config"] == SamplingConfig(candidates=4, keep=4, rerank="mixture", seed=7, batch_size=3)


def test_no_more_captions_are_asked_for_than_there_are(val):
    painter = Painter(lambda *_: BLANK)
    measured(painter, val, captions=500)
    assert len(painter.asked[0]["captions"]) == 12


def test_fact_by_fact_the_favourites_say_what_is_wrong(val):
    """Pictures in which all is right but the colours, each of which is another."""
    others = dict(zip(COLOURS, [*list(COLOURS)[1:], *list(COLOURS)[:1]], strict=True))
    recoloured = {}
    for index in range(12):
        scene = val.scene(index)
        pieces = tuple(piece._replace(colour=others[piece.colour]) for piece in scene.pieces)
        recoloured[val[index].captions[0]] = render(Scene(pieces, scene.statement), 64)
    pictures = truth(val)  # which the favourites are not
    painter: Any = Painter(lambda caption, candidate: (pictures if candidate else recoloured)[caption], order=[0, 1])
    found = caption_metrics(draw(painter, val, 12, SamplingConfig(candidates=2, keep=1)), "val", None)
    assert found["judge_val_top"] == found["judge_val_top_colours"] == 0
    assert {found[f"judge_val_top_{fact}"] for fact in ("objects", "sizes", "count")} == {1}
    assert found.keys() >= FACTS


@pytest.fixture
def folder(tmp_path) -> FolderSource:
    """Own pictures: one that is broken, and one with a caption longer than any model reads."""
    for number in range(6):
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"square {number}" + " and so on" * (30 * (number == 2)))
    source = FolderSource(FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.9), "val")
    Path(tmp_path, source.keys()[1]).write_bytes(b"no picture")
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
    dalle = DALLE.load(checkpoints)
    captions = first_captions(folder, 99)
    assert any(len(dalle.tokenizer.encode(caption)) > 31 for caption in captions)
    config = SamplingConfig(candidates=2, keep=1, seed=1)
    (score,) = caption_metrics(draw(dalle, folder, 99, config), "val", dalle.clip).values()
    results = dalle.generate_many(captions, config, truncate=True)
    assert score == pytest.approx(sum(result.scores[0] for result in results) / len(captions), abs=1e-5)


def test_clips_score_is_that_of_the_favourite_whatever_that_was_chosen_by(checkpoints, val):
    dalle, config = DALLE.load(checkpoints), SamplingConfig(candidates=4, keep=1, rerank="image_likelihood")
    metrics = caption_metrics(draw(dalle, val, 3, config), "val", dalle.clip)
    results = dalle.generate_many(first_captions(val, 3), config, truncate=True)
    scores = [dalle.clip.score(result.images, [result.caption]).item() for result in results]
    assert metrics["clip_val_top"] == pytest.approx(sum(scores) / 3, abs=1e-5)


def test_the_qualities_of_a_curve_are_those_that_are_measured(val):
    captions, pictures = first_captions(val, 4), truth(val)
    painter: Any = Painter(lambda *_: BLANK, order=[0])
    qualities = caption_qualities(val, captions, {"clip": painter.clip})
    assert list(qualities) == ["judge", "clip"]
    for number, caption in enumerate(captions):
        assert qualities["judge"](number, [BLANK, pictures[caption], BLANK]).tolist() == [0, 1, 0]
        assert qualities["clip"](number, [BLANK, BLANK]).tolist() == [0.5, 0.5]


def test_other_data_without_a_scorer_has_no_quality_to_plot(folder):
    assert caption_qualities(folder, ["a"]) == {}
