"""Quality of the favourite against how many candidates it was chosen from, out of one set drawn for each caption.

Of M candidates ranked best first, number r is the favourite of a random N of them where it is among these and none
before it is: in C(M - r, N - 1) of C(M, N) choices. Weighted with these shares, the qualities add up to the expected
quality of the best of N: without bias, and with less noise than any one N of them (for a quality of right or wrong
ranked by itself this is the estimator of pass@k, Chen et al. 2021).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

Quality = Callable[[int, list[Image.Image]], Tensor]
"""A caption's number and m pictures drawn for it -> (m,) floats, higher is better."""

PERFECT = "perfect"  # the ranking by quality itself: no reranker gets more out of the same candidates


class Judged(NamedTuple):
    """Scores and favourites of one caption's m candidates."""

    rankings: dict[str, Tensor]  # (m,) scores by judge; the last are those that the choice is made by
    qualities: dict[str, Tensor]  # (m,) by name
    favourites: list[Image.Image]  # by size: of the candidates that were drawn first


@dataclass(frozen=True)
class Curve:
    """The expected quality of the best of each number of candidates."""

    quality: str  # what is measured
    ranking: str  # what the best is chosen by
    means: list[float]  # over captions
    errors: list[float]  # their standard errors: another draw of captions would differ by about this


@dataclass(frozen=True)
class RerankCurve:
    """All curves of one evaluation."""

    captions: int
    chosen_by: str  # the ranking that was asked for; the others show what it is made of, and what could be had
    sizes: list[int]  # numbers of candidates
    curves: list[Curve]
    favourites: dict[int, list[Image.Image]] = field(default_factory=dict)  # by size: each caption's among the first

    def numbers(self, split: str) -> dict[str, float]:
        """The curves of the choice that was asked for, by names such as judge_val_best_of_16."""
        return {
            f"{curve.quality}_{split}_best_of_{size}": mean
            for curve in self.curves
            if curve.ranking == self.chosen_by
            for size, mean in zip(self.sizes, curve.means, strict=True)
        }

    def table(self) -> str:
        """Markdown: a row for each curve, a column for each number of candidates."""
        cells = [["quality", "chosen by", *map(str, self.sizes)], ["---", "---", *["---:"] * len(self.sizes)]]
        for curve in self.curves:
            values = zip(curve.means, curve.errors, strict=True)
            cells.append([curve.quality, curve.ranking, *(f"{mean:.3f} ± {error:.3f}" for mean, error in values)])
        return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def rerank_curve(
    dalle: DALLE, captions: Sequence[str], qualities: dict[str, Quality], config: SamplingConfig
) -> RerankCurve:
    """Measure curves of 1, 2, 4, ... up to `config.candidates` pictures for each caption, which are drawn once.

    For each quality there is a curve for each judge of `config.rerank`, for their mixture where they are several, and
    for a perfect choice. A mixture standardises over all candidates at any size.
    """
    sizes = sizes_up_to(config.candidates)
    judged = list(judged_candidates(dalle, captions, sizes, qualities, config))
    curves = []
    for quality in qualities:
        values = torch.stack([each.qualities[quality] for each in judged])  # (captions, m)
        rankings = {name: torch.stack([each.rankings[name] for each in judged]) for name in judged[0].rankings}
        for ranking, scores in (rankings | {PERFECT: values}).items():
            best = torch.stack([best_of(values, scores, size) for size in sizes])  # (sizes, captions)
            errors = best.std(dim=1, correction=0) / max(1, len(judged) - 1) ** 0.5
            curves.append(Curve(quality, ranking, best.mean(dim=1).tolist(), errors.tolist()))
    chosen_by = [PERFECT, *judged[0].rankings][-1]
    favourites = {size: [each.favourites[place] for each in judged] for place, size in enumerate(sizes)}
    return RerankCurve(len(judged), chosen_by, sizes, curves, favourites)


def sizes_up_to(candidates: int) -> list[int]:
    """1, 2, 4, ..., and last `candidates` itself."""
    return [*(1 << power for power in range((candidates - 1).bit_length())), candidates]


def best_of(quality: Tensor, scores: Tensor, size: int) -> Tensor:
    """The expected quality of the highest score among `size` of m candidates: (b, m), (b, m) -> (b,) float64.

    Of equal scores the first is taken.
    """
    total = scores.shape[1]
    shares = [comb(total - rank, size - 1) / comb(total, size) for rank in range(1, total + 1)]
    order = scores.argsort(dim=1, descending=True, stable=True)
    return quality.double().gather(1, order) @ torch.tensor(shares, dtype=torch.float64)


def judged_candidates(
    dalle: DALLE,
    captions: Sequence[str],
    sizes: Sequence[int],
    qualities: dict[str, Quality],
    config: SamplingConfig,
) -> Iterator[Judged]:
    """Draw the candidates of each caption and judge them; only the favourites of each size are kept."""
    results = dalle.stream(captions, replace(config, keep=config.candidates), truncate=True)
    for number, result in enumerate(results):
        rankings = {name: torch.tensor(scores) for name, scores in result.scores_by_name.items()}
        ranked = list(zip(result.candidates, result.images, strict=True))  # best first
        favourites = [next(image for candidate, image in ranked if candidate < size) for size in sizes]
        values = {name: quality(number, result.images) for name, quality in qualities.items()}
        yield Judged(rankings, values, favourites)
