"""One metered quota with its actuator: who waits, whose turn it is, and when the next request goes.

``rate.RateController`` decides, asyncio-throttle's ``Throttler`` acts: it lets ``rate_limit`` requests pass in any
``period``, and must have a rate limit of at least 1, so a slow rate becomes a long period. Several limiters may share
a valve, where their CRM tables lead to one account. Everything here happens on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from asyncio_throttle.throttler import Throttler

from cdcsync.apply.rate import RateController
from cdcsync.apply.turns import Priority, Turns

BURST_SECONDS: Final = 0.25
"""Requests of this time may go at once; the rest of a second is spread."""
SLOWEST_POLL: Final = 0.05
FASTEST_POLL: Final = 0.005
POLL_PART: Final = 0.1
"""Of the time between two requests: what is lost by looking too late."""
PAUSE_POLL: Final = 1.0
"""A pause may end early (another answer shows that the account has calls left again), so look once a second."""


class Valve:
    """Lets requests in one by one: urgent ones first, at the controller's rate, and not during its pauses."""

    def __init__(self, controller: RateController, loop: asyncio.AbstractEventLoop) -> None:
        self.controller = controller
        self.sent = 0
        """Requests that were let in."""
        self.restored = float("-inf")
        """Unix time of the latest count that was taken up from before a restart."""
        self._loop = loop
        self._turns: Turns[asyncio.Future[None]] = Turns()
        self._usher: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._unused: list[float] = []
        """Until when each passage counts that the throttler gave and nobody used."""
        self._throttler = Throttler(rate_limit=1)
        self.tune()

    def tune(self) -> None:
        """Take over the controller's rate, and look again who may go."""
        rate, throttler = self.controller.rate, self._throttler
        throttler.rate_limit = max(1, int(rate * BURST_SECONDS))
        throttler.period = throttler.rate_limit / rate
        throttler.retry_interval = min(SLOWEST_POLL, max(FASTEST_POLL, POLL_PART / rate))
        self._news.set()

    async def acquire(self, priority: Priority) -> None:
        """Wait for a turn, and count one request."""
        waiter = self._loop.create_future()
        self._turns.add(priority, waiter)
        self._news.set()
        if self._usher is None or self._usher.done():
            self._usher = self._loop.create_task(self._let_in())
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                self._turns.remove(priority, waiter)
            else:
                self.give_back()
            raise

    def count(self, units: int) -> None:
        """Count what was used without waiting here."""
        for _ in range(units):
            self.controller.sent(self._loop.time())
        self.sent += units

    def give_back(self) -> None:
        """Return a request that was let in and not sent; the next one goes in its place."""
        self.controller.give_back()
        self.sent -= 1
        self._keep_passage()

    async def _let_in(self) -> None:
        """Let one after the other in, until nobody waits."""
        try:
            while self._turns:
                await self._let_one_in()
        except BaseException as error:
            for waiter in self._turns.clear():
                if isinstance(error, Exception):
                    waiter.set_exception(error)
                else:
                    waiter.cancel()
            raise

    async def _let_one_in(self) -> None:
        now = self._loop.time()
        ready = min(self._ready(priority, now) for priority in self._turns.waiting)
        if ready > now:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(PAUSE_POLL, ready - now)):
                    await self._news.wait()
            return
        await self._passage()
        among = self._open()  # a refusal may have come meanwhile, and who waited may be gone
        if not among:
            self._keep_passage()
            return
        priority, waiter = self._turns.take(among)
        if waiter.cancelled():
            self._keep_passage()
            return
        self.controller.sent(self._loop.time(), urgent=priority == "high")
        self.sent += 1
        waiter.set_result(None)

    def _open(self) -> list[Priority]:
        """List the classes of which somebody waits who may go now."""
        now = self._loop.time()
        return [priority for priority in self._turns.waiting if self._ready(priority, now) <= now]

    def _ready(self, priority: Priority, now: float) -> float:
        return self.controller.ready(now, urgent=priority == "high")

    async def _passage(self) -> None:
        now = self._loop.time()
        while self._unused:
            if self._unused.pop() > now:
                return
        await self._throttler.acquire()  # type: ignore[no-untyped-call]  # it has no annotations

    def _keep_passage(self) -> None:
        self._unused.append(self._loop.time() + self._throttler.period)
