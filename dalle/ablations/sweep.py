"""Results of a sweep: the measures of its runs, and a verdict on each expectation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dalle.ablation import AblationConfig
from dalle.ablations.outcomes import Outcome, Planned, outcomes_of
from dalle.ablations.verdict import Measure, Verdict, judge
from dalle.training.run import MUTABLE


@dataclass(frozen=True)
class PowerLaw:
    """Power law measure = factor * parameters^exponent, fitted by least squares to the logarithms."""

    factor: float
    exponent: float
    explained: float  # share of the variance of the logarithms, 0 to 1


@dataclass(frozen=True)
class Sweep:
    """All jobs of one ablation at one size."""

    ablation: AblationConfig
    size: str
    outcomes: list[Outcome]
    varied: frozenset[str] = frozenset()  # settings in which its planned jobs differ

    @classmethod
    def read(cls, ablation: AblationConfig, size: str, folder: Path, planned: Sequence[Planned]) -> "Sweep":
        """Read the results in `folder`, including those of `planned` jobs that are missing."""
        values = _values([each.settings for each in planned])
        varied = frozenset(key for key, found in values.items() if len(found) > 1)
        return cls(ablation, size, outcomes_of(ablation, folder, planned), varied)

    @cached_property
    def finished(self) -> list[Outcome]:
        return [each for each in self.outcomes if not each.missing]

    @cached_property
    def unlike(self) -> dict[str, list[str]]:
        """Settings that differ between finished runs though the sweep does not vary them, each with its values.

        A setting that older runs lack is no difference.
        """
        own = self.varied | {*self.ablation.vary}
        words = MUTABLE | {"seed"} | {key.rpartition(".")[2] for key in self.ablation.vary}
        values = _values([each.settings for each in self.finished])
        return {
            key: found
            for key, found in values.items()
            if len(found) > 1 and key not in own and key.rpartition(".")[2] not in words
        }

    @cached_property
    def values(self) -> list[str]:
        """The compared values, as written in tables, in the order of the sweep's file."""
        return list(dict.fromkeys(each.label for each in self.outcomes))

    @cached_property
    def measures(self) -> list[Measure]:
        """Measures of the finished runs that have them."""
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
        """Minutes that finished runs spent in updates."""
        return sum(each.seconds for each in self.finished) / 60

    def fitted(self) -> list[Outcome]:
        """Finished runs that have the power law's measure."""
        return [each for each in self.finished if self.ablation.power_law in each.measures]

    def power_law(self) -> PowerLaw | None:
        """Fit the ablation's power law. Returns None with fewer than three model sizes."""
        from scipy.stats import linregress  # of the extra `eval`, whose presence report.py checks

        points = [(each.parameters, each.measures[self.ablation.power_law]) for each in self.fitted()]
        if len({parameters for parameters, _ in points}) < 3:
            return None
        fit: Any = linregress(*np.log(np.array(points, dtype=np.float64)).T)
        return PowerLaw(float(np.exp(fit.intercept)), float(fit.slope), float(fit.rvalue**2))


def _values(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Collect the different values of each key over all settings, as JSON."""
    found: dict[str, list[str]] = {}
    for each in settings:
        for key, value in each.items():
            words = json.dumps(value)
            if words not in found.setdefault(key, []):
                found[key].append(words)
    return found
