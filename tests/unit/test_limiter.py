"""The limiter: threads at the gate, the loop behind it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cdcsync.apply.limiter import GateStatus, Limiter
from cdcsync.apply.rate import RateController
from cdcsync.errors import TransientError
from cdcsync.model import Window


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def call(self, action: Callable[[], object]) -> object:
        """Run something on the loop and return what it answers."""

        async def run() -> object:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def stop(self) -> None:
        """Cancel what waits, as ``asyncio.run`` does, and close the loop."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def running() -> Iterator[LoopThread]:
    """Give a running loop and stop it afterwards."""
    thread = LoopThread()
    yield thread
    if not thread.loop.is_closed():
        thread.stop()


def until(condition: Callable[[], bool]) -> None:
    """Poll for a condition, for 10 s at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def test_first_request_passes_without_polling(running: LoopThread) -> None:
    """An idle gate is open: even at one request in a quarter of an hour the first one needs no wait."""
    limiter = Limiter(running.loop, RateController(floor=0.001, ceiling=0.001), "hubspot")
    limiter.wait()
    status = limiter.status()
    assert (status.requests, status.paused_for) == (1, None)


def test_threads_share_one_rate(running: LoopThread) -> None:
    """Requests of eight threads never come faster than the rate allows, and all pass in the end."""
    limiter = Limiter(running.loop, RateController(ceiling=100), "hubspot")
    before = time.monotonic()

    def work() -> None:
        for _ in range(10):
            limiter.wait()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
    assert limiter.status().requests == 80
    # 25 in any quarter of a second: the 80th cannot pass before the third quarter is over.
    assert time.monotonic() - before >= 0.75


def test_a_refusal_holds_for_the_next_request_of_the_thread(running: LoopThread) -> None:
    """Reports and requests of a thread keep their order: after ``refused`` the same thread has to wait."""
    limiter = Limiter(running.loop, RateController(ceiling=1000), "hubspot")
    limiter.wait()
    before = time.monotonic()
    limiter.refused("burst", 0.3)
    limiter.wait()
    assert time.monotonic() - before >= 0.3


def test_a_pause_is_visible(running: LoopThread) -> None:
    """The status shows rate, quotas with our budget, who waits, and until when and why nothing is sent."""
    limiter = Limiter(running.loop, RateController(ceiling=100, daily_budget=0.6), "hubspot")
    limiter.seen([Window("10 s", 190, 189, 10.0), Window("day", 1000, 800, 86_400.0)])
    limiter.refused("daily", 500.0)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(limiter.wait)
        until(lambda: limiter.status().waiting == 1)
        status = running.call(limiter.status)  # on the loop, behind what was reported to it
        assert isinstance(status, GateStatus)
        assert status.rate == pytest.approx(17.1)
        assert status.paused_for is not None
        assert 400 < status.paused_for <= 500
        assert "daily limit" in status.reason
        assert [(quota.name, quota.budget) for quota in status.quotas] == [("10 s", None), ("day", 600)]
        limiter.close()
        with pytest.raises(TransientError):
            waiter.result(10)


def test_close_wakes_all_who_wait(running: LoopThread) -> None:
    """A stop does not hang on threads at the gate: they get a TransientError, and so does who comes later."""
    controller = RateController(ceiling=100)
    limiter = Limiter(running.loop, controller, "hubspot")
    limiter.refused("daily", 3600.0)
    with ThreadPoolExecutor(4) as pool:
        waiters = [pool.submit(limiter.wait) for _ in range(4)]
        until(lambda: limiter.status().waiting == 4)
        limiter.close()
        for waiter in waiters:
            with pytest.raises(TransientError, match="stopping"):
                waiter.result(10)
    with pytest.raises(TransientError, match="stopping"):
        limiter.wait()
    assert limiter.status().waiting == 0


def test_a_loop_that_ends_wakes_all_who_wait(running: LoopThread) -> None:
    """Also without ``close``, a loop that cancels its tasks and ends leaves no thread behind."""
    limiter = Limiter(running.loop, RateController(), "hubspot")
    limiter.refused("daily", 3600.0)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(limiter.wait)
        until(lambda: limiter.status().waiting == 1)
        running.stop()
        with pytest.raises(TransientError):
            waiter.result(10)
    with pytest.raises(TransientError):
        limiter.wait()
    limiter.seen([])
    limiter.refused("burst", None)


def test_search_has_its_own_quota(running: LoopThread) -> None:
    """A refused search does not slow writes down, and the other way round."""
    search = RateController(ceiling=4)
    limiter = Limiter(running.loop, RateController(ceiling=100), "hubspot", apart={"search": search})
    limiter.refused("search", 3600.0)
    limiter.wait()
    assert (limiter.status().rate, search.rate) == (100, 2)


def test_a_changed_rate_reaches_those_who_wait_already(running: LoopThread) -> None:
    """A changed rate is in force at once, for a waiting thread too."""
    controller = RateController(floor=0.001, ceiling=1000, initial=0.001)
    limiter = Limiter(running.loop, controller, "hubspot")
    limiter.wait()
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(limiter.wait)
        until(lambda: limiter.status().waiting == 1)
        limiter.seen([Window("10 s", 10_000, 9_999, 10.0)])
        waiter.result(10)
    assert limiter.status().requests == 2


def test_nobody_is_let_in_while_sending_is_not_allowed(running: LoopThread) -> None:
    """A thread at the gate waits, the status says why, and it goes when sending is allowed again."""
    allowed = threading.Event()
    limiter = Limiter(
        running.loop, RateController(ceiling=50), "crm", obstacle=lambda: "" if allowed.is_set() else "not now"
    )
    waiting = threading.Thread(target=limiter.wait)
    waiting.start()
    until(lambda: running.call(lambda: limiter.status().waiting) == 1)
    assert running.call(lambda: limiter.status().reason) == "not now"
    assert running.call(lambda: limiter.status().requests) == 0
    assert waiting.is_alive()
    allowed.set()
    waiting.join(10)
    assert running.call(lambda: limiter.status().requests) == 1


def within(running: LoopThread, limiter: Limiter, *work: Callable[[], object]) -> Future[None]:
    """Take a permit on the loop, and do work within it, one piece after the other, in threads."""

    async def run() -> None:
        with await limiter.acquire():
            for piece in work:
                await asyncio.to_thread(piece)

    return asyncio.run_coroutine_threadsafe(run(), running.loop)


def test_a_permit_pays_for_the_first_request_of_its_work(running: LoopThread) -> None:
    """The adapter's first request goes at once, on a gate that is open every quarter of an hour; the next waits."""
    limiter = Limiter(running.loop, RateController(floor=0.001, ceiling=0.001), "hubspot")
    sending = within(running, limiter, limiter.wait, limiter.wait)
    until(lambda: running.call(lambda: limiter.status().waiting) == 1)
    assert running.call(lambda: limiter.status().requests) == 1
    limiter.close()
    with pytest.raises(TransientError):
        sending.result(10)
    assert running.call(lambda: limiter.status().requests) == 1


