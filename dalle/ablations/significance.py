"""Significance of differences between values, and comparison of results with the paper's claims.

The noise of a difference is the standard deviation between seeds, pooled over the two compared values only, as others
may be much noisier, for example if a run diverges. A difference of two means is significant if its p-value is below
0.05 (Student's t-test, two-sided). With a single seed no difference is significant. Two values are equally good only if
a difference of a tenth would have been significant; otherwise the comparison is inconclusive.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from dalle.ablation_config import Expectation

SIGNIFICANCE_LEVEL = 0.05
ROUNDING = 1e-9  # relative difference up to which two means are equal, whatever their noise
EQUIVALENCE_MARGIN = 0.1  # relative difference that must be excluded before two values are equally good

AGREES, PARTLY_AGREES, INCONCLUSIVE, DISAGREES = "agrees", "agrees in part", "inconclusive", "disagrees"


@dataclass(frozen=True)
class SweepMetric:
    """One metric of a sweep: its values in the finished runs, grouped by the compared value."""

    name: str
    better: str  # lower | higher
    runs: Mapping[str, Sequence[float]]  # value, as written in tables -> the metric in each of its runs

    @property
    def title(self) -> str:
        """Name of the metric as written in tables."""
        return self.name.replace("_{}", "")

    def mean(self, value: str) -> float:
        """Return the mean of the metric over the runs with the compared value `value`."""
        return fmean(self.runs[value])

    def std(self, value: str) -> float | None:
        """Return the standard deviation of the metric between the seeds of `value`; None for a single seed."""
        return stdev(self.runs[value]) if len(self.runs[value]) > 1 else None

    @property
    def best(self) -> str:
        """The compared value with the best mean of the metric; the first of those that differ by rounding only."""
        best_mean = (min if self.better == "lower" else max)(map(self.mean, self.runs))
        return next(value for value in self.runs if math.isclose(self.mean(value), best_mean, rel_tol=ROUNDING))

    def threshold(self, value: str, other: str) -> float:
        """Return the smallest significant difference of two means: infinite if both values have a single seed."""
        from scipy.stats import t  # of the extra `eval`, whose presence report.py checks

        # scipy.stats.ttest_ind cannot estimate the noise if one of the values has a single run
        compared_runs = [self.runs[value], self.runs[other]]
        degrees_of_freedom = sum(len(runs) - 1 for runs in compared_runs)
        if not degrees_of_freedom:
            return math.inf
        pooled_variance = (
            sum(variance(runs) * (len(runs) - 1) for runs in compared_runs if len(runs) > 1) / degrees_of_freedom
        )
        inverse_counts = 1 / len(self.runs[value]) + 1 / len(self.runs[other])
        quantile = float(t.ppf(1 - SIGNIFICANCE_LEVEL / 2, degrees_of_freedom))
        return quantile * math.sqrt(pooled_variance) * math.sqrt(inverse_counts)

    def is_equivalent(self, value: str, other: str) -> bool:
        """Return True if no difference is significant, and one of `EQUIVALENCE_MARGIN` times the mean would be."""
        if self.compare(value, other):
            return False
        return self.threshold(value, other) <= EQUIVALENCE_MARGIN * abs(self.mean(other))

    def compare(self, value: str, other: str) -> int:
        """Return 1 if `value` is significantly better than `other`, -1 if worse, 0 if the difference is noise."""
        difference = self.mean(value) - self.mean(other)
        gain = -difference if self.better == "lower" else difference
        noise = max(self.threshold(value, other), ROUNDING * abs(self.mean(other)))
        return 0 if abs(gain) <= noise else int(math.copysign(1, gain))


@dataclass(frozen=True)
class ClaimResult:
    """Result of comparing runs with an expectation of the paper: a kind, and a sentence that explains it."""

    kind: str  # AGREES, PARTLY_AGREES, INCONCLUSIVE or DISAGREES
    sentence: str


def check_claim(expectation: Expectation, metric: SweepMetric, values: Sequence[str]) -> ClaimResult:
    """Compare the expected best value with its baselines: those of the expectation, or all of the sweep's `values`."""
    value = expectation.value
    baselines = [baseline for baseline in expectation.baselines or values if baseline != value]
    missing_values = [label for label in (value, *baselines) if label not in metric.runs]
    if value in missing_values or len(missing_values) == len(baselines):
        return ClaimResult(INCONCLUSIVE, f"`{metric.title}`: no finished runs of {_quoted_list(missing_values)}.")
    present_baselines = [baseline for baseline in baselines if baseline not in missing_values]
    if all(math.isinf(metric.threshold(value, baseline)) for baseline in present_baselines):
        return ClaimResult(INCONCLUSIVE, f"`{metric.title}`: one seed each, so the noise is unknown.")
    better, worse, insignificant = (
        [baseline for baseline in present_baselines if metric.compare(value, baseline) == sign] for sign in (1, -1, 0)
    )
    ties = expectation.should == "tie"
    equal = [baseline for baseline in insignificant if ties and metric.is_equivalent(value, baseline)]
    unclear = [baseline for baseline in insignificant if baseline not in equal]
    if not (worse or unclear or missing_values):
        kind = AGREES
    elif better or equal:
        kind = PARTLY_AGREES
    else:
        kind = DISAGREES if worse else INCONCLUSIVE
    groups = {
        "better than": better,
        "worse than": worse,
        "as good as": equal,
        "no significant difference from": unclear,
        "no finished runs of": missing_values,
    }
    parts = [f"{phrase} {_quoted_list(members)}" for phrase, members in groups.items() if members]
    return ClaimResult(kind, f'`{metric.title}`, "{value}": {"; ".join(parts)}.')


def overall_kind(results: Sequence[ClaimResult]) -> str:
    """Combine the results of several expectations into one kind, such as `AGREES`."""
    distinct_kinds = {result.kind for result in results}
    if len(distinct_kinds) == 1:
        return distinct_kinds.pop()
    return DISAGREES if distinct_kinds == {DISAGREES, INCONCLUSIVE} else PARTLY_AGREES


def _quoted_list(values: Sequence[str]) -> str:
    """Return a list in words, "a", "b" and "c", with quotes because values may contain commas."""
    quoted = [f'"{value}"' for value in values]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
