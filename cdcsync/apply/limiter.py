"""The gate in front of a CRM: worker threads wait here, on the lane's event loop, for their turn to send a request.

``rate.RateController`` decides, asyncio-throttle's ``Throttler`` acts: it lets ``rate_limit`` requests pass in any
``period``, and must have a rate limit of at least 1, so a slow rate becomes a long period. The controller is only
touched on the event loop: reports from threads are posted to it in order, so a refusal that a thread reports is in
force when that thread comes back for the next request.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Final

from asyncio_throttle.throttler import Throttler

from cdcsync.apply.budget import DAY
from cdcsync.apply.rate import RateController
from cdcsync.errors import TransientError
from cdcsync.model import Window
from cdcsync.status import Quota

BURST_SECONDS: Final = 0.25
"""Requests of this time may go at once; the rest of a second is spread."""
SLOWEST_POLL: Final = 0.05
FASTEST_POLL: Final = 0.005
PAUSE_POLL: Final = 1.0
"""A pause may end early (another answer shows that the account has calls left again), so look once a second."""


@dataclass(frozen=True, slots=True)
class GateStatus:
    """What a limiter does right now. ``rate`` in requests a second, ``paused_for`` in seconds from now."""

    name: str
    rate: float
    ceiling: float
    parallel: int
    requests: int
    waiting: int
    paused_for: float | None
    reason: str
    quotas: tuple[Quota, ...]


class _Valve:
    """One controller with its actuator. ``turn`` makes waiting first come, first served, with a single poller."""

    def __init__(self, controller: RateController) -> None:
        self.controller = controller
        self.turn = asyncio.Lock()
        self.throttler = Throttler(rate_limit=1)
        self.tune()

    def tune(self) -> None:
        """Set the throttler to the controller's rate."""
        rate = self.controller.rate
        self.throttler.rate_limit = max(1, int(rate * BURST_SECONDS))
        self.throttler.period = self.throttler.rate_limit / rate
        self.throttler.retry_interval = min(SLOWEST_POLL, max(FASTEST_POLL, 0.25 / rate))

    async def acquire(self, clock: Callable[[], float]) -> None:
        """Wait out pauses and the rate, then count one request."""
        async with self.turn:
            while True:
                pause = self.controller.pause(clock())
                if pause is not None:
                    await asyncio.sleep(min(PAUSE_POLL, pause.until - clock()))
                    continue
                await self.throttler.acquire()  # type: ignore[no-untyped-call]  # it has no annotations
                if self.controller.pause(clock()) is None:
                    break
            self.controller.sent(clock())


class Limiter:
    """Implements ``apply.base.Gate``: ``wait``, ``seen`` and ``refused`` may be called from any thread but the loop's.

    ``apart`` gives scopes with a quota of their own (HubSpot's ``search``) a controller of their own. While
    ``obstacle`` gives a reason against sending, nobody is let in.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        controller: RateController,
        name: str,
        *,
        apart: Mapping[str, RateController] | None = None,
        obstacle: Callable[[], str] = str,
    ) -> None:
        self.name = name
        self._obstacle = obstacle
        self._loop = loop
        self._main = _Valve(controller)
        self._apart = {scope: _Valve(own) for scope, own in (apart or {}).items()}
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()
        self._closed = False
        self._requests = 0

    @property
    def parallel(self) -> int:
        """How many requests the lane should have under way at once."""
        return self._main.controller.parallel

    def wait(self, scope: str = "burst") -> None:
        """Block until one request may be sent. Raises TransientError when the limiter is closed, also meanwhile."""
        turn = self._queue(self._valve(scope))
        try:
            turn.result()
        except CancelledError:
            raise self._stopping() from None
        finally:
            with self._lock:
                self._waiting.discard(turn)

    def seen(self, windows: Sequence[Window]) -> None:
        """Report the quotas that an answer showed (none: just that it was no refusal)."""
        self._post(lambda: self._see(tuple(windows)))

    def refused(self, scope: str, retry_after: float | None) -> None:
        """Report a refusal for rate or quota."""
        self._post(lambda: self._refuse(scope, retry_after))

    def close(self) -> None:
        """Wake everyone who waits, with an error; let nobody in. May be called from any thread, and twice."""
        with self._lock:
            self._closed = True
            waiting = tuple(self._waiting)
        for turn in waiting:
            turn.cancel()

    def status(self) -> GateStatus:
        """Tell what the limiter does now. To be called on the loop."""
        now, controller = self._loop.time(), self._main.controller
        pause = controller.pause(now)
        return GateStatus(
            name=self.name,
            rate=controller.rate,
            ceiling=controller.ceiling,
            parallel=controller.parallel,
            requests=self._requests,
            waiting=len(self._waiting),
            paused_for=pause.until - now if pause else None,
            reason=pause.reason if pause else self._obstacle(),
            quotas=tuple(_quota(window, controller) for window in controller.windows),
        )

    def _queue(self, valve: _Valve) -> Future[None]:
        with self._lock:
            if self._closed or self._loop.is_closed():
                raise self._stopping()
            turn = asyncio.run_coroutine_threadsafe(self._acquire(valve), self._loop)
            self._waiting.add(turn)
        return turn

    async def _acquire(self, valve: _Valve) -> None:
        await valve.acquire(self._loop.time)
        while self._obstacle():  # noqa: ASYNC110 — that time has passed is no event
            await asyncio.sleep(SLOWEST_POLL)
        self._requests += 1

    def _see(self, windows: Sequence[Window]) -> None:
        now = self._loop.time()
        self._main.controller.seen(windows, now)
        self._main.controller.ok(now)
        self._main.tune()
        for valve in self._apart.values():  # their quotas are never shown: time without a refusal has to do
            valve.controller.ok(now)
            valve.tune()

    def _refuse(self, scope: str, retry_after: float | None) -> None:
        valve = self._valve(scope)
        valve.controller.refused(scope, retry_after, self._loop.time())
        valve.tune()

    def _valve(self, scope: str) -> _Valve:
        return self._apart.get(scope, self._main)

    def _post(self, report: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(report)

    def _stopping(self) -> TransientError:
        return TransientError(f"{self.name}: no more requests, the lane is stopping")


def _quota(window: Window, controller: RateController) -> Quota:
    budget = controller.budget.calls if window.seconds >= DAY else None
    return Quota(
        name=window.name, seconds=window.seconds, limit=window.limit, remaining=window.remaining, budget=budget
    )
