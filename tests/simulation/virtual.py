"""Virtual time: an event loop that never waits, and what stands in for threads on it.

When nothing is ready the clock jumps to the next timer. All order comes from the timers, so a history that draws its
delays from one seed runs the same way again. Where nothing is left to wait for, ``Deadlock`` says so.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import selectors
from asyncio import base_events
from collections.abc import Callable
from typing import Any

WALL = 1_767_225_600.0
"""Unix time at which every history begins."""


class Deadlock(Exception):  # noqa: N818 — not an error of the program's, but a finding about it
    """Every task waits for something that nothing will bring."""


class _Selector:
    """Stands where the loop would wait for sockets."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock
        self._loop.now += timeout
        return []


class VirtualLoop(base_events.BaseEventLoop):
    """An event loop on virtual seconds; ``run_in_executor`` runs the work in the loop itself, some time later.

    An executor with one thread keeps its order. Work may be a coroutine function, where a real adapter would block.
    """

    def __init__(self, now: float, rng: random.Random, longest: float) -> None:
        super().__init__()
        self.now = now
        self._selector = _Selector(self)
        self._rng = rng
        self._longest = longest
        self._turns: dict[Any, asyncio.Lock] = {}

    def time(self) -> float:
        """Return the virtual time."""
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run ``func`` after a while."""
        return self.create_task(self._work(executor, func, args))

    async def _work(self, executor: Any, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if getattr(executor, "_max_workers", 0) != 1:
            return await self._run(func, args)
        async with self._turns.setdefault(executor, asyncio.Lock()):
            return await self._run(func, args)

    async def _run(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        await asyncio.sleep(self._rng.random() * self._longest)
        result = func(*args)
        return await result if inspect.isawaitable(result) else result

    def _process_events(self, events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


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
