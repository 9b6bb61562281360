"""Best-of-n curves: expected quality of the best of n candidates, estimated from one set of candidates per caption.

Of m candidates ranked best first, candidate r is the best of a random subset of n if it is in the subset and none
before it is: in C(m - r, n - 1) of C(m, n) subsets. The mean quality weighted by these probabilities is the expected
quality of the best of n, without bias and with less variance than a single subset. If the quality is 0 or 1 and is also
the ranking, this is the estimator of pass@k (Chen et al. 2021).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import comb, fsum
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dalle.sampling.pipeline import DALLE
from dalle.sampling.sampling_config import SamplingConfig

Quality = Callable[[int, list[Image.Image]], Tensor]
"""Caption index and m images sampled for it -> (m,) floats, higher is better."""

PERFECT = "perfect"  # ranking by the quality itself: upper bound for any reranker of the same candidates


class ScoredCandidates(NamedTuple):
    """One caption's m candidates: their scores and qualities, and the best images of subsets."""

    rankings: dict[str, Tensor]  # (m,) scores by name; the last are those that the reranker ranks by
    qualities: dict[str, Tensor]  # (m,) by name
    best_images: list[Image.Image]  # by size n: the best of the first n candidates


@dataclass(frozen=True)
class BestOfNCurve:
    """One curve: the expected quality of the best of n candidates, chosen by one ranking, for several n."""

    quality: str  # name of the quality
    ranking: str  # name of the ranking that selects the best
    means: list[float]  # means over captions
    errors: list[float]  # standard errors of the means, over captions


@dataclass(frozen=True)
class BestOfNCurves:
    """All best-of-n curves of one evaluation: one for each quality and ranking."""

    captions: int
    reranker: str  # the ranking of the config; the others are its components and the upper bound
    sizes: list[int]  # numbers of candidates
    curves: list[BestOfNCurve]
    best_images: dict[int, list[Image.Image]] = field(default_factory=dict)  # by size n: best of each caption's first n

    def numbers(self, split: str) -> dict[str, float]:
        """Return the means of the config's ranking, by names such as judge_val_best_of_16."""
        return {
            f"{curve.quality}_{split}_best_of_{size}": mean
            for curve in self.curves
            if curve.ranking == self.reranker
            for size, mean in zip(self.sizes, curve.means, strict=True)
        }

    def table(self) -> str:
        """Return a Markdown table with a row for each curve and a column for each number of candidates."""
        cells = [["quality", "ranked by", *map(str, self.sizes)], ["---", "---", *["---:"] * len(self.sizes)]]
        for curve in self.curves:
            values = zip(curve.means, curve.errors, strict=True)
            cells.append([curve.quality, curve.ranking, *(f"{mean:.3f} ± {error:.3f}" for mean, error in values)])
        return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def best_of_n_curves(
    dalle: DALLE, captions: Sequence[str], qualities: dict[str, Quality], config: SamplingConfig
) -> BestOfNCurves:
    """Compute curves of the best of 1, 2, 4, ..., `config.candidates` images for each caption, sampled once.

    For each quality there is a curve for each score of `config.rerank`, for their mixture if there are several, and for
    the perfect ranking. A mixture standardises over all candidates at any size.
    """
    sizes = powers_of_two(config.candidates)
    scored = list(scored_candidates(dalle, captions, sizes, qualities, config))
    curves = []
    for quality in qualities:
        values = torch.stack([candidates.qualities[quality] for candidates in scored])  # (captions, m)
        rankings = {
            name: torch.stack([candidates.rankings[name] for candidates in scored]) for name in scored[0].rankings
        }
        for ranking, scores in (rankings | {PERFECT: values}).items():
            best_values = torch.stack([best_of_n(values, scores, size) for size in sizes])  # (sizes, captions)
            errors = best_values.std(dim=1, correction=0) / max(1, len(scored) - 1) ** 0.5
            curves.append(BestOfNCurve(quality, ranking, best_values.mean(dim=1).tolist(), errors.tolist()))
    reranker = [PERFECT, *scored[0].rankings][-1]
    best_images = {size: [candidates.best_images[index] for candidates in scored] for index, size in enumerate(sizes)}
    return BestOfNCurves(len(scored), reranker, sizes, curves, best_images)


def powers_of_two(candidates: int) -> list[int]:
    """Return 1, 2, 4, ..., and finally `candidates` itself."""
    return [*(1 << power for power in range((candidates - 1).bit_length())), candidates]


def best_of_n(quality: Tensor, scores: Tensor, size: int) -> Tensor:
    """Compute the expected quality of the best by score of `size` of m candidates: (b, m), (b, m) -> (b,) float64.

    Ties are resolved to the first candidate.
    """
    num_candidates = scores.shape[1]
    weights = [
        comb(num_candidates - rank, size - 1) / comb(num_candidates, size) for rank in range(1, num_candidates + 1)
    ]
    ranking = scores.argsort(dim=1, descending=True, stable=True)
    return quality.double().gather(1, ranking) @ (torch.tensor(weights, dtype=torch.float64) / fsum(weights))


def scored_candidates(
    dalle: DALLE,
    captions: Sequence[str],
    sizes: Sequence[int],
    qualities: dict[str, Quality],
    config: SamplingConfig,
) -> Iterator[ScoredCandidates]:
    """Sample and score the candidates of each caption. Only the best images of each size are kept.

    The captions' candidates have different numbers and so different noise: images of a set do not resemble each other.
    """
    offsets = [index * config.candidates for index in range(len(captions))]
    results = dalle.stream(captions, replace(config, keep=config.candidates), candidate_offset=offsets, truncate=True)
    for index, result in enumerate(results):
        rankings = {name: torch.tensor(scores) for name, scores in result.scores_by_name.items()}
        numbers = [candidate - offsets[index] for candidate in result.candidates]
        ranked = list(zip(numbers, result.images, strict=True))  # best first
        best_images = [next(image for number, image in ranked if number < size) for size in sizes]
        values = {name: quality(index, result.images) for name, quality in qualities.items()}
        yield ScoredCandidates(rankings, values, best_images)
