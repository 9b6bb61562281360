"""Image-text agreement of samples: CLIP score for any data, accuracy by the judge for `blocks`."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from statistics import mean
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dalle.data.blocks import BlocksSource
from dalle.data.blocks_scene import Statement
from dalle.data.loader import first_batches
from dalle.data.source import Source
from dalle.evaluation.held_out import captions_of
from dalle.evaluation.judges.blocks_judge import Verdict, judge
from dalle.evaluation.metrics.best_of_n import Quality
from dalle.sampling.pipeline import DALLE
from dalle.sampling.rerank import Scorer
from dalle.sampling.sampling_config import SamplingConfig


class CaptionSamples(NamedTuple):
    """Images sampled for one caption: two of its candidates, and the judge's verdicts on all of them."""

    caption: str
    first: Image.Image  # candidate 0, as without reranking
    best: Image.Image  # the candidate that ranks first; `first` without a reranker
    verdicts: list[Verdict]  # of all candidates, best first; empty for data without a judge
    first_rank: int  # rank of candidate 0, from 0


def sample_for_source(dalle: DALLE, source: Source, captions: int, config: SamplingConfig) -> list[CaptionSamples]:
    """Sample images for the first `captions` captions of `source`. Captions that are too long are truncated."""
    texts = first_captions(source, captions)
    statements = []
    if isinstance(source, BlocksSource):
        statements = [source.scene(index).statement for index in range(len(texts))]
    return sample_and_judge(dalle, texts, statements, config)


def sample_and_judge(
    dalle: DALLE, captions: Sequence[str], statements: Sequence[Statement], config: SamplingConfig
) -> list[CaptionSamples]:
    """Sample images for `captions`, truncated if too long, and judge them by their `statements`, if there are any."""
    results = dalle.stream(captions, replace(config, keep=config.candidates), truncate=True)
    samples = []
    for index, result in enumerate(results):
        verdicts = [judge(image, statements[index]) for image in result.images] if statements else []
        rank = result.candidates.index(0)
        samples.append(CaptionSamples(result.caption, result.images[rank], result.images[0], verdicts, rank))
    return samples


def accuracies(samples: Sequence[CaptionSamples]) -> dict[str, list[float]]:
    """Return the accuracy of each caption, 1 if every fact holds, else 0, in four ways: `top`, `first`, `any`, `mean`.

    `top` is of the candidate that ranks first, `first` of candidate 0, `any` of any candidate, an upper bound for all
    rankings, and `mean` is the share of candidates in which every fact holds.
    """
    correct = [[verdict.holds for verdict in sample.verdicts] for sample in samples]
    return {
        "top": [float(row[0]) for row in correct],
        "first": [float(row[sample.first_rank]) for row, sample in zip(correct, samples, strict=True)],
        "mean": [mean(row) for row in correct],
        "any": [float(any(row)) for row in correct],
    }


def caption_metrics(samples: Sequence[CaptionSamples], split: str, clip: Scorer | None) -> dict[str, float]:
    """Return metrics of the images sampled for captions of the held-out data's `split`, by name.

    `clip_{split}_top` is the mean CLIP score of the best candidates (by the run's own CLIP, so comparable within a run
    only). For `blocks` also the share of captions with every fact true: `judge_{split}_top` in the best candidate,
    `judge_{split}_first` in candidate 0, as without reranking, and `judge_{split}_any` in any candidate, an upper
    bound; `judge_{split}_mean` is the share of all candidates with every fact true. Names such as
    `judge_{split}_top_colours` are the share of best candidates in which one fact holds.
    """
    metrics: dict[str, float] = {}
    if clip is not None:
        # (n, n): each image with all captions
        scores = clip.score([sample.best for sample in samples], [sample.caption for sample in samples])
        metrics[f"clip_{split}_top"] = scores.diagonal().mean().item()
    if samples[0].verdicts:
        metrics |= {f"judge_{split}_{statistic}": mean(values) for statistic, values in accuracies(samples).items()}
        for fact in (field.name for field in fields(Verdict)):
            metrics[f"judge_{split}_top_{fact}"] = mean(getattr(sample.verdicts[0], fact) for sample in samples)
    return metrics


def caption_qualities(
    source: Source, captions: Sequence[str], scorers: Mapping[str, Scorer] | None = None
) -> dict[str, Quality]:
    """Return, by name, qualities for `best_of_n_curves`: of the judge for `blocks`, and of `scorers`.

    captions: the first captions of `source`. scorers: by name.
    The score of a scorer that also ranks would rise with the number of candidates by construction.
    """
    qualities: dict[str, Quality] = {}
    if isinstance(source, BlocksSource):
        statements = [source.scene(index).statement for index in range(len(captions))]
        qualities["judge"] = lambda index, images: torch.tensor(
            [float(judge(image, statements[index]).holds) for image in images]
        )
    for name, scorer in (scorers or {}).items():
        qualities[name] = partial(_score, scorer, captions)
    return qualities


def _score(scorer: Scorer, captions: Sequence[str], index: int, images: list[Image.Image]) -> Tensor:
    return scorer.score(images, [captions[index]])[:, 0]


def first_captions(source: Source, count: int) -> list[str]:
    """Return the first caption of each of the first `count` readable records; fewer if there are fewer.

    Raises ValueError for a record without a caption.
    """
    return [caption for batch in first_batches(source, count, batch_size=64) for caption in captions_of(batch)]
