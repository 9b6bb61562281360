from itertools import pairwise

import pytest

from dalle.training.schedules import Schedule


def test_every_schedule_goes_from_start_to_end_and_stays():
    for kind in ("linear", "cosine", "exponential"):
        schedule = Schedule(kind, 1.0, 0.0625, steps=100, delay=10)
        assert [schedule.value(step) for step in (0, 10, 110, 10_000)] == [1.0, 1.0, 0.0625, 0.0625]
        values = [schedule.value(step) for step in range(10, 111)]
        assert all(after < before for before, after in pairwise(values))


def test_values_at_half_way_match_formulas():
    assert Schedule("linear", 0.0, 6.6, 100).value(50) == pytest.approx(3.3)
    assert Schedule("cosine", 0.0, 6.6, 100).value(50) == pytest.approx(3.3)
    assert Schedule("cosine", 0.0, 6.6, 100).value(25) == pytest.approx(6.6 * (1 - 2**-0.5) / 2)
    assert Schedule("exponential", 1.0, 1 / 16, 100).value(50) == pytest.approx(1 / 4)


def test_constant_schedule_stays_at_start():
    assert Schedule("constant", 0.3, 9.0, 10).value(1_000) == 0.3


def test_invalid_schedules_raise():
    for wrong in ({"kind": "cosin"}, {"steps": 0}, {"delay": -1}, {"kind": "exponential", "end": 0.0}):
        with pytest.raises(ValueError, match="schedule"):
            Schedule(**wrong)
