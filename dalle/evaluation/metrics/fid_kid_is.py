"""FID (Frechet distance), KID and Inception score of sampled images against real ones, by torchmetrics.

Images pass through the network once, and only features are kept: sums for the Frechet distance, the features themselves
for the other two (30,000 images: 150 to 250 MB a set).
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dalle.evaluation.features import FeatureNetwork, FeatureOutput
from dalle.seeds import seed_global_generators

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # subsets that KID is averaged over, and their size; the usual values
MIN_IMAGES = 4  # in each set, for KID's subsets of two
IS_SPLITS = 10  # most splits that the Inception score is averaged over, as published (Salimans et al. 2016)
IS_SPLIT_SIZE = 100  # fewest images of a split, unless there is a single one: the score is at most their number
IS_MIN_IMAGES = 20
DESCRIPTION = (
    "`{frechet}` is the Frechet distance between sampled and real images, and `{kid}` the squared maximum mean "
    "discrepancy (mean over {subsets} subsets, `{kid}_std` is their standard deviation); lower is better. "
    "`{inception_score}` is the Inception score of the sampled images; higher is better. All use the features of "
    "{name}."
)


class DistributionMetrics:
    """Accumulates features of real and sampled images, then computes Frechet distance, KID and Inception score."""

    def __init__(self, features: FeatureNetwork, seed: int):
        # imported on first use: torchmetrics takes seconds to import, and other metrics do not need it
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore
        from torchmetrics.image.kid import KernelInceptionDistance

        self.features, self.seed = features, seed
        self.counts = {"real": 0, "sampled": 0}
        identity = _Identity(features.width)
        self.frechet: FrechetInceptionDistance = FrechetInceptionDistance(identity)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns that features are kept
            self.inception_score: InceptionScore = InceptionScore(identity, splits=IS_SPLITS)
            self.kid: KernelInceptionDistance = KernelInceptionDistance(identity, subsets=KID_SUBSETS)

    def add(self, output: FeatureOutput, real: bool) -> None:
        """Add the network's output for a batch of images, which are real or sampled."""
        self.counts["real" if real else "sampled"] += len(output.features)
        self.frechet.update(output.features, real=real)
        self.kid.update(output.features, real=real)
        if not real:
            self.inception_score.update(output.logits)

    def compute(self) -> tuple[dict[str, float], list[str]]:
        """Return the metrics by name, see `DESCRIPTION`, and notes on those that need more images."""
        names, fewest = self.features, min(self.counts.values())
        numbers: dict[str, float] = {}
        notes = []
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # torchmetrics draws subsets and splits from the global generator
            seed_global_generators("metric subsets", self.seed)
            if fewest > self.features.width:
                numbers[names.frechet] = self.frechet.compute().item()
            else:
                notes.append(too_few_note(self.features, fewest))
            if fewest < MIN_IMAGES:
                notes.append(f"No {names.kid}: it needs {MIN_IMAGES} images in each set, but there are {fewest}.")
            else:
                self.kid.subset_size = self.subset_size
                mean, std = self.kid.compute()
                numbers |= {names.kid: mean.item(), f"{names.kid}_std": std.item()}
            if self.counts["sampled"] >= IS_MIN_IMAGES:
                self.inception_score.splits = self.splits
                mean, std = self.inception_score.compute()
                numbers[names.inception_score] = mean.item()
                if self.splits > 1:
                    numbers[f"{names.inception_score}_std"] = std.item()
                if self.splits < IS_SPLITS:
                    notes.append(few_splits_note(names.inception_score, self.splits, self.counts["sampled"]))
            else:
                notes.append(f"No {names.inception_score}: it needs {IS_MIN_IMAGES} sampled images.")
        return numbers, notes

    @property
    def splits(self) -> int:
        """Number of splits of the sampled images for the Inception score."""
        return max(1, min(IS_SPLITS, self.counts["sampled"] // IS_SPLIT_SIZE))

    @property
    def subset_size(self) -> int:
        """Number of real images, and of sampled ones, in a subset of KID: at most half, so that subsets differ."""
        return min(KID_SUBSET_SIZE, min(self.counts.values()) // 2)

    def settings(self) -> dict[str, Any]:
        """Return, for metrics.json, the settings of the metrics and the numbers of real and sampled images."""
        return {
            **self.features.settings(),
            **{f"{name}_images": count for name, count in self.counts.items()},
            "kid": {"subsets": KID_SUBSETS, "subset_size": self.subset_size, "kernel": "(x.y / width + 1)^3"},
            "inception_score": {"splits": self.splits},
            "seed": self.seed,
            "torchmetrics": version("torchmetrics"),
        }


class _Identity(nn.Module):
    """Identity in place of torchmetrics' own network, as the features were computed once for all three metrics."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def describe(features: FeatureNetwork) -> str:
    """Return a description of the metrics, by their names for these features."""
    return DESCRIPTION.format(
        frechet=features.frechet,
        kid=features.kid,
        inception_score=features.inception_score,
        name=features.name,
        subsets=KID_SUBSETS,
    )


def few_splits_note(name: str, splits: int, images: int) -> str:
    """Return a note that the Inception score is of fewer splits than usual."""
    basis = "one set" if splits == 1 else f"the mean of {splits} splits"
    usual = IS_SPLITS * IS_SPLIT_SIZE
    return (
        f"{name} is that of {basis}, as there are {images:,} sampled images; of {usual:,} it would be the mean of "
        f"{IS_SPLITS} splits. It rises with the size of a split: compare scores of equal numbers of images only."
    )


def too_few_note(features: FeatureNetwork, images: int) -> str:
    """Return a note that so few images give no Frechet distance: the reason, and the alternative."""
    return (
        f"No {features.frechet}: the covariance of {features.width:,} features needs more than {features.width:,} "
        f"images in each set, but there are {images:,}. With fewer it does not have full rank, and the distance "
        f"depends mostly on their number. Use {features.kid}, whose expectation does not depend on the number of "
        "images, or increase samples=."
    )
