"""The day of a quota: what is ours, what others leave, when it begins anew, and when it will run out."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcsync.apply.budget import DAY, SLICE, DayBudget
from cdcsync.apply.pacing import DayPace
from cdcsync.model import Window

HOUR = 3_600.0


def day_of(allowance: float | None, *, rolling: bool = False) -> DayPace:
    """Give a day that begins at 0."""
    return DayPace(allowance, rolling=rolling, spent=(), now=0.0)


def see(day: DayPace, used: int, now: float, limit: int = 1000) -> None:
    """Show what all clients have used."""
    day.see(Window("daily", limit, limit - used, DAY), now)


def send(day: DayPace, calls: int, now: float) -> None:
    """Make calls of our own at once."""
    for _ in range(calls):
        day.sent(now, urgent=False)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 20_000), st.integers(1, 30)), max_size=40),
    st.integers(1, 500),
)
def test_the_lasting_rate_lasts_and_is_the_greatest(made: list[tuple[float, int]], calls: int) -> None:
    """At that rate the count stays within the budget for a day; somewhat more would break it."""
    budget, now = DayBudget(calls), 0.0
    for gap, number in made:
        now += gap
        budget.spend(now, number)
    rate = budget.lasting(now, calls)
    assert rate >= 0
    if budget.used(now) < calls:
        assert budget.runs_out(now, calls, rate) is None
        end = budget.runs_out(now, calls, rate * 1.05 + 4 / SLICE)
        assert end is not None
        assert now <= end <= now + DAY + SLICE


def test_small_traffic_is_never_slowed() -> None:
    """Up to half of our share may go at any speed."""
    day = day_of(600)
    send(day, 294, 0.0)
    assert day.rate(0.0) is None
    assert day.turn(0.0) <= 0.0
    send(day, 6, 0.0)
    assert day.rate(0.0) == pytest.approx((600 - 12 - 300) / DAY)


@pytest.mark.parametrize("rolling", [True, False])
def test_what_is_left_is_spaced_over_the_day(*, rolling: bool) -> None:
    """After a busy start calls go on to the day's end, evenly, and our share is used."""
    day, now, times = day_of(600, rolling=rolling), 0.0, []
    send(day, 320, now)
    while now < DAY - SLICE:
        now = max(now + 1, day.turn(now))
        day.sent(now, urgent=False)
        times.append(now)
    assert max(later - earlier for earlier, later in pairwise(times)) < 0.5 * HOUR
    assert 0.95 * 600 <= day.budget.used(DAY - SLICE) <= 600
    assert day.pause(now) is None or day.budget.used(now) >= 588


def test_urgent_calls_are_not_spaced() -> None:
    """They go at once, and may use what is kept for them; where the share ends, they end too."""
    day = day_of(100)
    send(day, 98, 0.0)
    assert day.pause(0.0) is not None
    assert day.pause(0.0, urgent=True) is None
    day.sent(0.0, urgent=True)
    day.sent(0.0, urgent=True)
    assert day.pause(0.0, urgent=True) is not None


def test_a_new_day_is_seen_and_known_from_then_on() -> None:
    """The count of all clients falls at midnight: ours begins anew, and a used up account waits for the next."""
    day = day_of(0.6)
    send(day, 400, HOUR)
    see(day, 500, 2 * HOUR)
    see(day, 3, 5 * HOUR)
    assert day.budget.used(5 * HOUR) == 0
    see(day, 990, 6 * HOUR)
    pause = day.pause(6 * HOUR)
    assert pause is not None
    assert pause.until == 5 * HOUR + DAY
    assert day.pause(5 * HOUR + DAY) is None


def test_before_a_midnight_was_seen_a_used_up_account_is_looked_at_again() -> None:
    """Nobody knows when its day ends: within the hour somebody has to ask."""
    day = day_of(0.6)
    see(day, 990, HOUR)
    pause = day.pause(HOUR)
    assert pause is not None
    assert HOUR < pause.until <= 2 * HOUR


def test_late_answers_of_the_old_day_do_not_count() -> None:
    """Answers of several threads come out of order: one of before midnight neither fills the new day nor ends it."""
    day = day_of(0.6)
    see(day, 500, HOUR)
    see(day, 3, 2 * HOUR)
    see(day, 501, 2 * HOUR + 1)
    see(day, 4, 2 * HOUR + 2)
    assert day.account.left(2 * HOUR + 2) == 996
    assert day.forecast(2 * HOUR + 2) is None


