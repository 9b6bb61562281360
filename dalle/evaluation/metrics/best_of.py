"""Best-of-n curves: expected quality of the best of n candidates, estimated from one set of candidates per caption.

Of M candidates ranked best first, candidate r is the best of a random N of them if it is among these and none before it
is: in C(M - r, N - 1) of C(M, N) choices. The qualities weighted with these shares sum to the expected quality of the
best of N, without bias and with less variance than a single choice of N. If quality is 0 or 1 and also the ranking,
this is the estimator of pass@k (Chen et al. 2021).
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
"""Caption index and m images sampled for it -> (m,) floats, higher is better."""

PERFECT = "perfect"  # ranking by the quality itself: upper bound for any reranker of the same candidates


class Judged(NamedTuple):
    """Scores and best candidates of one caption's m candidates."""

    rankings: dict[str, Tensor]  # (m,) scores by name; the last are those that the reranker ranks by
    qualities: dict[str, Tensor]  # (m,) by name
    favourites: list[Image.Image]  # by size n: the best of the first n candidates


@dataclass(frozen=True)
class Curve:
    """Expected quality of the best of n candidates for several n."""

    quality: str  # name of the quality
    ranking: str  # name of the ranking that selects the best
    means: list[float]  # means over captions
    errors: list[float]  # standard errors of the means, over captions


@dataclass(frozen=True)
class RerankCurve:
    """All best-of-n curves of one evaluation."""

    captions: int
    chosen_by: str  # the ranking of the config; the others are its components and the upper bound
    sizes: list[int]  # numbers of candidates
    curves: list[Curve]
    favourites: dict[int, list[Image.Image]] = field(default_factory=dict)  # by size n: best of each caption's first n

    def numbers(self, split: str) -> dict[str, float]:
        """Numbers of the config's ranking, by names such as judge_val_best_of_16."""
        return {
            f"{curve.quality}_{split}_best_of_{size}": mean
            for curve in self.curves
            if curve.ranking == self.chosen_by
            for size, mean in zip(self.sizes, curve.means, strict=True)
        }

    def table(self) -> str:
        """Markdown table with a row for each curve and a column for each number of candidates."""
        cells = [["quality", "chosen by", *map(str, self.sizes)], ["---", "---", *["---:"] * len(self.sizes)]]
        for curve in self.curves:
            values = zip(curve.means, curve.errors, strict=True)
            cells.append([curve.quality, curve.ranking, *(f"{mean:.3f} ± {error:.3f}" for mean, error in values)])
        return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def rerank_curve(
    dalle: DALLE, captions: Sequence[str], qualities: dict[str, Quality], config: SamplingConfig
) -> RerankCurve:
    """Measure curves of the best of 1, 2, 4, ..., `config.candidates` images for each caption, sampled once.

    For each quality there is a curve for each score of `config.rerank`, for their mixture if there are several, and for
    the perfect ranking. A mixture standardises over all candidates at any size.
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
    """Return 1, 2, 4, ..., and finally `candidates` itself."""
    return [*(1 << power for power in range((candidates - 1).bit_length())), candidates]


def best_of(quality: Tensor, scores: Tensor, size: int) -> Tensor:
    """Expected quality of the highest score among `size` of m candidates: (b, m), (b, m) -> (b,) float64.

    Ties are resolved to the first candidate.
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
    """Sample and score the candidates of each caption. Only the best images of each size are kept."""
    results = dalle.stream(captions, replace(config, keep=config.candidates), truncate=True)
    for number, result in enumerate(results):
        rankings = {name: torch.tensor(scores) for name, scores in result.scores_by_name.items()}
        ranked = list(zip(result.candidates, result.images, strict=True))  # best first
        favourites = [next(image for candidate, image in ranked if candidate < size) for size in sizes]
        values = {name: quality(number, result.images) for name, quality in qualities.items()}
        yield Judged(rankings, values, favourites)
