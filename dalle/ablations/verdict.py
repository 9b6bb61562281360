"""Do runs agree with the paper? Means, their spread over seeds, and a sentence for each thing that it says.

The noise of a difference is the standard deviation between seeds, pooled over the two values that are compared: others
may be noisier by far, as where a run collapses. A difference of two means counts if chance alone would make so large a
one in less than a twentieth of cases (Student's t, two-sided). With a single seed nothing counts. Two values are as
good as each other only where a difference of a tenth would have counted: else nobody can tell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from dalle.ablation import Expectation

SHARE = 0.05  # of cases in which chance alone may make a difference that counts
TIE = 0.1  # how small a difference, relative to the mean, has to be ruled out before two values are as good

AGREES, PARTLY, UNDECIDED, DISAGREES = "agrees", "agrees in part", "cannot tell", "disagrees"


@dataclass(frozen=True)
class Measure:
    """One measure of a sweep's finished runs."""

    name: str
    better: str  # low | high
    runs: Mapping[str, Sequence[float]]  # value, as tables call it -> the measure in each of its runs

    @property
    def title(self) -> str:
        """As tables call it."""
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
        """Return how far apart two values' means must be to count: infinite where neither has a second seed."""
        from scipy.stats import t  # of the extra `eval`, which report.py looks for

        # scipy.stats.ttest_ind knows no noise where one of the values has a single run
        pair = [self.runs[value], self.runs[other]]
        freedom = sum(len(each) - 1 for each in pair)
        if not freedom:
            return math.inf
        noise = math.sqrt(sum(variance(each) * (len(each) - 1) for each in pair if len(each) > 1) / freedom)
        seeds = 1 / len(self.runs[value]) + 1 / len(self.runs[other])
        return float(t.ppf(1 - SHARE / 2, freedom)) * noise * math.sqrt(seeds)

    def as_good(self, value: str, other: str) -> bool:
        """Whether two values are alike, and a difference of a tenth would have counted."""
        return not self.against(value, other) and self.threshold(value, other) <= TIE * abs(self.mean(other))

    def against(self, value: str, other: str) -> int:
        """1 where `value` does better than `other` by more than noise, -1 where worse, 0 where none can be told."""
        ahead = self.mean(other) - self.mean(value) if self.better == "low" else self.mean(value) - self.mean(other)
        return 0 if abs(ahead) <= self.threshold(value, other) else int(math.copysign(1, ahead))


@dataclass(frozen=True)
class Verdict:
    """What runs say to an expectation."""

    kind: str  # AGREES, PARTLY, UNDECIDED or DISAGREES
    sentence: str


def judge(expectation: Expectation, measure: Measure, values: Sequence[str]) -> Verdict:
    """Compare the value that the paper favours with others; where it names none, with all of the sweep's `values`."""
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
    """One word for several verdicts."""
    kinds = {each.kind for each in verdicts}
    if len(kinds) == 1:
        return kinds.pop()
    return DISAGREES if kinds == {DISAGREES, UNDECIDED} else PARTLY


def _listed(values: Sequence[str]) -> str:
    """Each in quotes, as values may hold commas."""
    quoted = [f'"{value}"' for value in values]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