def test_summer_time_moves_the_day() -> None:
    """A day that does not begin when it was expected is learned anew, and the look-out for it stops nothing."""
    day = day_of(0.6)
    see(day, 500, HOUR)
    see(day, 3, 2 * HOUR)
    see(day, 500, 20 * HOUR)
    see(day, 505, 2 * HOUR + DAY)
    assert day.pause(2 * HOUR + DAY) is None
    see(day, 3, 3 * HOUR + DAY)
    see(day, 990, 4 * HOUR + DAY)
    pause = day.pause(4 * HOUR + DAY)
    assert pause is not None
    assert pause.until == 3 * HOUR + 2 * DAY


def test_earlier_days_tell_midnight_better_than_a_late_answer() -> None:
    """An answer that came hours after midnight does not move what was known of it."""
    day = day_of(0.6)
    see(day, 500, HOUR)
    see(day, 3, 2 * HOUR)
    see(day, 500, 20 * HOUR)
    see(day, 3, 5 * HOUR + DAY)
    see(day, 990, 6 * HOUR + DAY)
    pause = day.pause(6 * HOUR + DAY)
    assert pause is not None
    assert pause.until == 2 * HOUR + 2 * DAY


def test_a_rolling_day_has_no_midnight() -> None:
    """A fall of the count is somebody's busy hour of yesterday that has left it."""
    day = day_of(0.6, rolling=True)
    send(day, 100, 0.0)
    see(day, 800, HOUR)
    see(day, 120, 2 * HOUR)
    assert day.budget.used(2 * HOUR) == 100
    see(day, 800, 2 * HOUR + 1)
    assert day.account.left(2 * HOUR + 1) == 200


@pytest.mark.parametrize("rolling", [True, False])
def test_the_day_survives_a_restart(*, rolling: bool) -> None:
    """Our calls, the others' pace and the time of midnight are the same on another clock."""
    day = day_of(0.6, rolling=rolling)
    see(day, 500, HOUR)
    see(day, 3, 2 * HOUR)
    for hour in range(3, 12):
        send(day, 20, hour * HOUR)
        see(day, 3 + (hour - 2) * 70, hour * HOUR)
    kept = json.loads(json.dumps(day.remember(12 * HOUR)))
    again = DayPace(0.6, rolling=rolling, spent=(), now=5e6)
    again.restore(kept, 5e6, down=60.0)
    see(again, 640, 5e6)
    see(day, 640, 12 * HOUR + 60)
    assert again.budget.used(5e6) == day.budget.used(12 * HOUR + 60) == 180
    assert again.rate(5e6) == pytest.approx(day.rate(12 * HOUR + 60))
    length, same = again.account.length(5e6), day.account.length(12 * HOUR + 60)
    assert (length, same) == (None, None) if rolling else length == pytest.approx(same)


def test_a_midnight_while_we_were_down_begins_the_count_anew() -> None:
    """The stored calls were of the day before."""
    day = day_of(0.6)
    see(day, 500, HOUR)
    see(day, 3, 2 * HOUR)
    send(day, 100, 20 * HOUR)
    kept = day.remember(20 * HOUR)
    for down, used in ((5 * HOUR, 100), (7 * HOUR, 0)):
        again = day_of(0.6)
        again.restore(kept, 1000.0, down)
        assert again.budget.used(1000.0) == used


def test_the_forecast_says_when_a_day_runs_out() -> None:
    """At a call a minute our share, less the urgent part, lasts another five hours; a slower pace lasts the day."""
    day, now = day_of(600, rolling=True), 0.0
    for _ in range(250):
        now += 60
        day.sent(now, urgent=False)
    end = day.forecast(now)
    assert end is not None
    assert end - now == pytest.approx((588 - 250) * 60, rel=0.1)
    slow, now = day_of(600, rolling=True), 0.0
    for _ in range(100):
        now += 240
        slow.sent(now, urgent=False)
    assert slow.forecast(now) is None


def test_the_forecast_counts_others() -> None:
    """They use the account up before we have used our share."""
    day = day_of(0.6)
    see(day, 0, 0.0)
    for hour in range(1, 9):
        send(day, 10, hour * HOUR)
        see(day, 100 * hour, hour * HOUR)
    end = day.forecast(8 * HOUR)
    assert end is not None
    assert end - 8 * HOUR == pytest.approx(180 / 100 * HOUR, rel=0.15)
