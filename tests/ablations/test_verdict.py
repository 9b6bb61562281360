"""Verdicts: a difference counts where it is larger than the noise between seeds, and only there."""

import math
from statistics import variance

import pytest

from dalle.ablation import Expectation
from dalle.ablations.verdict import AGREES, DISAGREES, PARTLY, UNDECIDED, Measure, Verdict, judge, together

CLEAR = {"a": [1.0, 1.1], "b": [5.0, 5.1], "c": [9.0, 9.1]}


def test_the_noise_is_pooled_over_the_two_values_and_the_bar_is_students():
    measure = Measure("error", "low", {"a": [1.0, 3.0], "b": [10.0, 10.0], "c": [7.0], "d": [8.0], "e": [0.0, 90.0]})
    pooled = math.sqrt((2.0 + 0.0) / 2)  # variances 2 and 0 of one degree of freedom each
    assert measure.threshold("a", "b") == pytest.approx(4.303 * pooled, rel=1e-3)  # two seeds each
    assert measure.threshold("a", "c") == pytest.approx(12.71 * math.sqrt(2) * math.sqrt(1.5), rel=1e-3)
    assert measure.threshold("c", "d") == math.inf


def test_the_bar_is_lower_the_more_seeds_there_are_and_ends_at_that_of_the_normal_distribution():
    """Tables of Student's t have 2.086 for 20 degrees of freedom, and 1.960 for the normal distribution."""
    for count, quantile in ((11, 2.086), (20_000, 1.960)):
        runs = [1.0, 3.0] * (count // 2) + [2.0] * (count % 2)
        measure = Measure("error", "low", {"a": runs, "b": runs})
        standard_error = math.sqrt(2 * variance(runs) / count)
        assert measure.threshold("a", "b") == pytest.approx(quantile * standard_error, rel=1e-3)


@pytest.mark.parametrize(("better", "sign"), [("low", 1), ("high", -1)])
def test_better_is_lower_or_higher_as_the_measure_says(better, sign):
    measure = Measure("error", better, CLEAR)
    assert [measure.against("a", "b"), measure.against("b", "a"), measure.against("a", "a")] == [sign, -sign, 0]
    assert measure.best == ("a" if better == "low" else "c")


@pytest.mark.parametrize(
    ("expectation", "runs", "kind"),
    [
        (Expectation("error", "a"), CLEAR, AGREES),
        (Expectation("error", "c"), CLEAR, DISAGREES),
        (Expectation("error", "b"), CLEAR, PARTLY),
        (Expectation("error", "b", over=["c"]), CLEAR, AGREES),
        (Expectation("error", "a"), {"a": [1.0, 5.0], "b": [2.0, 6.0]}, UNDECIDED),
        (Expectation("error", "a", "tie"), {"a": [1.0, 5.0], "b": [2.0, 6.0]}, UNDECIDED),
        (Expectation("error", "a", "tie"), {"a": [2.0, 2.01], "b": [2.0, 2.01]}, AGREES),
        (Expectation("error", "a", "tie"), {"a": [2.0, 2.1], "b": [2.0, 2.1]}, UNDECIDED),
        (Expectation("error", "a", "tie"), {"a": [2.0, 2.1], "b": [2.0, 2.1], "c": [9.0, 9.1]}, PARTLY),
        (Expectation("error", "a", "tie"), CLEAR, AGREES),
        (Expectation("error", "c", "tie", ["a"]), CLEAR, DISAGREES),
        (Expectation("error", "a", over=["b", "d"]), CLEAR, PARTLY),
        (Expectation("error", "a", over=["d"]), CLEAR, UNDECIDED),
        (Expectation("error", "d"), CLEAR, UNDECIDED),
    ],
)
def test_verdicts_follow_from_what_beats_what(expectation, runs, kind):
    assert judge(expectation, Measure("error", "low", runs), list(runs)).kind == kind


def test_a_single_seed_decides_nothing():
    runs = {"a": [1.0], "b": [100.0]}
    for should in ("win", "tie"):
        verdict = judge(Expectation("error", "a", should), Measure("error", "low", runs), list(runs))
        assert verdict.kind == UNDECIDED
        assert "one seed each" in verdict.sentence


def test_a_verdict_says_what_each_comparison_came_to():
    runs = {"a": [3.0, 3.1], "b": [5.0, 5.1], "c": [3.05, 3.15], "d": [1.0, 1.1]}
    verdict = judge(Expectation("error_{}", "a"), Measure("error_{}", "low", runs), list("abcde"))
    assert verdict.sentence == (
        '`error`, "a": better than "b"; worse than "d"; no difference beyond noise from "c"; no finished runs of "e".'
    )


def test_several_verdicts_agree_only_where_all_do():
    kinds = {
        (AGREES, AGREES): AGREES,
        (AGREES, DISAGREES): PARTLY,
        (AGREES, UNDECIDED): PARTLY,
        (DISAGREES, UNDECIDED): DISAGREES,
    }
    for pair, word in kinds.items():
        assert together([Verdict(kind, "") for kind in pair]) == word


def test_an_unknown_expectation_is_refused():
    with pytest.raises(ValueError, match="should='loose' is unknown; choose win or tie"):
        Expectation("error", "a", "loose")
