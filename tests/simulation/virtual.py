"""Virtual time: an event loop that never waits, and what stands in for threads on it.

When nothing is ready the clock jumps to the next timer. All order comes from the timers, so a history that draws its
delays from one seed runs the same way again. Where nothing is left to wait for, ``Deadlock`` says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
import random
from asyncio import base_events
from collections.abc import Callable
from typing import Any

WALL = 1_767_225_600.0
"""Unix time at which every history begins."""

RESOLUTION = 1e-6


class Deadlock(Exception):  # noqa: N818 — not an error of the program's, but a finding about it
    """Every task waits for something that nothing will bring."""


class VirtualLoop(base_events.BaseEventLoop):
    """An event loop on virtual seconds; ``run_in_executor`` runs the work in the loop itself, some time later.

    An executor with one thread keeps its order. Work may be a coroutine function, where a real adapter would block.
    ``longest`` is how long a piece of work waits for its thread at most (seconds).
    """

    _ready: Any
    _scheduled: list[Any]
    _stopping: bool

    def __init__(self, now: float, rng: random.Random, longest: float) -> None:
        super().__init__()
        self.now = now
        self._rng = rng
        self._longest = longest
        self._free_at: dict[Any, float] = {}
        """When an executor with one thread will have done all that it was given."""

    def time(self) -> float:
        """Return the virtual time."""
        return self.now

    def skip(self, seconds: float) -> None:
        """Let time pass in which nothing runs: what was due meanwhile comes late, as after a machine's sleep."""
        self.now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run ``func`` after a while; whether somebody still waits for it or not, as a thread does."""
        answer = self.create_future()
        context = contextvars.copy_context()
        at = self.now
        if getattr(executor, "_max_workers", 0) == 1:
            at = max(at, self._free_at.get(executor, 0.0))
        at += self._rng.random() * self._longest
        self._free_at[executor] = at
        self.call_at(at, self._work, answer, context, func, args, context=context)
        return answer

    def _work(
        self,
        answer: asyncio.Future[Any],
        context: contextvars.Context,
        func: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 — it is whoever waits for it who judges
            if not answer.done():
                answer.set_exception(error)
            return
        if inspect.isawaitable(result):
            self.create_task(_pass_on(result, answer), context=context)
        elif not answer.done():
            answer.set_result(result)

    def _run_once(self) -> None:
        """Do what the base class does, without sockets and at a fraction of the cost."""
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:
            if not scheduled:
                raise Deadlock
            # A little later, as always: a wait for what is nearer than a float can tell would be one without an end.
            self.now = max(self.now + RESOLUTION, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self.now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _timer_handle_cancelled(self, handle: object) -> None:
        """Count nothing: cancelled timers leave when their time has come."""

    def _write_to_self(self) -> None:
        """Wake nobody: there is one thread."""


async def _pass_on(work: Any, answer: asyncio.Future[Any]) -> None:
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 — it is whoever waits for it who judges
        if not answer.done():
            answer.set_exception(error)
        return
    if not answer.done():
        answer.set_result(result)


class VirtualClock:
    """``cdcsync.clock.Clock`` on a virtual loop; ``jump`` moves the wall clock alone."""

    def __init__(self, loop: VirtualLoop, jump: float = 0.0) -> None:
        self._loop = loop
        self.jump = jump

    def monotonic(self) -> float:
        """Return the loop's time."""
        return self._loop.now

    boottime = monotonic

    def time(self) -> float:
        """Return Unix time."""
        return WALL + self._loop.now + self.jump
