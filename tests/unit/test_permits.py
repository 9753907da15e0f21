"""Permits, classes and the breaker at the gate, on a virtual event loop; what is kept over a restart."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from cdcsync.apply.breaker import IN_A_ROW, LADDER
from cdcsync.apply.budget import DAY
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.pace_record import KEEP_SECONDS
from cdcsync.apply.rate import RateController
from cdcsync.apply.turns import PRIORITIES, Priority, Turns
from cdcsync.apply.valve import Valve
from cdcsync.errors import BatchRejectedError, DestinationError, RateLimitedError, TransientError
from cdcsync.model import Window
from tests.simulation.virtual import VirtualLoop

UNIX = 1_700_000_000.0

T = TypeVar("T")


def run(monkeypatch: pytest.MonkeyPatch, work: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run something on a virtual loop; asyncio-throttle, which reads the clock by itself, goes by its time."""
    loop = VirtualLoop(0.0, random.Random(1), 0.0)
    monkeypatch.setattr("asyncio_throttle.throttler.time", SimpleNamespace(monotonic=loop.time))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))


def limiter_of(loop: VirtualLoop, controller: RateController, *, since: float = UNIX) -> Limiter:
    """Give a limiter whose Unix time goes with the loop."""
    return Limiter(loop, controller, "crm", clock=lambda: since + loop.time())


async def spend(limiter: Limiter, priority: Priority = "normal") -> None:
    """Take a permit and use it."""
    with await limiter.acquire(priority):
        await limiter.admit()


async def fail(limiter: Limiter) -> None:
    """Let work fail, and a second pass."""
    limiter.failed(TransientError("down"))
    await asyncio.sleep(1)


def test_turns_are_given_by_weight() -> None:
    """Of 70 turns while all wait, 40 are for high, 20 for normal and 10 for low; then first come, first served."""
    turns: Turns[int] = Turns()
    for number in range(100):
        for priority in PRIORITIES:
            turns.add(priority, number)
    given = [turns.take(PRIORITIES) for _ in range(70)]
    assert Counter(priority for priority, _ in given) == {"high": 40, "normal": 20, "low": 10}
    for priority in PRIORITIES:
        numbers = [number for one, number in given if one == priority]
        assert numbers == sorted(numbers)


def test_a_class_that_was_away_saves_up_no_turns() -> None:
    """High work after a long silence overtakes at once, and still leaves the others their part."""
    turns: Turns[int] = Turns()
    for number in range(1000):
        turns.add("low", number)
    for _ in range(900):
        turns.take(PRIORITIES)
    for number in range(100):
        turns.add("high", number)
    given = Counter(turns.take(PRIORITIES)[0] for _ in range(50))
    assert given["high"] == pytest.approx(40, abs=1)
    assert given.total() == 50


def test_the_gate_serves_classes_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute at ten requests a second with endless demand of each class: 4 : 2 : 1."""

    async def work(loop: VirtualLoop) -> Counter[Priority]:
        limiter = limiter_of(loop, RateController(ceiling=10))
        served: Counter[Priority] = Counter()

        async def want(priority: Priority) -> None:
            while loop.time() < 60:
                await spend(limiter, priority)
                served[priority] += 1

        await asyncio.gather(*(want(priority) for priority in PRIORITIES for _ in range(5)))
        return served

    served = run(monkeypatch, work)
    assert served.total() == pytest.approx(600, rel=0.05)
    assert served["high"] / served["low"] == pytest.approx(4, rel=0.15)
    assert served["normal"] / served["low"] == pytest.approx(2, rel=0.15)


def test_high_overtakes_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of a person is next, however long the queue of a copy is."""

    async def work(loop: VirtualLoop) -> float:
        limiter = limiter_of(loop, RateController(ceiling=1))
        copying = [asyncio.create_task(spend(limiter, "low")) for _ in range(100)]
        await asyncio.sleep(10.5)
        before = loop.time()
        await spend(limiter, "high")
        waited = loop.time() - before
        for task in copying:
            task.cancel()
        return waited

    assert run(monkeypatch, work) <= 1.1


