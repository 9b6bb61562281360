"""Distances between sets of sampled and real images: Frechet distance, KID and Inception score, by torchmetrics.

Images pass through the network once, and only features are kept: sums for the Frechet distance, the features themselves
for the other two (30,000 images: 150 to 250 MB a set).
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dalle.evaluation.features import Features, Seen
from dalle.seeds import seed_global_generators

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

SUBSETS, SUBSET_SIZE = 100, 1000  # subsets that KID is averaged over, and their size; the usual values
FEWEST = 4  # images of each kind, for KID's subsets of two
SPLITS = 10  # splits that the Inception score is averaged over, as published (Salimans et al. 2016)
ABOUT = (
    "`{frechet}` is the Frechet distance and `{kid}` the squared maximum mean discrepancy (its mean over {subsets} "
    "subsets, `{kid}_spread` their standard deviation) of drawn pictures from real ones, lower being better; "
    "`{inception_score}` says how surely and how variedly a classifier names drawn pictures, higher being better. All "
    "in the features of {name}."
)


class Distances:
    """Collect features of real and sampled images, then compute the metrics."""

    def __init__(self, features: Features, seed: int):
        # imported on first use: torchmetrics takes seconds to import, and other metrics do not need it
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore
        from torchmetrics.image.kid import KernelInceptionDistance

        self.features, self.seed = features, seed
        self.counts = {"real": 0, "drawn": 0}
        given = _Given(features.width)
        self.frechet: FrechetInceptionDistance = FrechetInceptionDistance(given)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns that features are kept
            self.inception_score: InceptionScore = InceptionScore(given, splits=SPLITS)
            self.kid: KernelInceptionDistance = KernelInceptionDistance(given, subsets=SUBSETS)

    def add(self, seen: Seen, real: bool) -> None:
        """Add the network's output for a batch of images."""
        self.counts["real" if real else "drawn"] += len(seen.features)
        self.frechet.update(seen.features, real=real)
        self.kid.update(seen.features, real=real)
        if not real:
            self.inception_score.update(seen.logits)

    def compute(self) -> tuple[dict[str, float], list[str]]:
        """Return the metrics by name, see `ABOUT`, and notes on those that need more images."""
        names, fewest = self.features, min(self.counts.values())
        numbers: dict[str, float] = {}
        notes = []
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            seed_global_generators(
                "metric subsets", self.seed
            )  # torchmetrics draws subsets and splits from the global generator
            if fewest > self.features.width:
                numbers[names.frechet] = self.frechet.compute().item()
            else:
                notes.append(too_few(self.features, fewest))
            if fewest < FEWEST:
                notes.append(f"No {names.kid}: it takes {FEWEST} pictures of each kind, and there are {fewest}.")
            else:
                self.kid.subset_size = self.subset_size
                mean, spread = self.kid.compute()
                numbers |= {names.kid: mean.item(), f"{names.kid}_spread": spread.item()}
            if self.counts["drawn"] >= SPLITS * 2:
                mean, spread = self.inception_score.compute()
                numbers |= {names.inception_score: mean.item(), f"{names.inception_score}_spread": spread.item()}
            else:
                notes.append(f"No {names.inception_score}: it takes {SPLITS * 2} drawn pictures.")
        return numbers, notes

    @property
    def subset_size(self) -> int:
        """Images of each set in a subset of KID: at most half of them, as larger subsets would hardly differ."""
        return min(SUBSET_SIZE, min(self.counts.values()) // 2)

    def described(self) -> dict[str, Any]:
        return {
            **self.features.described(),
            **{f"{name}_pictures": count for name, count in self.counts.items()},
            "kid": {"subsets": SUBSETS, "subset_size": self.subset_size, "kernel": "(x.y / width + 1)^3"},
            "inception_score": {"splits": SPLITS},
            "seed": self.seed,
            "torchmetrics": version("torchmetrics"),
        }


class _Given(nn.Module):
    """Identity in place of torchmetrics' own network, as the features were computed once for all three metrics."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def about(features: Features) -> str:
    """Description of the metrics, by their names for these features."""
    return ABOUT.format(
        frechet=features.frechet,
        kid=features.kid,
        inception_score=features.inception_score,
        name=features.name,
        subsets=SUBSETS,
    )


def too_few(features: Features, pictures: int) -> str:
    """Note on a missing Frechet distance: the reason, and what to use instead."""
    return (
        f"No {features.frechet}: the covariance of {features.width:,} features takes more than {features.width:,} "
        f"pictures on either side, and there are {pictures:,}. Of fewer it has no full rank, and the distance tells "
        f"their number rather than their quality. Look at {features.kid} instead, whose expectation does not depend on "
        "the number of pictures, or draw more with samples=."
    )
