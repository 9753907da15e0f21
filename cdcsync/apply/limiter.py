"""The gate in front of a CRM: whoever sends a request waits here, on the lane's event loop, for his turn.

Two ways lead through it:

* ``permit = await limiter.acquire(priority)`` on the loop, before rows are taken: they fold on while the lane waits,
  and go at once when its turn has come. ``with permit:`` the first request of its scope is paid for, also in a thread
  that works in a copy of the context; if there is none, the permit is returned.
* ``limiter.wait()`` in a thread, for every request: adapters call it as ``apply.base.Gate``. ``await limiter.admit()``
  is the same on the loop.

Waiting is by class, ``high``, ``normal``, ``low``, and first come, first served within a class (``turns``). The breaker
stands before ``acquire`` only: a request of work that was let in is never held by it. What became of work is told by
``worked`` and ``failed``.

``rate.RateController`` decides, ``valve.Valve`` acts. Both are only touched on the event loop: reports from threads are
posted to it in order, so a refusal that a thread reports is in force when that thread comes back for the next request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Final

from cdcsync.apply.breaker import Breaker, BreakerWord
from cdcsync.apply.budget import DAY
from cdcsync.apply.pace_record import PaceRecord
from cdcsync.apply.permit import Permit
from cdcsync.apply.rate import DAILY_SCOPES, RateController
from cdcsync.apply.turns import Priority
from cdcsync.apply.valve import PAUSE_POLL, SLOWEST_POLL, Valve
from cdcsync.errors import BatchRejectedError, DestinationError, RateLimitedError, TransientError
from cdcsync.model import Window
from cdcsync.status import Quota

TOGETHER: Final = 1.0
"""Seconds after a failure in which others are those of requests that were under way with it."""


@dataclass(frozen=True, slots=True)
class GateStatus:
    """What a limiter does right now. ``rate`` in requests a second, ``paused_for`` in seconds from now.

    ``probe_at`` is the Unix time of the breaker's next probe while it is open, ``lasts_until`` that at which the day's
    calls will run out at the present pace.
    """

    name: str
    rate: float
    ceiling: float
    parallel: int
    requests: int
    waiting: int
    paused_for: float | None
    reason: str
    quotas: tuple[Quota, ...]
    breaker: BreakerWord
    probe_at: float | None
    lasts_until: float | None


class Limiter:
    """Implements ``apply.base.Gate``: ``wait``, ``seen`` and ``refused`` may be called from any thread but the loop's.

    ``apart`` gives scopes with a quota of their own (HubSpot's ``search``, Salesforce's ``bulk``) a controller of their
    own. Limiters given the same ``valves`` share what they have for a controller that they have in common. While
    ``obstacle`` gives a reason against sending, nobody is let in. ``clock`` is Unix time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        controller: RateController,
        name: str,
        *,
        apart: Mapping[str, RateController] | None = None,
        valves: dict[RateController, Valve] | None = None,
        obstacle: Callable[[], str] = str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        valves = {} if valves is None else valves
        self.name = name
        self._obstacle = obstacle
        self._loop = loop
        self._clock = clock
        self._main = valves.setdefault(controller, Valve(controller, loop))
        self._apart = {scope: valves.setdefault(own, Valve(own, loop)) for scope, own in (apart or {}).items()}
        self._breaker = Breaker()
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()
        self._inside: set[asyncio.Task[Permit]] = set()
        self._closed = False
        self._requests = 0
        self._failed_at = float("-inf")
        self._record = PaceRecord(self._main, self._apart, self._breaker, loop.time, clock)

    @property
    def parallel(self) -> int:
        """How many requests the lane should have under way at once."""
        return self._main.controller.parallel

    @property
    def open_in(self) -> float:
        """Seconds until the breaker lets a request pass again; 0 if it does."""
        until = self._breaker.until(self._clock())
        return 0.0 if until is None else max(0.0, until - self._clock())

    # --- on the loop

    async def acquire(self, priority: Priority = "normal", scope: str = "burst") -> Permit:
        """Wait until one request may be sent, behind the breaker. Raises TransientError when the limiter is closed."""
        self._refuse_if_closed()
        inside = self._loop.create_task(self._permit(priority, self._valve(scope)))
        self._inside.add(inside)
        try:
            return await inside
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # it was not us that somebody wants to end
                self._refuse_if_closed()
            raise
        finally:
            self._inside.discard(inside)

    async def admit(self, scope: str = "burst") -> None:
        """Wait until one request may be sent, as ``wait`` does in a thread. Raises TransientError when closed."""
        self._refuse_if_closed()
        await self._admit(self._valve(scope), Permit.present())

    def worked(self) -> None:
        """Take note that work went through: the CRM works."""
        self._breaker.ok()

    def failed(self, error: DestinationError) -> None:
        """Take note that work failed as a whole: after some failures in a row nothing is sent.

        A content that is refused is no failure of the CRM's; a day's quota that is used up has its own pause. Work that
        was under way together counts once.
        """
        if isinstance(error, BatchRejectedError):
            self.worked()
            return
        now = self._clock()
        daily = isinstance(error, RateLimitedError) and error.scope in DAILY_SCOPES
        if daily or 0 <= now - self._failed_at < TOGETHER:
            return
        self._failed_at = now
        self._breaker.refused(now)

    def overloaded(self) -> None:
        """Take note that a request ran into a time-out: fewer should be under way at once."""
        self._main.controller.crowded(self._loop.time())

    def has_room(self, scope: str) -> bool:
        """Whether a request of this scope would not have to wait for a day's quota or a pause."""
        now = self._loop.time()
        return self._valve(scope).controller.ready(now) <= now

    def give_back(self, valve: Valve) -> None:
        """Return a permit that was not used."""
        valve.give_back()
        self._requests -= 1

    def end_probe(self, *, failed: bool) -> None:
        """Let another probe go, if nobody has said what became of this one.

        Whoever catches the error of one that ``failed`` outside the permit's scope has his say first.
        """
        if failed:
            self._loop.call_soon(self._breaker.give_back)
        else:
            self._breaker.give_back()

    # --- in threads

    def wait(self, scope: str = "burst") -> None:
        """Block until one request may be sent. Raises TransientError when the limiter is closed, also meanwhile."""
        turn = self._queue(self._valve(scope), Permit.present())
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

    def spent(self, scope: str, units: int) -> None:
        """Report the use of a daily quota that is not one of requests."""
        self._post(lambda: self._valve(scope).count(units))

    def close(self) -> None:
        """Wake everyone who waits, with an error; let nobody in. May be called from any thread, and twice."""
        with self._lock:
            self._closed = True
            waiting = tuple(self._waiting)
        for turn in waiting:
            turn.cancel()
        self._post(self._send_away)

    # --- what is told, and kept over a restart

    def status(self) -> GateStatus:
        """Tell what the limiter does now. To be called on the loop."""
        now, unix, controller = self._loop.time(), self._clock(), self._main.controller
        pause, ends = controller.pause(now), controller.day.forecast(now)
        paced = controller.day.rate(now)
        word = self._breaker.word(unix)
        return GateStatus(
            name=self.name,
            rate=controller.rate if paced is None else min(paced, controller.rate),
            ceiling=controller.ceiling,
            parallel=controller.parallel,
            requests=self._requests,
            waiting=len(self._waiting) + len(self._inside),
            paused_for=pause.until - now if pause else None,
            reason=pause.reason if pause else self._obstacle(),
            quotas=tuple(_quota(window, controller, now) for window in controller.windows),
            breaker=word,
            probe_at=self._breaker.until(unix) if word == "open" else None,
            lasts_until=None if ends is None else unix + ends - now,
        )

    @property
    def unkept(self) -> bool:
        """Whether ``keep`` would give something."""
        return self._record.due

    def keep(self) -> str | None:
        """Give what is to be written down now, as JSON; None if nothing has changed, or it was written just now."""
        return self._record.take()

    def restore(self, kept: str) -> None:
        """Take up what ``keep`` gave before a restart."""
        self._record.restore(kept)

    # --- inside

    async def _permit(self, priority: Priority, valve: Valve) -> Permit:
        while True:
            probe = await self._past_breaker()
            try:
                await self._pass(valve, priority)
            except BaseException:
                if probe:
                    self._breaker.give_back()
                raise
            # While it waited for its turn, others may have failed.
            if probe or self._breaker.word(self._clock()) == "closed":
                return Permit(self, valve, priority, probe=probe)
            self.give_back(valve)

    async def _past_breaker(self) -> bool:
        """Wait until the breaker lets a request pass; tells whether that is its probe."""
        while not self._breaker.take(self._clock()):  # noqa: ASYNC110 — that time has passed is no event
            await asyncio.sleep(PAUSE_POLL)
        return self._breaker.word(self._clock()) != "closed"

    async def _pass(self, valve: Valve, priority: Priority) -> None:
        await valve.acquire(priority)
        await self._unhindered()
        self._requests += 1

    async def _unhindered(self) -> None:
        while self._obstacle():  # noqa: ASYNC110 — that time has passed is no event
            await asyncio.sleep(SLOWEST_POLL)

    async def _admit(self, valve: Valve, permit: Permit | None) -> None:
        if permit is not None and permit.spend(valve, self._loop.time()):
            await self._unhindered()
            return
        await self._pass(valve, "normal" if permit is None else permit.priority)

    def _queue(self, valve: Valve, permit: Permit | None) -> Future[None]:
        with self._lock:
            self._refuse_if_closed()
            turn = asyncio.run_coroutine_threadsafe(self._admit(valve, permit), self._loop)
            self._waiting.add(turn)
        return turn

    def _send_away(self) -> None:
        for task in self._inside:
            task.cancel()

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

    def _valve(self, scope: str) -> Valve:
        return self._apart.get(scope, self._main)

    def _post(self, report: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(report)

    def _refuse_if_closed(self) -> None:
        if self._closed or self._loop.is_closed():
            raise self._stopping()

    def _stopping(self) -> TransientError:
        return TransientError(f"{self.name}: no more requests, the lane is stopping")


def _quota(window: Window, controller: RateController, now: float) -> Quota:
    daily = window.seconds >= DAY
    return Quota(
        name=window.name,
        seconds=window.seconds,
        limit=window.limit,
        remaining=window.remaining,
        budget=controller.budget.calls if daily else None,
        ours=controller.budget.used(now) if daily else None,
    )
