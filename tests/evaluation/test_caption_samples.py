"""Samples for captions and their metrics, with a fake pipeline: correct, wrong, or correct after reranking."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle.data.blocks import BlocksConfig, BlocksSource
from dalle.data.blocks_scene import BACKGROUND, COLOURS, Scene, draw
from dalle.data.folder import FolderConfig, FolderSource
from dalle.evaluation.metrics.caption_samples import (
    caption_metrics,
    caption_qualities,
    first_captions,
    sample_for_source,
)
from dalle.sampling.pipeline import DALLE, Result
from dalle.sampling.sampling_config import SamplingConfig

BLANK = Image.new("RGB", (64, 64), BACKGROUND)


@pytest.fixture(scope="module")
def val() -> BlocksSource:
    return BlocksSource(BlocksConfig(val=12), "val")


class ConstantScorer:
    """Scorer that gives 0.5 to every image and caption."""

    def score(self, images: list[Image.Image], captions: list[str]) -> torch.Tensor:
        return torch.full((len(images), len(captions)), 0.5)


class FakePipeline:
    """Pipeline whose images are `paint(caption, candidate)`, ranked in the given `order`."""

    def __init__(self, paint: Callable[[str, int], Image.Image], order: Sequence[int] | None = None):
        self.paint, self.order = paint, order
        self.clip = None if order is None else ConstantScorer()
        self.calls: list[dict[str, Any]] = []

    def stream(self, captions: Sequence[str], config: SamplingConfig, **settings: Any) -> list[Result]:
        self.calls.append({"captions": list(captions), "config": config, **settings})
        candidates = config.candidates
        order = list(self.order or range(candidates))
        return [
            Result(
                caption,
                images=[self.paint(caption, candidate) for candidate in order],
                scores=None if self.order is None else [0.9 - 0.1 * place for place in range(candidates)],
                tokens=torch.zeros(candidates, 1, 1, dtype=torch.int64),
                candidates=order,
                num_sampled=candidates,
            )
            for caption in captions
        ]


def compute_metrics(pipeline: Any, source: Any, captions: int = 12, candidates: int = 2) -> dict[str, float]:
    config = SamplingConfig(candidates=candidates, keep=1, rerank="mixture", seed=7, batch_size=3)
    drawn = sample_for_source(pipeline, source, captions, config)
    metrics = caption_metrics(drawn, "val", pipeline.clip)
    return {name: value for name, value in metrics.items() if name not in FACTS}


FACTS = {f"judge_val_top_{fact}" for fact in ("objects", "colours", "shapes", "sizes", "relation", "count")}


def shares(top: float, first: float, mean: float, any: float) -> dict[str, float]:
    named = {"top": top, "first": first, "mean": mean, "any": any}
    return {f"judge_val_{name}": pytest.approx(share) for name, share in named.items()}


def correct_images(source: BlocksSource) -> dict[str, Image.Image]:
    return {source[index].captions[0]: source[index].image for index in range(len(source))}


def test_correct_images_have_accuracy_1(val):
    pictures = correct_images(val)
    metrics = compute_metrics(FakePipeline(lambda caption, _: pictures[caption]), val)
    assert metrics == shares(top=1, first=1, mean=1, any=1)


def test_wrong_images_have_accuracy_0(val):
    metrics = compute_metrics(FakePipeline(lambda *_: BLANK), val)
    assert metrics == shares(top=0, first=0, mean=0, any=0)


def test_top_is_the_best_candidate_and_first_is_candidate_0(val):
    pictures = correct_images(val)
    right_if_second = FakePipeline(
        lambda caption, candidate: pictures[caption] if candidate == 1 else BLANK, order=[1, 0]
    )
    metrics = compute_metrics(right_if_second, val)
    assert metrics == {"clip_val_top": pytest.approx(0.5), **shares(top=1, first=0, mean=1 / 2, any=1)}


def test_without_a_scorer_first_is_top(val):
    pictures = correct_images(val)
    pipeline = FakePipeline(lambda caption, candidate: pictures[caption] if candidate == 0 else BLANK)
    assert compute_metrics(pipeline, val) == shares(top=1, first=1, mean=1 / 2, any=1)


def test_all_candidates_count_for_mean_and_any(val):
    pictures = correct_images(val)
    correct = FakePipeline(
        lambda caption, candidate: pictures[caption] if candidate == 2 else BLANK, order=[1, 2, 0, 3]
    )
    metrics = compute_metrics(correct, val, candidates=4)
    assert metrics == {"clip_val_top": pytest.approx(0.5), **shares(top=0, first=0, mean=1 / 4, any=1)}


def test_accuracy_is_a_share_of_captions(val):
    pictures = correct_images(val)
    correct = set(list(pictures)[:3])
    metrics = compute_metrics(FakePipeline(lambda caption, _: pictures[caption] if caption in correct else BLANK), val)
    assert metrics["judge_val_top"] == pytest.approx(3 / 12)


def test_first_captions_are_sampled_with_the_config(val):
    pipeline = FakePipeline(lambda *_: BLANK)
    compute_metrics(pipeline, val, captions=5, candidates=4)
    (call,) = pipeline.calls
    assert call["captions"] == [val[index].captions[0] for index in range(5)]
    assert call["config"] == SamplingConfig(candidates=4, keep=4, rerank="mixture", seed=7, batch_size=3)


def test_number_of_captions_is_limited_by_the_source(val):
    pipeline = FakePipeline(lambda *_: BLANK)
    compute_metrics(pipeline, val, captions=500)
    assert len(pipeline.calls[0]["captions"]) == 12


def test_accuracy_per_fact_of_the_best_candidates(val):
    """The best candidates have other colours but are correct otherwise."""
    others = dict(zip(COLOURS, [*list(COLOURS)[1:], *list(COLOURS)[:1]], strict=True))
    recoloured = {}
    for index in range(12):
        scene = val.scene(index)
        pieces = tuple(piece._replace(colour=others[piece.colour]) for piece in scene.objects)
        recoloured[val[index].captions[0]] = draw(Scene(pieces, scene.statement), 64)
    pictures = correct_images(val)  # of candidate 1
    pipeline: Any = FakePipeline(
        lambda caption, candidate: (pictures if candidate else recoloured)[caption], order=[0, 1]
    )
    metrics = caption_metrics(sample_for_source(pipeline, val, 12, SamplingConfig(candidates=2, keep=1)), "val", None)
    assert metrics["judge_val_top"] == metrics["judge_val_top_colours"] == 0
    assert {metrics[f"judge_val_top_{fact}"] for fact in ("objects", "sizes", "count")} == {1}
    assert metrics.keys() >= FACTS


@pytest.fixture
def folder(tmp_path) -> FolderSource:
    """Folder of images: one is damaged, and one has a caption that is too long."""
    for number in range(6):
        Image.new("RGB", (9, 9), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"square {number}" + " and so on" * (30 * (number == 2)))
    source = FolderSource(FolderConfig(path=str(tmp_path), image_size=8, validation_share=0.9), "val")
    Path(tmp_path, source.keys()[1]).write_bytes(b"no picture")
    return source


def test_other_data_have_clip_scores_only(folder):
    assert compute_metrics(FakePipeline(lambda *_: BLANK, order=[0, 1]), folder) == {"clip_val_top": pytest.approx(0.5)}
    assert compute_metrics(FakePipeline(lambda *_: BLANK), folder) == {}


def test_unreadable_records_are_skipped(folder):
    captions = first_captions(folder, 99)
    assert len(captions) == len(folder) - 1 > 2
    assert captions[0] == folder[0].captions[0]
    assert captions[1:] == [folder[index].captions[0] for index in range(2, len(folder))]
    assert first_captions(folder, 2) == captions[:2]


def test_long_captions_are_truncated(checkpoints, folder):
    dalle = DALLE.load(checkpoints)
    captions = first_captions(folder, 99)
    assert any(len(dalle.tokenizer.encode(caption)) > 31 for caption in captions)
    config = SamplingConfig(candidates=2, keep=1, seed=1)
    (score,) = caption_metrics(sample_for_source(dalle, folder, 99, config), "val", dalle.clip).values()
    results = dalle.generate_many(captions, config, truncate=True)
    assert score == pytest.approx(sum(result.scores[0] for result in results) / len(captions), abs=1e-5)


def test_clip_score_is_of_the_best_candidate_by_any_ranking(checkpoints, val):
    dalle, config = DALLE.load(checkpoints), SamplingConfig(candidates=4, keep=1, rerank="image_likelihood")
    metrics = caption_metrics(sample_for_source(dalle, val, 3, config), "val", dalle.clip)
    results = dalle.generate_many(first_captions(val, 3), config, truncate=True)
    scores = [dalle.clip.score(result.images, [result.caption]).item() for result in results]
    assert metrics["clip_val_top"] == pytest.approx(sum(scores) / 3, abs=1e-5)


def test_caption_qualities_are_judge_and_scorers(val):
    captions, pictures = first_captions(val, 4), correct_images(val)
    pipeline: Any = FakePipeline(lambda *_: BLANK, order=[0])
    qualities = caption_qualities(val, captions, {"clip": pipeline.clip})
    assert list(qualities) == ["judge", "clip"]
    for number, caption in enumerate(captions):
        assert qualities["judge"](number, [BLANK, pictures[caption], BLANK]).tolist() == [0, 1, 0]
        assert qualities["clip"](number, [BLANK, BLANK]).tolist() == [0.5, 0.5]


def test_other_data_without_scorers_have_no_qualities(folder):
    assert caption_qualities(folder, ["a"]) == {}
