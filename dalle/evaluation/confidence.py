"""Confidence intervals of shares."""

import math
from collections.abc import Sequence

import numpy as np

from dalle.seeds import numpy_generator

Z95 = 1.959964  # quantile of the normal distribution for 95%
RESAMPLES = 2_000


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Compute the 95% interval of a share of independent observations (Wilson 1927).

    It lies in [0, 1] and holds for small totals, and for shares of 0 and 1. Raises ValueError without observations.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"{count} of {total} observations is no share")
    share, width = count / total, Z95**2 / total
    centre = (share + width / 2) / (1 + width)
    half_width = Z95 / (1 + width) * math.sqrt(share * (1 - share) / total + width / (4 * total))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def cluster_interval(shares: Sequence[float], name: str) -> tuple[float, float]:
    """Compute the 95% interval of the mean of the shares of groups, by resampling the groups (bootstrap).

    Images of one caption resemble each other, so captions are what varies independently. `name` seeds the resampling.
    If all shares are 0, or all are 1, resampling would find no variation: then each group counts as one observation of
    a share (`wilson_interval`).
    """
    values = np.asarray(shares)
    if (values == 0).all() or (values == 1).all():
        return wilson_interval(int(values.sum()), len(values))
    indices = numpy_generator(f"resampling {name}").integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[indices].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
