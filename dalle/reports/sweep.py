"""A sweep and what came of it: the measures of its runs, and what they say to each expectation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dalle.ablation import AblationConfig
from dalle.reports.outcomes import Outcome, Planned, outcomes_of
from dalle.reports.verdict import Measure, Verdict, judge


@dataclass(frozen=True)
class PowerLaw:
    """measure = factor * parameters^exponent, fitted by least squares to the logarithms."""

    factor: float
    exponent: float
    explained: float  # share of the variance of the logarithms, 0 to 1


@dataclass(frozen=True)
class Sweep:
    """All jobs of one ablation at one scale."""

    ablation: AblationConfig
    scale: str
    outcomes: list[Outcome]

    @classmethod
    def read(cls, ablation: AblationConfig, scale: str, folder: Path, planned: Sequence[Planned]) -> "Sweep":
        """What lies in `folder`, and what is missing of the `planned` jobs."""
        return cls(ablation, scale, outcomes_of(ablation, folder, planned))

    @cached_property
    def finished(self) -> list[Outcome]:
        return [each for each in self.outcomes if not each.missing]

    @cached_property
    def values(self) -> list[str]:
        """What is compared, as tables call it, in the order of the sweep's file."""
        return list(dict.fromkeys(each.label for each in self.outcomes))

    @cached_property
    def measures(self) -> list[Measure]:
        """Those of the finished runs that have them."""
        found = []
        for name, better in self.ablation.measures.items():
            runs = {
                value: [each.measures[name] for each in self.finished if each.label == value and name in each.measures]
                for value in self.values
            }
            found.append(Measure(name, better, {value: each for value, each in runs.items() if each}))
        return found

    @cached_property
    def verdicts(self) -> list[Verdict]:
        by_name = {each.name: each for each in self.measures}
        return [judge(each, by_name[each.measure], self.values) for each in self.ablation.expect]

    @property
    def minutes(self) -> float:
        """Time that finished runs spent in updates."""
        return sum(each.seconds for each in self.finished) / 60

    def power_law(self) -> PowerLaw | None:
        """The fit that the ablation asks for; None without three sizes."""
        name = self.ablation.power_law
        points = [(each.parameters, each.measures[name]) for each in self.finished if name in each.measures]
        if not name or len({parameters for parameters, _ in points}) < 3:
            return None
        x, y = np.log(np.array(points, dtype=np.float64)).T
        exponent, intercept = np.polyfit(x, y, 1)
        left = (y - exponent * x - intercept).var() / y.var()
        return PowerLaw(float(np.exp(intercept)), float(exponent), float(1 - left))
