"""Comparison of results with the paper's claims: means, their spread over seeds, and a verdict for each claim.

The noise of a difference is the standard deviation between seeds, pooled over the two compared values only, as others
may be much noisier, for example if a run diverges. A difference of two means counts if its p-value is below 0.05
(Student's t, two-sided). With a single seed no difference counts. Two values are as good as each other only if a
difference of a tenth would have counted; otherwise the result is undecided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from dalle.ablation import Expectation

SHARE = 0.05  # significance level
TIE = 0.1  # relative difference that must be excluded before two values are as good as each other

AGREES, PARTLY, UNDECIDED, DISAGREES = "agrees", "agrees in part", "cannot tell", "disagrees"


@dataclass(frozen=True)
class Measure:
    """One measure of a sweep's finished runs."""

    name: str
    better: str  # low | high
    runs: Mapping[str, Sequence[float]]  # value, as written in tables -> the measure in each of its runs

    @property
    def title(self) -> str:
        """Name as written in tables."""
        return self.name.replace("_{}", "")

    def mean(self, value: str) -> float:
        return fmean(self.runs[value])

    def spread(self, value: str) -> float | None:
        """Standard deviation between seeds; None for a single one."""
        return stdev(self.runs[value]) if len(self.runs[value]) > 1 else None

    @property
    def best(self) -> str:
        """The value with the best mean."""
        return (min if self.better == "low" else max)(self.runs, key=self.mean)

    def threshold(self, value: str, other: str) -> float:
        """Return the least significant difference of two values' means: infinite if neither has a second seed."""
        from scipy.stats import t  # of the extra `eval`, whose presence report.py checks

        # scipy.stats.ttest_ind cannot estimate the noise if one of the values has a single run
        pair = [self.runs[value], self.runs[other]]
        freedom = sum(len(each) - 1 for each in pair)
        if not freedom:
            return math.inf
        noise = math.sqrt(sum(variance(each) * (len(each) - 1) for each in pair if len(each) > 1) / freedom)
        seeds = 1 / len(self.runs[value]) + 1 / len(self.runs[other])
        return float(t.ppf(1 - SHARE / 2, freedom)) * noise * math.sqrt(seeds)

    def as_good(self, value: str, other: str) -> bool:
        """True if the values do not differ, and a difference of a tenth would have counted."""
        return not self.against(value, other) and self.threshold(value, other) <= TIE * abs(self.mean(other))

    def against(self, value: str, other: str) -> int:
        """Return 1 if `value` is better than `other` by more than noise, -1 if worse, 0 if undecided."""
        ahead = self.mean(other) - self.mean(value) if self.better == "low" else self.mean(value) - self.mean(other)
        return 0 if abs(ahead) <= self.threshold(value, other) else int(math.copysign(1, ahead))


@dataclass(frozen=True)
class Verdict:
    """Result of comparing runs with an expectation."""

    kind: str  # AGREES, PARTLY, UNDECIDED or DISAGREES
    sentence: str


def judge(expectation: Expectation, measure: Measure, values: Sequence[str]) -> Verdict:
    """Compare the expected best value with others: those of the expectation, or all of the sweep's `values`."""
    value = expectation.value
    others = [each for each in expectation.over or values if each != value]
    absent = [each for each in (value, *others) if each not in measure.runs]
    if value in absent or len(absent) == len(others):
        return Verdict(UNDECIDED, f"`{measure.title}`: no finished runs of {_listed(absent)}.")
    present = [each for each in others if each not in absent]
    if all(math.isinf(measure.threshold(value, each)) for each in present):
        return Verdict(UNDECIDED, f"`{measure.title}`: one seed each, so nobody knows how large the noise is.")
    better, worse, alike = (
        [each for each in present if measure.against(value, each) == outcome] for outcome in (1, -1, 0)
    )
    ties = expectation.should == "tie"
    as_good = [each for each in alike if ties and measure.as_good(value, each)]
    unclear = [each for each in alike if each not in as_good]
    if not (worse or unclear or absent):
        kind = AGREES
    elif better or as_good:
        kind = PARTLY
    else:
        kind = DISAGREES if worse else UNDECIDED
    told = {
        "better than": better,
        "worse than": worse,
        "as good as": as_good,
        "no difference beyond noise from": unclear,
        "no finished runs of": absent,
    }
    parts = [f"{words} {_listed(values)}" for words, values in told.items() if values]
    return Verdict(kind, f'`{measure.title}`, "{value}": {"; ".join(parts)}.')


def together(verdicts: Sequence[Verdict]) -> str:
    """Combine several verdicts into one."""
    kinds = {each.kind for each in verdicts}
    if len(kinds) == 1:
        return kinds.pop()
    return DISAGREES if kinds == {DISAGREES, UNDECIDED} else PARTLY


def _listed(values: Sequence[str]) -> str:
    """List the values in quotes, as values may contain commas."""
    quoted = [f'"{value}"' for value in values]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