def test_work_without_a_request_leaves_the_permit_unused(running: LoopThread) -> None:
    """Rows that need no request after all cost none, and threads of other work have no part in a permit."""
    controller = RateController(ceiling=100)
    limiter = Limiter(running.loop, controller, "hubspot")
    begun, go = threading.Event(), threading.Event()
    working = within(running, limiter, begun.set, go.wait)
    assert begun.wait(10)
    limiter.wait()
    go.set()
    working.result(10)
    assert running.call(lambda: limiter.status().requests) == 1
    assert controller.budget.used(running.loop.time()) == 1


def test_a_permit_does_not_overrule_a_later_refusal(running: LoopThread) -> None:
    """Another request was refused since it was given: its request waits like any other."""
    limiter = Limiter(running.loop, RateController(ceiling=1000), "hubspot")
    before = time.monotonic()
    within(running, limiter, lambda: limiter.refused("burst", 0.3), limiter.wait).result(10)
    assert time.monotonic() - before >= 0.3


def test_a_permit_waits_for_what_hinders_sending(running: LoopThread) -> None:
    """The state file may have become another daemon's since it was given."""
    hindered = threading.Event()
    limiter = Limiter(
        running.loop, RateController(ceiling=50), "crm", obstacle=lambda: "not now" if hindered.is_set() else ""
    )
    sending = within(running, limiter, hindered.set, limiter.wait)
    until(hindered.is_set)  # the permit is there; before that, who waits is who asks for it
    until(lambda: running.call(lambda: limiter.status().waiting) == 1)
    assert not sending.done()
    hindered.clear()
    sending.result(10)


def test_time_outs_lower_parallelism_once_for_all_that_were_together(running: LoopThread) -> None:
    """Five requests that run into a time-out together halve the number at once, not to one."""
    limiter = Limiter(running.loop, RateController(parallel=8), "crm")
    for _ in range(5):
        running.call(limiter.overloaded)
    assert limiter.parallel == 4


def test_bulk_batches_are_a_quota_of_their_own(running: LoopThread) -> None:
    """Without batches left no job should begin, and requests go on; before, they are spaced as a day's calls are."""
    batches = RateController(daily_budget=0.5, rolling_day=True)
    batches.budget.learn(100)
    limiter = Limiter(running.loop, RateController(ceiling=50), "crm", apart={"bulk": batches})
    assert running.call(lambda: limiter.has_room("bulk"))
    limiter.spent("bulk", 20)
    assert running.call(lambda: limiter.has_room("bulk"))
    limiter.spent("bulk", 20)
    assert not running.call(lambda: limiter.has_room("bulk"))
    limiter.refused("bulk", None)
    assert running.call(lambda: limiter.has_room("burst"))
    limiter.wait()
