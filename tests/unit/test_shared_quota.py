"""A day's quota on a virtual clock, shared with a competing consumer: the acceptance test of the adaptive limiting.

The vendors' side is the sandbox's own (pure) quota model; answers take a while, and several are under way.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from cdcsync.apply.account import RESERVE
from cdcsync.apply.budget import DAY
from cdcsync.apply.hubspot_answers import windows as hubspot_windows
from cdcsync.apply.rate import RateController
from cdcsync.apply.salesforce_session import windows as salesforce_windows
from cdcsync.model import Window
from cdcsync.sandbox.hubspot_quotas import Limits, Quotas
from cdcsync.sandbox.salesforce_quota import Quota

HOUR = 3_600.0
PARALLEL = 5
DAILY = 8_000
SHARE = 0.6

Competitor = Iterator[float]
"""The times of somebody else's requests."""


@dataclass
class Books:
    """What an account counted: our requests and the others' by day, and our refusals by policy."""

    ours: dict[int, int] = field(default_factory=dict)
    others: dict[int, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    by_hour: Counter[int] = field(default_factory=Counter)
    others_refused_daily: int = 0
    sent: int = 0


class Portal:
    """A HubSpot account: ten seconds per app (the competitor uses ours), a day from midnight to midnight."""

    rolling = False

    def __init__(self, daily: int, offset: float) -> None:
        self.quotas = Quotas()
        self.quotas.limits = Limits(ten_secondly=100, daily=daily, utc_offset=offset)
        self.offset = offset * HOUR

    def request(self, now: float) -> tuple[str | None, list[Window]]:
        """Take one request; tell the policy that refuses it, and what the headers show."""
        admission = self.quotas.admit("app", now, search=False, oauth=False)
        policy = {"DAILY": "daily", "TEN_SECONDLY_ROLLING": "burst", None: None}[admission.refused_by]
        return policy, hubspot_windows(admission.headers)

    def day(self, now: float) -> int:
        """Return the number of the account's day."""
        return int((now + self.offset) // DAY)


class Org:
    """A Salesforce org: a rolling day, and no other limit on the number of requests."""

    rolling = True

    def __init__(self, daily: int) -> None:
        self.quota = Quota({"daily": daily, "day_seconds": DAY}, "daily")

    def request(self, now: float) -> tuple[str | None, list[Window]]:
        """Take one request; a refused one is not counted, and shows nothing."""
        if not self.quota.take(now):
            return "daily", []
        usage = f"api-usage={self.quota.used(now)}/{self.quota.limit}"
        return None, salesforce_windows({"Sforce-Limit-Info": usage})

    def day(self, now: float) -> int:
        """Return the number of the day since the start: any 24 hours would do."""
        return int(now // DAY)


def steady(dice: random.Random, calls_a_day: float) -> Competitor:
    """Send at an even pace, with some noise."""
    now = 0.0
    while True:
        now += dice.expovariate(calls_a_day / DAY)
        yield now


def bursty(dice: random.Random, calls_a_day: float) -> Competitor:
    """Send 60 requests within three seconds, again and again."""
    now = 0.0
    while True:
        now += dice.uniform(0.5, 1.5) * 60 * DAY / calls_a_day
        yield from (now + 0.05 * number for number in range(60))


def rush(dice: random.Random, calls_a_day: float) -> Competitor:
    """Do little but for one hour of each day, from the second on: a nightly job of somebody else."""
    hour = dice.uniform(1, 22)
    for day in itertools.count():
        start = day * DAY + hour * HOUR
        quiet = sorted(dice.uniform(day * DAY, (day + 1) * DAY) for _ in range(int(calls_a_day * 0.1)))
        busy = [start + HOUR * number / (calls_a_day * 0.9) for number in range(int(calls_a_day * 0.9) if day else 0)]
        yield from sorted(quiet + busy)


class World:
    """Events in order of time: somebody else's requests, ours, and the answers to ours, 50 to 400 ms later."""

    def __init__(self, account: Portal | Org, controller: RateController, dice: random.Random) -> None:
        self.account = account
        self.controller = controller
        self.books = Books()
        self._dice = dice
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._flying = 0
        self._next = 0.0

    def at(self, time: float, act: Callable[[float], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (time, next(self._order), act))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events[0][0] <= until:
            now, _, act = heapq.heappop(self._events)
            act(now)

    def compete(self, competitor: Competitor) -> None:
        """Let somebody else use the account."""

        def one(now: float) -> None:
            policy, _ = self.account.request(now)
            day = self.account.day(now)
            self.books.others[day] = self.books.others.get(day, 0) + 1
            self.books.others_refused_daily += policy == "daily"
            self.at(next(competitor), one)

        self.at(next(competitor), one)

    def want(self, now: float) -> None:
        """Send as fast as the controller lets us, for ever."""
        ready = max(self.controller.ready(now), self._next)
        if ready <= now and self._flying < min(PARALLEL, self.controller.parallel):
            self._send(now)
            ready = max(self.controller.ready(now), self._next)
        self.at(min(max(ready, now + 0.02), now + 60), self.want)

    def _send(self, now: float) -> None:
        policy, shown = self.account.request(now)
        self.controller.sent(now)
        self.books.ours[self.account.day(now)] = self.books.ours.get(self.account.day(now), 0) + 1
        self.books.by_hour[int(now // HOUR)] += 1
        self.books.sent += 1
        if policy is not None:
            self.books.refused[policy] = self.books.refused.get(policy, 0) + 1
        self._flying += 1
        self._next = now + 1 / self.controller.rate
        self.at(now + self._dice.uniform(0.05, 0.4), lambda then: self._answered(policy, shown, then))

    def _answered(self, policy: str | None, shown: list[Window], now: float) -> None:
        self._flying -= 1
        if policy is not None:
            self.controller.refused(policy, None, now)
        self.controller.seen(shown, now)
        if policy is None:
            self.controller.ok(now)


def live(
    account: Portal | Org, controller: RateController, competitor: Competitor, days: float, dice: random.Random
) -> Books:
    """Send as fast as the controller lets us, beside the competitor."""
    world = World(account, controller, dice)
    world.compete(competitor)
    world.at(0.0, world.want)
    world.run(days * DAY)
    return world.books


def controller_for(account: Portal | Org) -> RateController:
    """Give the controller that the daemon would use."""
    return RateController(ceiling=19, daily_budget=SHARE, rolling_day=account.rolling, parallel=PARALLEL)


def account_of(kind: str, dice: random.Random, daily: int = DAILY) -> Portal | Org:
    """Give an account; HubSpot's day begins at the hour of its time zone, ours somewhere within it."""
    return Portal(daily, dice.choice([-8, 0, 5.5])) if kind == "hubspot" else Org(daily)


def check_shares(books: Books, least: float) -> None:
    """See that on every whole day we used what was allowed: our share, or what others left above the reserve."""
    for day in sorted(books.ours)[1:-1]:
        allowed = min(SHARE * DAILY, DAILY * (1 - RESERVE) - books.others[day])
        assert books.ours[day] >= least * allowed, f"day {day}: {books.ours[day]} of {allowed:.0f}"


@pytest.mark.parametrize("competitor", [steady, bursty, rush])
@pytest.mark.parametrize("kind", ["hubspot", "salesforce"])
@pytest.mark.parametrize("seed", range(2))
def test_the_day_is_used_and_never_used_up(
    kind: str, competitor: Callable[[random.Random, float], Competitor], seed: int
) -> None:
    """Beside others within what our share leaves: 95 % of it is used, nobody meets the daily limit, next to no 429."""
    dice = random.Random(f"{kind} {competitor.__name__} {seed}")
    account = account_of(kind, dice)
    books = live(account, controller_for(account), competitor(dice, 0.3 * DAILY), 3.0, dice)
    check_shares(books, 0.95)
    assert books.refused.get("daily", 0) == books.others_refused_daily == 0
    assert books.refused.get("burst", 0) < 0.01 * books.sent


@pytest.mark.parametrize("competitor", [steady, bursty])
@pytest.mark.parametrize("kind", ["hubspot", "salesforce"])
@pytest.mark.parametrize("seed", range(2))
def test_others_who_need_more_than_we_leave_get_it(
    kind: str, competitor: Callable[[random.Random, float], Competitor], seed: int
) -> None:
    """Half of the account's day is others': we make do with less than our share, and nobody meets the daily limit."""
    dice = random.Random(f"{kind} {competitor.__name__} {seed} more")
    account = account_of(kind, dice)
    books = live(account, controller_for(account), competitor(dice, 0.5 * DAILY), 3.0, dice)
    check_shares(books, 0.9)
    assert books.refused.get("daily", 0) == books.others_refused_daily == 0
    assert books.refused.get("burst", 0) < 0.01 * books.sent


@pytest.mark.parametrize("seed", range(2))
def test_the_first_day_of_an_account_is_used_too(seed: int) -> None:
    """Before a midnight was seen the day is taken to last no longer than 24 hours from the start."""
    dice = random.Random(seed)
    books = live(Portal(DAILY, 0), controller_for(Portal(DAILY, 0)), steady(dice, 0.3 * DAILY), 1.0, dice)
    assert books.ours[0] >= 0.95 * SHARE * DAILY
    assert not books.refused.get("daily")
    assert not books.others_refused_daily


@pytest.mark.parametrize("kind", ["hubspot", "salesforce"])
def test_there_is_no_silence_after_a_busy_start(kind: str) -> None:
    """With endless demand the first half goes fast, and the rest lasts: no hour of three days is without a call."""
    dice = random.Random(kind)
    account = account_of(kind, dice)
    books = live(account, controller_for(account), steady(dice, 0.3 * DAILY), 3.0, dice)
    assert all(books.by_hour[hour] >= 10 for hour in range(71))
    assert books.by_hour[0] >= 0.45 * SHARE * DAILY


@pytest.mark.parametrize("others_a_second", [1, 3, 5])
def test_the_ten_second_window_is_shared(others_a_second: float) -> None:
    """An hour in which the window, and not the day, is contested: most of what is left is used, hardly any refused."""
    dice = random.Random(others_a_second)
    account = Portal(10**8, 0)
    books = live(account, controller_for(account), steady(dice, others_a_second * DAY), 1 / 24, dice)
    assert books.refused.get("burst", 0) < 0.01 * books.sent
    assert books.sent / HOUR >= 0.6 * (9 - others_a_second)
