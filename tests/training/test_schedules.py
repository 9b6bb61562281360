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


def test_schedule_without_steps_ends_with_the_run():
    assert Schedule("cosine", 1.0, 0.0).for_run(100) == Schedule("cosine", 1.0, 0.0, steps=100)
    assert Schedule("cosine", 1.0, 0.0, delay=30).for_run(100) == Schedule("cosine", 1.0, 0.0, steps=70, delay=30)
    assert Schedule("cosine", 1.0, 0.0, delay=30).for_run(100).value(100) == 0.0


def test_schedule_without_delay_is_at_the_end_of_the_run():
    last = Schedule("linear", 1.0, 0.0, steps=20, delay=None)
    assert last.for_run(100) == Schedule("linear", 1.0, 0.0, steps=20, delay=80)
    assert last.for_run(10) == Schedule("linear", 1.0, 0.0, steps=10, delay=0)  # all of a shorter run
    assert Schedule("linear", 1.0, 0.0, None, None).for_run(100) == Schedule("linear", 1.0, 0.0, steps=100)


def test_explicit_and_constant_schedules_do_not_depend_on_the_run():
    for schedule in (Schedule("linear", 1.0, 0.0, steps=20), Schedule("constant", 0.3), Schedule(delay=5)):
        assert schedule.for_run(3) is schedule


def test_a_schedule_that_begins_after_the_run_raises():
    with pytest.raises(ValueError, match="delay=100 does not begin within steps=100 of the run: set a lower delay"):
        Schedule("cosine", delay=100).for_run(100)


def test_a_schedule_without_length_has_no_value():
    with pytest.raises(ValueError, match="call for_run"):
        Schedule("cosine").value(0)


def test_invalid_schedules_raise():
    for wrong in ({"kind": "cosin"}, {"steps": 0}, {"delay": -1}, {"kind": "exponential", "end": 0.0}):
        with pytest.raises(ValueError, match="schedule"):
            Schedule(**wrong)
