"""How well drawn pictures fit held-out captions: by CLIP for any data, by the judge for `blocks`."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from PIL import Image

from dalle.data.blocks import BlocksSource, Statement
from dalle.data.loader import ordered
from dalle.data.source import Source
from dalle.data.transforms import inference_crop
from dalle.evaluation.blocks_judge import judge
from dalle.sampling.pipeline import DALLE


class Drawn(NamedTuple):
    """What was drawn for one caption."""

    caption: str
    first: Image.Image  # candidate 0, as if nothing had reranked
    best: Image.Image  # the candidate that CLIP ranks first; `first` without a CLIP
    score: float | None  # its CLIP score


def draw(dalle: DALLE, captions: Sequence[str], candidates: int, seed: int, batch_size: int) -> list[Drawn]:
    """Draw `candidates` pictures for each caption, cut where it is too long, and rank them."""
    results = dalle.generate_many(
        captions, candidates, keep=candidates, seed=seed, batch_size=batch_size, truncate=True
    )
    return [
        Drawn(
            result.caption,
            result.images[result.candidates.index(0)],
            result.images[0],
            result.scores[0] if result.scores else None,
        )
        for result in results
    ]


def caption_metrics(
    dalle: DALLE, source: Source, split: str, captions: int, candidates: int, seed: int, batch_size: int
) -> dict[str, float]:
    """Metrics of pictures drawn for the first `captions` captions of `source`, the held-out data's `split`.

    `clip_{split}_top` is the mean CLIP score of the best candidates (own CLIP; comparable within a run only). For
    `blocks` also `judge_{split}_top` and `judge_{split}_first`: the share of captions of which every fact holds, in
    the best and in the first of the candidates.
    """
    drawn = draw(dalle, first_captions(source, captions), candidates, seed, batch_size)
    metrics: dict[str, float] = {}
    scores = [each.score for each in drawn if each.score is not None]
    if scores:
        metrics[f"clip_{split}_top"] = sum(scores) / len(scores)
    if isinstance(source, BlocksSource):
        statements = [source.scene(index).statement for index in range(len(drawn))]
        metrics[f"judge_{split}_top"] = share_held([each.best for each in drawn], statements)
        metrics[f"judge_{split}_first"] = share_held([each.first for each in drawn], statements)
    return metrics


def first_captions(source: Source, count: int) -> list[str]:
    """The first caption of each of the first `count` records that can be read; fewer, where there are fewer."""
    every = (caption for batch in ordered(source, inference_crop, min(count, 64)) for caption in batch.captions)
    return list(islice(every, count))


def share_held(images: Sequence[Image.Image], statements: Sequence[Statement]) -> float:
    """The share of pictures in which every fact of their statement holds."""
    held = [judge(image, statement).holds for image, statement in zip(images, statements, strict=True)]
    return sum(held) / len(held)
