"""Results of a sweep: the metrics of its runs, and the comparison with each expectation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dalle.ablation_config import AblationConfig
from dalle.ablations.run_results import PlannedRun, RunResult, read_results
from dalle.ablations.significance import ClaimResult, SweepMetric, check_claim
from dalle.training.run import MUTABLE


@dataclass(frozen=True)
class PowerLaw:
    """Power law metric = factor * parameters^exponent, fitted by least squares to the logarithms."""

    factor: float
    exponent: float
    r_squared: float  # coefficient of determination of the logarithms, 0 to 1


@dataclass(frozen=True)
class Sweep:
    """All jobs of one ablation at one size, with the result of each."""

    ablation: AblationConfig
    size: str
    results: list[RunResult]
    varied: frozenset[str] = frozenset()  # settings in which its planned jobs differ

    @classmethod
    def read(cls, ablation: AblationConfig, size: str, folder: Path, planned: Sequence[PlannedRun]) -> "Sweep":
        """Read the sweep in `folder`. `planned` jobs without results count as missing."""
        values = _distinct_values([run.settings for run in planned])
        varied = frozenset(key for key, distinct in values.items() if len(distinct) > 1)
        return cls(ablation, size, read_results(ablation, folder, planned), varied)

    @cached_property
    def finished(self) -> list[RunResult]:
        """Results of the jobs that have metrics."""
        return [result for result in self.results if not result.missing_reason]

    @cached_property
    def unintended_differences(self) -> dict[str, list[str]]:
        """Settings that differ between finished runs though the sweep does not vary them, each with its values.

        A setting that some runs lack is no difference.
        """
        varied = self.varied | {*self.ablation.vary}
        ignored = {"seed"} | {key.rpartition(".")[2] for key in self.ablation.vary}
        values = _distinct_values([result.settings for result in self.finished])
        return {
            key: distinct
            for key, distinct in values.items()
            if len(distinct) > 1 and key not in varied | MUTABLE and key.rpartition(".")[2] not in ignored
        }

    @cached_property
    def values(self) -> list[str]:
        """The compared values, as written in tables, in the order of the sweep's file."""
        return list(dict.fromkeys(result.label for result in self.results))

    @cached_property
    def metrics(self) -> list[SweepMetric]:
        """Metrics of the ablation, each with its values in the finished runs that have it."""
        metrics = []
        for name, better in self.ablation.metrics.items():
            runs = {
                value: [
                    result.metrics[name] for result in self.finished if result.label == value and name in result.metrics
                ]
                for value in self.values
            }
            metrics.append(SweepMetric(name, better, {value: numbers for value, numbers in runs.items() if numbers}))
        return metrics

    @cached_property
    def claim_results(self) -> list[ClaimResult]:
        """Result of comparing the runs with each expectation of the ablation, in order."""
        by_name = {metric.name: metric for metric in self.metrics}
        return [
            check_claim(expectation, by_name[expectation.metric], self.values) for expectation in self.ablation.expect
        ]

    @property
    def minutes(self) -> float:
        """Minutes that finished runs spent in updates."""
        return sum(result.seconds for result in self.finished) / 60

    def fitted_runs(self) -> list[RunResult]:
        """Return the finished runs that have the metric of the power law."""
        return [result for result in self.finished if self.ablation.power_law in result.metrics]

    def power_law(self) -> PowerLaw | None:
        """Fit the ablation's power law. Returns None with fewer than three model sizes."""
        from scipy.stats import linregress  # of the extra `eval`, whose presence report.py checks

        points = [(result.parameters, result.metrics[self.ablation.power_law]) for result in self.fitted_runs()]
        if len({parameters for parameters, _ in points}) < 3:
            return None
        fit: Any = linregress(*np.log(np.array(points, dtype=np.float64)).T)
        return PowerLaw(float(np.exp(fit.intercept)), float(fit.slope), float(fit.rvalue**2))


def _distinct_values(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Collect the distinct values of each key over all settings, as JSON."""
    values: dict[str, list[str]] = {}
    for mapping in settings:
        for key, value in mapping.items():
            text = json.dumps(value)
            if text not in values.setdefault(key, []):
                values[key].append(text)
    return values
