"""Pictures drawn for captions, and how well they fit: by CLIP for any data, by the judge for `blocks`."""

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
from dalle.data.loader import ordered
from dalle.data.source import Source
from dalle.data.transforms import inference_crop
from dalle.evaluation.judges.blocks_judge import Verdict, judge
from dalle.evaluation.metrics.best_of import Quality
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer
from dalle.sampling.sampling_config import SamplingConfig


class Drawn(NamedTuple):
    """Pictures drawn for one caption: two of them, and what the judge says of all."""

    caption: str
    first: Image.Image  # candidate 0, as if nothing had reranked
    best: Image.Image  # the favourite; `first` where nothing ranks them
    verdicts: list[Verdict]  # of all candidates, best first; none for data whose facts are not known
    place: int  # of candidate 0 among them


def draw(dalle: DALLE, source: Source, captions: int, config: SamplingConfig) -> list[Drawn]:
    """Draw for the first `captions` captions of `source`. Captions too long are cut."""
    texts = first_captions(source, captions)
    statements = []
    if isinstance(source, BlocksSource):
        statements = [source.scene(number).statement for number in range(len(texts))]
    return draw_stated(dalle, texts, statements, config)


def draw_stated(
    dalle: DALLE, captions: Sequence[str], statements: Sequence[Statement], config: SamplingConfig
) -> list[Drawn]:
    """Draw for `captions`, cut where they are too long; the judge is told their `statements`, if they are known."""
    results = dalle.stream(captions, replace(config, keep=config.candidates), truncate=True)
    drawn = []
    for number, result in enumerate(results):
        verdicts = [judge(image, statements[number]) for image in result.images] if statements else []
        place = result.candidates.index(0)
        drawn.append(Drawn(result.caption, result.images[place], result.images[0], verdicts, place))
    return drawn


def rightness(drawn: Sequence[Drawn]) -> dict[str, list[float]]:
    """For each caption whether every fact holds, 0 or 1: in the favourite (`top`), in candidate 0 (`first`), and in
    any candidate, which no choice exceeds (`any`); and the share of all candidates in which it does (`mean`)."""
    right = [[verdict.holds for verdict in each.verdicts] for each in drawn]
    return {
        "top": [float(row[0]) for row in right],
        "first": [float(row[each.place]) for row, each in zip(right, drawn, strict=True)],
        "mean": [mean(row) for row in right],
        "any": [float(any(row)) for row in right],
    }


def caption_metrics(drawn: Sequence[Drawn], split: str, clip: Scorer | None) -> dict[str, float]:
    """Metrics of what was drawn for captions of the held-out data's `split`.

    `clip_{split}_top` is the mean CLIP score of the favourites (own CLIP; comparable within a run only). For `blocks`
    also the share of captions of which every fact holds in the favourite, `judge_{split}_top`, in candidate 0, as if
    nothing had reranked, `judge_{split}_first`, and in any candidate, `judge_{split}_any`, which no choice exceeds; and
    the share of all candidates in which every fact holds, `judge_{split}_mean`. Fact by fact, such as
    `judge_{split}_top_colours`, the share of favourites in which that one holds.
    """
    metrics: dict[str, float] = {}
    if clip is not None:
        # (n, n): each with all captions
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
    """Qualities that `rerank_curve` measures for these first captions of `source`: the judge's, where it knows facts.

    scorers: others, by name. One that also chooses, or that the chooser learned from, would rise by construction.
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
    """The first caption of each of the first `count` records that can be read; fewer, where there are fewer."""
    every = (caption for batch in ordered(source, inference_crop, min(count, 64)) for caption in batch.captions)
    return list(islice(every, count))
