"""The rate controller and the daily budget, on a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcsync.apply.account import SHORTEST_LOOK
from cdcsync.apply.budget import DAY, SLICE, DayBudget
from cdcsync.apply.rate import RateController
from cdcsync.model import Window

BURST = "10 s"


def burst(limit: int, remaining: int, seconds: float = 10.0) -> Window:
    """Give a burst window as headers show it."""
    return Window(BURST, limit, remaining, seconds)


def day(limit: int, remaining: int) -> Window:
    """Give a daily window as headers show it."""
    return Window("day", limit, remaining, DAY)


class Server:
    """Refuses what goes over ``limit`` requests in a rolling window; ``shows`` says whether answers carry headers."""

    def __init__(self, limit: int, seconds: float, *, shows: bool) -> None:
        self.limit = limit
        self.seconds = seconds
        self.shows = shows
        self.times: deque[float] = deque()
        self.accepted = 0
        self.refused = 0

    def request(self, controller: RateController, now: float) -> None:
        """Take one request and tell the controller how it went."""
        while self.times and self.times[0] <= now - self.seconds:
            self.times.popleft()
        if len(self.times) >= self.limit:
            self.refused += 1
            controller.refused("burst", None, now)
            return
        self.times.append(now)
        self.accepted += 1
        controller.seen([burst(self.limit, self.limit - len(self.times), self.seconds)] if self.shows else [], now)
        controller.ok(now)


def drive(controller: RateController, server: Server, start: float, seconds: float) -> float:
    """Send as fast as the controller allows; return the time after."""
    now = start
    while now < start + seconds:
        now = controller.paused_until(now) or now
        server.request(controller, now)
        now += 1 / controller.rate
    return now


Signal = Callable[[RateController, float], None]


def _refusal(scope: str, after: float | None) -> Signal:
    return lambda controller, now: controller.refused(scope, after, now)


def _windows(window: Window) -> Signal:
    return lambda controller, now: controller.seen([window], now)


signals: st.SearchStrategy[list[Signal]] = st.lists(
    st.one_of(
        st.just(RateController.ok),
        st.just(RateController.sent),
        st.builds(
            _refusal,
            st.sampled_from(["burst", "daily", "concurrent", "search"]),
            st.none() | st.floats(-5, 1e5),
        ),
        st.builds(_windows, st.builds(burst, st.integers(0, 1000), st.integers(-5, 1000), st.floats(0.5, 60))),
        st.builds(_windows, st.builds(day, st.integers(0, 10**6), st.integers(0, 10**6))),
    ),
    max_size=80,
)


@given(
    signals=signals,
    steps=st.floats(0, 5),
    floor=st.floats(0.01, 2),
    ceiling=st.floats(0.01, 500),
    budget=st.none() | st.floats(0.01, 1) | st.integers(1, 50),
)
def test_bounds_hold_whatever_happens(
    signals: list[Signal], steps: float, floor: float, ceiling: float, budget: float | None
) -> None:
    """Any sequence of answers leaves floor <= rate <= ceiling, a parallelism of 1 or more, and pauses in the future."""
    controller = RateController(floor=floor, ceiling=ceiling, daily_budget=budget)
    now = 0.0
    for signal in signals:
        now += steps
        signal(controller, now)
        assert floor <= controller.rate <= controller.ceiling <= max(floor, ceiling)
        assert controller.parallel >= 1
        until = controller.paused_until(now)
        assert until is None or until > now


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(20, 300), seconds=st.sampled_from([1.0, 10.0]))
def test_converges_to_a_limit_that_answers_show(limit: int, seconds: float) -> None:
    """With headers the controller uses most of the limit and is never refused."""
    controller = RateController(ceiling=1000, initial=1)
    server = Server(limit, seconds, shows=True)
    drive(controller, server, 0.0, 300.0)
    assert server.refused == 0
    assert server.accepted >= 0.6 * 300 * limit / seconds


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(20, 300), too_fast=st.floats(1.2, 20))
def test_converges_to_a_limit_that_nobody_tells(limit: int, too_fast: float) -> None:
    """Without headers refusals stay below 5 %, HubSpot's line, and half of the limit or more is used."""
    controller = RateController(ceiling=too_fast * limit / 10)
    server = Server(limit, 10.0, shows=False)
    now = drive(controller, server, 0.0, 120.0)
    server.accepted = server.refused = 0
    drive(controller, server, now, 600.0)
    assert server.refused <= 0.05 * (server.accepted + server.refused)
    assert server.accepted >= 0.5 * 600 * limit / 10


def test_recovers_after_refusals_end() -> None:
    """A limit that was lowered and raised again is used again."""
    controller = RateController(ceiling=20)
    server = Server(30, 10.0, shows=False)
    now = drive(controller, server, 0.0, 120.0)
    assert controller.rate < 6
    server.limit = 10_000
    drive(controller, server, now, 300.0)
    assert controller.rate == controller.ceiling == 20


def test_requests_refused_together_count_once() -> None:
    """Eight requests in flight that are refused at once halve the rate once, not eight times."""
    controller = RateController(ceiling=16)
    for _ in range(8):
        controller.refused("burst", None, 5.0)
    assert controller.rate == 8
    assert controller.paused_until(5.0) == 6.0


