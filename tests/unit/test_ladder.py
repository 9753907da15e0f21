"""When a refused row is tried again, and when so many are refused that the mapping must be wrong."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.ladder import FARTHEST, NIGHT, STEP, STEPS, is_due, next_try
from cdcsync.verdicts import LEAST, WINDOW, Verdicts

ZONE = dt.timezone(dt.timedelta(hours=5, minutes=30))
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=ZONE).timestamp()


def test_twenty_minutes_ten_times_then_nightly() -> None:
    """The first ten tries come 20 minutes apart, the others at 03:00 of the machine's own time."""
    assert [next_try(times, NOON, 0.5, ZONE) - NOON for times in range(1, STEPS + 1)] == [STEP] * STEPS
    night = dt.datetime(2026, 3, 2, 3, tzinfo=ZONE).timestamp()
    assert next_try(STEPS + 1, NOON, 0.0, ZONE) == night
    assert next_try(500, night, 0.0, ZONE) == night + 86_400
    assert next_try(STEPS + 1, night - 1, 0.5, ZONE) == night + NIGHT / 2


@given(st.integers(1, 50), st.floats(0, 2e9), st.floats(0, 1))
def test_tries_are_spread_and_never_farther_than_is_believed(times: int, now: float, luck: float) -> None:
    """Whatever the time and the luck, a row is due later than now, and before what counts as a clock put back."""
    due = next_try(times, now, luck)
    assert now < due < now + FARTHEST
    assert not is_due(due, now)
    assert is_due(due, due)


def test_a_clock_that_was_put_back_keeps_no_row_waiting() -> None:
    """What seems to be due in more than a night from now was parked in a time that did not come yet."""
    due = next_try(1, NOON, 0.5)
    assert not is_due(due, NOON)
    assert is_due(due, NOON - 365 * 86_400)


@pytest.mark.parametrize(("taken", "refused", "mass"), [(49, 51, True), (50, 50, False), (0, LEAST - 1, False)])
def test_more_than_half_of_a_hundred_is_a_mass(taken: int, refused: int, mass: bool) -> None:  # noqa: FBT001 — a case
    """Exactly half, or fewer than a hundred, prove nothing."""
    verdicts = Verdicts()
    for _ in range(taken):
        verdicts.note(None)
    for _ in range(refused):
        verdicts.note(("CODE", "Field"))
    assert (verdicts.judged, verdicts.refused, verdicts.mass) == (taken + refused, refused, mass)


def test_a_bad_hour_after_a_good_year_is_seen() -> None:
    """Only the last verdicts count, and the reason named is that of most of them."""
    verdicts = Verdicts()
    for _ in range(1_000_000):
        verdicts.note(None)
    for number in range(WINDOW // 2 + 1):
        assert not verdicts.mass
        verdicts.note(("RARE", None) if number % 5 == 0 else ("OFTEN", "Field"))
    assert verdicts.mass
    assert verdicts.most_frequent() == ("OFTEN", "Field")
    verdicts.clear()
    assert (verdicts.judged, verdicts.refused, verdicts.mass) == (0, 0, False)


@given(st.lists(st.booleans(), max_size=3 * WINDOW))
def test_the_window_counts_what_is_in_it(refusals: list[bool]) -> None:
    """The running count is that of the last verdicts, whatever fell out of the window."""
    verdicts = Verdicts()
    for refused in refusals:
        verdicts.note(("CODE", None) if refused else None)
    assert verdicts.refused == sum(refusals[-WINDOW:])