def test_the_reserve_of_the_day_is_for_high_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When our share is used up but for its last fiftieth, normal work waits for the next day, and high work goes."""

    async def work(loop: VirtualLoop) -> list[float]:
        limiter = limiter_of(loop, RateController(ceiling=100, daily_budget=100))
        times = []
        for _ in range(98):
            await spend(limiter)
        normal = asyncio.create_task(spend(limiter))
        await asyncio.sleep(1)
        for _ in range(2):
            await spend(limiter, "high")
            times.append(loop.time())
        before = loop.time()
        await normal
        return [*times, before, loop.time()]

    first, second, before, normal = run(monkeypatch, work)
    assert second - first < 1
    assert normal - before > 1_800


def test_a_permit_that_is_not_used_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """There was nothing to send after all: no call counts, and the next one need not wait for the rate."""

    async def work(loop: VirtualLoop) -> tuple[float, int, int]:
        controller = RateController(floor=0.001, ceiling=0.001)
        limiter = limiter_of(loop, controller)
        with await limiter.acquire():
            pass
        assert (limiter.status().requests, controller.budget.used(loop.time())) == (0, 0)
        await spend(limiter)
        return loop.time(), limiter.status().requests, controller.budget.used(loop.time())

    now, requests, used = run(monkeypatch, work)
    assert now < 1
    assert (requests, used) == (1, 1)


def test_who_gives_up_waiting_leaves_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled tasks neither take a turn nor count, also when their turn had just come."""

    async def work(loop: VirtualLoop) -> int:
        controller = RateController(ceiling=4)
        limiter = limiter_of(loop, controller)
        for round_number in range(20):
            tasks = [asyncio.create_task(spend(limiter)) for _ in range(5)]
            await asyncio.sleep(0.01 * round_number)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(spend(limiter), 2)
        assert limiter.status().waiting == 0
        return controller.budget.used(loop.time()) - limiter.status().requests

    assert run(monkeypatch, work) == 0


def test_closing_wakes_who_waits_for_a_permit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane's own tasks end with a TransientError, a cancelled one with its cancellation."""

    async def work(loop: VirtualLoop) -> None:
        limiter = limiter_of(loop, RateController())
        limiter.refused("daily", 3600.0)
        await asyncio.sleep(0)
        waiting, cancelled = (asyncio.create_task(limiter.acquire()) for _ in range(2))
        await asyncio.sleep(1)
        cancelled.cancel()
        await asyncio.sleep(0)
        limiter.close()
        with pytest.raises(TransientError, match="stopping"):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(TransientError, match="stopping"):
            await limiter.acquire()

    run(monkeypatch, work)


def test_five_failures_leave_the_crm_alone_but_for_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the breaker is open nobody gets a permit; then one does, and the others when it has worked."""

    async def work(loop: VirtualLoop) -> tuple[float, list[float]]:
        limiter = limiter_of(loop, RateController(ceiling=100))
        for _ in range(IN_A_ROW):
            await spend(limiter)
            await fail(limiter)
        status, opened = limiter.status(), loop.time() - 1
        assert status.breaker == "open"
        assert status.probe_at == pytest.approx(UNIX + opened + LADDER[0])
        passed = []

        async def ask() -> None:
            with await limiter.acquire():
                passed.append(loop.time())
                await asyncio.sleep(30)  # the answer takes its time
                limiter.worked()

        await asyncio.gather(*(ask() for _ in range(4)))
        assert limiter.status().breaker == "closed"
        return opened, passed

    opened, (probe, *others) = run(monkeypatch, work)
    assert LADDER[0] <= probe - opened <= LADDER[0] + 2
    assert all(time >= probe + 30 for time in others)


@pytest.mark.parametrize(
    "error",
    [
        RateLimitedError("slower", scope="daily"),
        RateLimitedError("no batches", scope="bulk"),
        BatchRejectedError("no such field", reason="INVALID_FIELD"),
    ],
    ids=["daily", "bulk", "content"],
)
def test_what_is_no_failure_of_the_crm_does_not_open_the_breaker(
    monkeypatch: pytest.MonkeyPatch, error: DestinationError
) -> None:
    """A day's quota has its own pause, and a refused content is an answer."""

    async def work(loop: VirtualLoop) -> str:
        limiter = limiter_of(loop, RateController())
        for _ in range(20):
            limiter.failed(error)
            await asyncio.sleep(2)
        return limiter.status().breaker

    assert run(monkeypatch, work) == "closed"


def test_failures_that_were_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight requests in flight that get a 429 do not open the breaker; five such moments in a row do."""

    async def work(loop: VirtualLoop) -> list[str]:
        limiter = limiter_of(loop, RateController())
        words: list[str] = []
        for _ in range(IN_A_ROW):
            for _ in range(8):
                limiter.failed(RateLimitedError("slower"))
            words.append(limiter.status().breaker)
            await asyncio.sleep(5)
        return words

    assert run(monkeypatch, work) == ["closed"] * (IN_A_ROW - 1) + ["open"]


def test_a_probe_whose_error_is_caught_outside_its_permit_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging in, and the steps of bulk jobs, tell of a failure when the permit is gone: still the next rung begins."""

    async def down(limiter: Limiter) -> None:
        with await limiter.acquire():
            raise TransientError("down")

    async def work(loop: VirtualLoop) -> list[float]:
        limiter = limiter_of(loop, RateController(ceiling=100))
        for _ in range(IN_A_ROW):
            await fail(limiter)
        waited = []
        for _ in LADDER:
            before = loop.time()
            try:
                await down(limiter)
            except TransientError as error:
                limiter.failed(error)
            waited.append(loop.time() - before)
        return waited

    for waited, rung in zip(run(monkeypatch, work), LADDER, strict=True):
        assert rung - 2 <= waited <= rung + 2