def test_pauses_grow_up_to_the_window() -> None:
    """Refusals in a row wait 1, 2, 4, 8 s and then the whole window; an answer starts over."""
    controller = RateController(ceiling=16)
    now, waits = 0.0, []
    for _ in range(6):
        controller.refused("burst", None, now)
        until = controller.paused_until(now)
        assert until is not None
        waits.append(until - now)
        now = until
    assert waits == [1, 2, 4, 8, 10, 10]
    controller.ok(now)
    controller.refused("burst", None, now)
    assert controller.paused_until(now) == now + 1


def test_retry_after_is_obeyed() -> None:
    """A pause that the vendor asks for replaces our own guess."""
    controller = RateController()
    controller.refused("burst", 33.0, 1.0)
    assert controller.paused_until(2.0) == 34.0
    assert controller.paused_until(34.0) is None


def test_daily_refusal_pauses_without_slowing_down() -> None:
    """The day's limit says nothing about the rate; it is looked at again after a quarter of an hour."""
    controller = RateController(ceiling=10)
    controller.refused("daily", None, 0.0)
    assert controller.rate == 10
    pause = controller.pause(1.0)
    assert pause is not None
    assert pause.until == SHORTEST_LOOK
    assert "daily" in pause.reason


def test_concurrency_refusal_lowers_parallelism_only_and_it_returns() -> None:
    """Too many requests at once: fewer at once, at the same rate; one more every half minute without complaint."""
    controller = RateController(ceiling=10, parallel=8)
    controller.refused("concurrent", None, 0.0)
    assert (controller.parallel, controller.rate) == (4, 10)
    for second in range(1, 200):
        controller.ok(float(second))
    assert controller.parallel == 8


def test_a_short_window_slows_down_until_it_has_passed() -> None:
    """Somebody else uses the window too: the rate drops once and does not rise before the window is over."""
    controller = RateController(ceiling=100)
    controller.seen([burst(100, 90)], 0.0)
    assert controller.rate == controller.ceiling == 9
    controller.seen([burst(100, 4)], 1.0)
    controller.seen([burst(100, 3)], 1.1)
    assert controller.rate == 9 * 0.75
    controller.ok(10.0)
    assert controller.rate == 9 * 0.75
    controller.ok(11.5)
    assert controller.rate > 9 * 0.75


def test_an_empty_window_pauses() -> None:
    """With nothing left, the next request would be refused: wait for the oldest ones to leave the window."""
    controller = RateController()
    controller.seen([burst(100, 0)], 0.0)
    assert controller.paused_until(0.0) == 1.0


def test_a_raised_limit_is_used_at_once_when_nothing_went_wrong() -> None:
    """An add-on that is bought, or the first answer after the start, needs no slow approach."""
    controller = RateController(ceiling=100, initial=1)
    controller.seen([burst(100, 99)], 0.0)
    assert controller.rate == 9
    controller.seen([burst(190, 189)], 1.0)
    assert controller.rate == pytest.approx(17.1)


def test_the_account_day_is_left_to_people() -> None:
    """The last hundredth of the account's calls is not touched; calls that come back end the pause at once."""
    controller = RateController()
    controller.seen([day(1000, 10)], 0.0)
    assert controller.paused_until(0.0) == SHORTEST_LOOK
    controller.seen([day(1000, 900)], 1.0)
    assert controller.paused_until(1.0) is None


def test_budget_as_a_fraction_needs_the_limit() -> None:
    """A fraction of an unknown limit stops nothing; once the limit is known, our calls are held against it."""
    controller = RateController(daily_budget=0.5)
    for _ in range(6):
        controller.sent(0.0)
    assert controller.paused_until(1.0) is None
    controller.seen([day(10, 4)], 1.0)
    pause = controller.pause(1.0)
    assert pause is not None
    assert "our budget of 5 calls a day is used up (6 made)" in pause.reason


def test_budget_comes_back_a_day_later() -> None:
    """Calls leave the count a day after their hour has ended, and sending goes on."""
    controller = RateController(daily_budget=3)
    for second in (0.0, 10.0, 3700.0):
        controller.sent(second)
    until = controller.paused_until(3700.0)
    assert until == SLICE + DAY
    assert controller.paused_until(until) is None
    assert controller.budget.used(until) == 1


@given(st.lists(st.floats(0, 30_000), max_size=60), st.integers(1, 20))
def test_budget_is_never_exceeded_in_any_day(gaps: list[float], calls: int) -> None:
    """Whenever calls are made while the budget allows, no 24 hours hold more of them than the budget."""
    budget = DayBudget(calls)
    now, made = 0.0, []
    for gap in gaps:
        now += gap
        if budget.exhausted_until(now, calls) is None:
            budget.spend(now)
            made.append(now)
    for start in made:
        assert sum(start <= time < start + DAY for time in made) <= calls


@given(st.lists(st.floats(0, 40_000), max_size=30), st.floats(0, 200_000))
def test_budget_survives_a_restart(gaps: list[float], down: float) -> None:
    """What ``spent`` answered, aged by the time the program was down, gives the same count on another clock."""
    budget = DayBudget(100)
    now = 0.0
    for gap in gaps:
        now += gap
        budget.spend(now)
    saved = budget.spent(now)
    again = DayBudget(100, spent=[(age + down, calls) for age, calls in saved], now=5_000_000.0)
    assert abs(again.used(5_000_000.0) - budget.used(now + down)) <= max((c for _, c in saved), default=0)
    if down == 0:
        assert again.used(5_000_000.0) == budget.used(now)
