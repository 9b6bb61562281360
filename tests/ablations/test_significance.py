"""Significance of differences between values, given the noise between seeds, and results for claims."""

import math
from statistics import variance

import pytest

from dalle.ablation_config import Expectation
from dalle.ablations.significance import (
    AGREES,
    DISAGREES,
    INCONCLUSIVE,
    PARTLY_AGREES,
    ClaimResult,
    SweepMetric,
    check_claim,
    overall_kind,
)

CLEAR = {"a": [1.0, 1.1], "b": [5.0, 5.1], "c": [9.0, 9.1]}


def test_threshold_uses_pooled_variance_and_students_t():
    metric = SweepMetric(
        "error", "lower", {"a": [1.0, 3.0], "b": [10.0, 10.0], "c": [7.0], "d": [8.0], "e": [0.0, 90.0]}
    )
    pooled = math.sqrt((2.0 + 0.0) / 2)  # variances 2 and 0 of one degree of freedom each
    assert metric.threshold("a", "b") == pytest.approx(4.303 * pooled, rel=1e-3)  # two seeds each
    assert metric.threshold("a", "c") == pytest.approx(12.71 * math.sqrt(2) * math.sqrt(1.5), rel=1e-3)
    assert metric.threshold("c", "d") == math.inf


def test_threshold_approaches_the_normal_distribution_with_many_seeds():
    """Tables of Student's t have 2.086 for 20 degrees of freedom, and 1.960 for the normal distribution."""
    for count, quantile in ((11, 2.086), (20_000, 1.960)):
        runs = [1.0, 3.0] * (count // 2) + [2.0] * (count % 2)
        metric = SweepMetric("error", "lower", {"a": runs, "b": runs})
        standard_error = math.sqrt(2 * variance(runs) / count)
        assert metric.threshold("a", "b") == pytest.approx(quantile * standard_error, rel=1e-3)


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_direction_of_better_follows_the_metric(better, sign):
    metric = SweepMetric("error", better, CLEAR)
    assert [metric.compare("a", "b"), metric.compare("b", "a"), metric.compare("a", "a")] == [sign, -sign, 0]
    assert metric.best == ("a" if better == "lower" else "c")


@pytest.mark.parametrize(
    ("expectation", "runs", "kind"),
    [
        (Expectation("error", "a"), CLEAR, AGREES),
        (Expectation("error", "c"), CLEAR, DISAGREES),
        (Expectation("error", "b"), CLEAR, PARTLY_AGREES),
        (Expectation("error", "b", baselines=["c"]), CLEAR, AGREES),
        (Expectation("error", "a"), {"a": [1.0, 5.0], "b": [2.0, 6.0]}, INCONCLUSIVE),
        (Expectation("error", "a", "tie"), {"a": [1.0, 5.0], "b": [2.0, 6.0]}, INCONCLUSIVE),
        (Expectation("error", "a", "tie"), {"a": [2.0, 2.01], "b": [2.0, 2.01]}, AGREES),
        (Expectation("error", "a", "tie"), {"a": [2.0, 2.1], "b": [2.0, 2.1]}, INCONCLUSIVE),
        (Expectation("error", "a", "tie"), {"a": [2.0, 2.1], "b": [2.0, 2.1], "c": [9.0, 9.1]}, PARTLY_AGREES),
        (Expectation("error", "a", "tie"), CLEAR, AGREES),
        (Expectation("error", "c", "tie", ["a"]), CLEAR, DISAGREES),
        (Expectation("error", "a", baselines=["b", "d"]), CLEAR, PARTLY_AGREES),
        (Expectation("error", "a", baselines=["d"]), CLEAR, INCONCLUSIVE),
        (Expectation("error", "d"), CLEAR, INCONCLUSIVE),
    ],
)
def test_kind_of_claim_result(expectation, runs, kind):
    assert check_claim(expectation, SweepMetric("error", "lower", runs), list(runs)).kind == kind


def test_rounding_is_no_difference():
    """Means of exact ones differ in the last bit, and have no noise."""
    metric = SweepMetric("judge", "higher", {"a": [1 - 2**-53] * 2, "b": [1.0, 1.0], "c": [0.5, 0.5]})
    assert (metric.compare("b", "a"), metric.compare("a", "b")) == (0, 0)
    assert metric.compare("a", "c") == 1
    assert metric.best == "a"


def test_single_seed_is_inconclusive():
    runs = {"a": [1.0], "b": [100.0]}
    for should in ("win", "tie"):
        result = check_claim(Expectation("error", "a", should), SweepMetric("error", "lower", runs), list(runs))
        assert result.kind == INCONCLUSIVE
        assert "one seed each" in result.sentence


def test_sentence_lists_each_comparison():
    runs = {"a": [3.0, 3.1], "b": [5.0, 5.1], "c": [3.05, 3.15], "d": [1.0, 1.1]}
    result = check_claim(Expectation("error_{}", "a"), SweepMetric("error_{}", "lower", runs), list("abcde"))
    assert result.sentence == (
        '`error`, "a": better than "b"; worse than "d"; no significant difference from "c"; no finished runs of "e".'
    )


def test_combined_result_agrees_only_if_all_agree():
    kinds = {
        (AGREES, AGREES): AGREES,
        (AGREES, DISAGREES): PARTLY_AGREES,
        (AGREES, INCONCLUSIVE): PARTLY_AGREES,
        (DISAGREES, INCONCLUSIVE): DISAGREES,
    }
    for pair, word in kinds.items():
        assert overall_kind([ClaimResult(kind, "") for kind in pair]) == word


def test_unknown_expectation_raises():
    with pytest.raises(ValueError, match="should='loose' is unknown; choose win or tie"):
        Expectation("error", "a", "loose")