def test_a_probe_without_an_outcome_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane found no rows for it: the next one may go as the probe at once."""

    async def work(loop: VirtualLoop) -> float:
        limiter = limiter_of(loop, RateController(ceiling=100))
        for _ in range(IN_A_ROW):
            await fail(limiter)
        with await limiter.acquire():
            pass
        before = loop.time()
        with await limiter.acquire():
            return loop.time() - before

    assert run(monkeypatch, work) < 1


def test_limiters_of_one_account_share_rate_day_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables for one org together do not go faster than one, and one's refusal stops both."""

    async def work(loop: VirtualLoop) -> tuple[int, float]:
        controller, valves = RateController(ceiling=10), dict[RateController, Valve]()
        both = [Limiter(loop, controller, name, valves=valves) for name in ("one", "two")]

        async def want(limiter: Limiter) -> None:
            while loop.time() < 30:
                await spend(limiter)

        await asyncio.gather(*map(want, both))
        made = controller.budget.used(loop.time())
        both[0].refused("burst", 50.0)
        before = loop.time()
        await asyncio.sleep(0)
        await spend(both[1])
        return made, loop.time() - before

    made, waited = run(monkeypatch, work)
    assert made == pytest.approx(300, rel=0.05)
    assert waited >= 50


def test_what_is_kept_is_written_rarely_and_only_after_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle limiter writes nothing, a busy one every ten seconds, and a breaker that opened is news."""

    async def work(loop: VirtualLoop) -> None:
        limiter = limiter_of(loop, RateController(ceiling=10))
        await asyncio.sleep(100)
        assert limiter.keep() is None
        await spend(limiter)
        assert limiter.unkept
        assert limiter.keep() is not None
        await spend(limiter)
        assert limiter.keep() is None
        await asyncio.sleep(KEEP_SECONDS)
        assert limiter.keep() is not None
        await asyncio.sleep(KEEP_SECONDS)
        assert limiter.keep() is None
        await fail(limiter)
        assert json.loads(limiter.keep() or "")["breaker"]["failures"] == 1

    run(monkeypatch, work)


@pytest.mark.parametrize(("down", "used"), [(60.0, 30), (DAY / 2, 30), (DAY + 1000, 0)])
def test_calls_and_breaker_survive_a_restart(monkeypatch: pytest.MonkeyPatch, down: float, used: int) -> None:
    """The day's calls age by the time between, and the breaker stands where it stood."""

    async def before(loop: VirtualLoop) -> str:
        limiter = limiter_of(loop, RateController(ceiling=10, daily_budget=0.6, rolling_day=True))
        for _ in range(30):
            await spend(limiter)
        limiter.seen([Window("daily", 1000, 900, DAY)])
        await asyncio.sleep(KEEP_SECONDS)
        for _ in range(IN_A_ROW):
            await fail(limiter)
        return limiter.keep() or ""

    async def after(loop: VirtualLoop) -> tuple[int, float | None]:
        controller = RateController(daily_budget=0.6, rolling_day=True)
        limiter = limiter_of(loop, controller, since=UNIX + down)
        limiter.restore(kept)
        assert not limiter.unkept
        return controller.budget.used(loop.time()), limiter.status().probe_at

    kept = run(monkeypatch, before)
    count, probe_at = run(monkeypatch, after)
    assert count == used
    assert (probe_at is None) == (down > LADDER[0] + KEEP_SECONDS + 10)


def test_what_another_version_kept_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that is not ours means nothing to us; the count begins anew."""

    async def work(loop: VirtualLoop) -> str:
        limiter = limiter_of(loop, RateController())
        limiter.restore('{"format": 99, "day": "?"}')
        return limiter.status().breaker

    assert run(monkeypatch, work) == "closed"


def test_limiters_of_one_account_take_a_count_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written the same calls down: they are counted once, as they were written last."""

    async def work(loop: VirtualLoop) -> int:
        controller = RateController(ceiling=10)
        first = limiter_of(loop, controller)
        for _ in range(5):
            await spend(first)
        old = first.keep() or ""
        await asyncio.sleep(KEEP_SECONDS)
        await spend(first)
        new = first.keep() or ""
        shared, valves = RateController(), dict[RateController, Valve]()
        one, two = (Limiter(loop, shared, name, valves=valves, clock=lambda: UNIX + 99) for name in ("one", "two"))
        one.restore(new)
        two.restore(old)
        return shared.budget.used(loop.time())

    assert run(monkeypatch, work) == 6
