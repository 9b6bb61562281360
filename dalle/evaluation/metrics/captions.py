"""Image-text agreement of samples: CLIP score for any data, accuracy by the judge for `blocks`."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from statistics import mean
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dalle.data.blocks import BlocksSource
from dalle.data.blocks_world import Statement
from dalle.data.loader import ordered_batches
from dalle.data.source import Source
from dalle.data.transforms import inference_crop
from dalle.evaluation.judges.blocks_judge import Verdict, judge
from dalle.evaluation.metrics.best_of import Quality
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer
from dalle.sampling.sampling_config import SamplingConfig


class Drawn(NamedTuple):
    """Samples for one caption: two images, and the judge's verdicts on all candidates."""

    caption: str
    first: Image.Image  # candidate 0, as without reranking
    best: Image.Image  # the candidate that ranks first; `first` without a reranker
    verdicts: list[Verdict]  # of all candidates, best first; empty for data without a judge
    place: int  # index of candidate 0 in the ranking


def draw(dalle: DALLE, source: Source, captions: int, config: SamplingConfig) -> list[Drawn]:
    """Sample images for the first `captions` captions of `source`. Captions that are too long are cut."""
    texts = first_captions(source, captions)
    statements = []
    if isinstance(source, BlocksSource):
        statements = [source.scene(number).statement for number in range(len(texts))]
    return draw_stated(dalle, texts, statements, config)


def draw_stated(
    dalle: DALLE, captions: Sequence[str], statements: Sequence[Statement], config: SamplingConfig
) -> list[Drawn]:
    """Sample images for `captions`, cut if too long, and judge them by their `statements`, if there are any."""
    results = dalle.stream(captions, replace(config, keep=config.candidates), truncate=True)
    drawn = []
    for number, result in enumerate(results):
        verdicts = [judge(image, statements[number]) for image in result.images] if statements else []
        place = result.candidates.index(0)
        drawn.append(Drawn(result.caption, result.images[place], result.images[0], verdicts, place))
    return drawn


def rightness(drawn: Sequence[Drawn]) -> dict[str, list[float]]:
    """Accuracy of each caption: 1 if every fact holds, else 0.

    `top` is of the candidate that ranks first, `first` of candidate 0, `any` of any candidate, an upper bound for all
    rankings, and `mean` is the share of candidates in which every fact holds.
    """
    right = [[verdict.holds for verdict in each.verdicts] for each in drawn]
    return {
        "top": [float(row[0]) for row in right],
        "first": [float(row[each.place]) for row, each in zip(right, drawn, strict=True)],
        "mean": [mean(row) for row in right],
        "any": [float(any(row)) for row in right],
    }


def caption_metrics(drawn: Sequence[Drawn], split: str, clip: Scorer | None) -> dict[str, float]:
    """Metrics of the images sampled for captions of the held-out data's `split`.

    `clip_{split}_top` is the mean CLIP score of the best candidates (by the run's own CLIP, so comparable within a run
    only). For `blocks` also the share of captions with every fact true: `judge_{split}_top` in the best candidate,
    `judge_{split}_first` in candidate 0, as without reranking, and `judge_{split}_any` in any candidate, an upper
    bound; `judge_{split}_mean` is the share of all candidates with every fact true. Names such as
    `judge_{split}_top_colours` are the share of best candidates in which one fact holds.
    """
    metrics: dict[str, float] = {}
    if clip is not None:
        # (n, n): each image with all captions
        scores = clip.score([each.best for each in drawn], [each.caption for each in drawn])
        metrics[f"clip_{split}_top"] = scores.diagonal().mean().item()
    if drawn[0].verdicts:
        metrics |= {f"judge_{split}_{which}": mean(shares) for which, shares in rightness(drawn).items()}
        for fact in (each.name for each in fields(Verdict)):
            metrics[f"judge_{split}_top_{fact}"] = mean(getattr(each.verdicts[0], fact) for each in drawn)
    return metrics


def caption_qualities(
    source: Source, captions: Sequence[str], scorers: Mapping[str, Scorer] | None = None
) -> dict[str, Quality]:
    """Qualities for `rerank_curve` of these first captions of `source`: the judge's for `blocks`, and `scorers`.

    scorers: by name. A scorer that also ranks, or that the ranking model was trained with, would rise by construction.
    """
    qualities: dict[str, Quality] = {}
    if isinstance(source, BlocksSource):
        statements = [source.scene(number).statement for number in range(len(captions))]
        qualities["judge"] = lambda number, images: torch.tensor(
            [float(judge(image, statements[number]).holds) for image in images]
        )
    for name, scorer in (scorers or {}).items():
        qualities[name] = partial(_scored, scorer, captions)
    return qualities


def _scored(scorer: Scorer, captions: Sequence[str], number: int, images: list[Image.Image]) -> Tensor:
    return scorer.score(images, [captions[number]])[:, 0]


def first_captions(source: Source, count: int) -> list[str]:
    """Return the first caption of each of the first `count` readable records; fewer if there are fewer."""
    every = (caption for batch in ordered_batches(source, inference_crop, min(count, 64)) for caption in batch.captions)
    return list(islice(every, count))
