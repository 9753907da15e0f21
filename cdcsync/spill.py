"""Keep a lane's waiting rows within its share of memory: the last in the queue live in the journal alone.

A row that was left there is *cold*. Its later changes wait in memory and do not go before it; they fold over it when
it is thawed, or when they are left to the journal as well. Rows come back, oldest first, when the queue runs low.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from operator import methodcaller
from typing import TYPE_CHECKING

from cdcsync.coalesce import OVERHEAD
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its spill; here only for its type

FREEZE_FROM = 0.7
FREEZE_TO = 0.4
"""Of the budget: from where on rows are left to the journal, and down to where."""
AT_ONCE = 5_000
"""Rows that go to the journal at a time."""
THAW_BELOW = 2_000
"""Rows that are ready: with fewer, cold ones are taken back; where there are bulk jobs, with fewer than one takes."""
THAW_AT_LEAST = 500
"""Rows for which there has to be room, unless none is ready."""


class Spill:
    """One lane's way to the journal and back; one direction at a time, so that what is read is never out of date."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._turn = asyncio.Lock()
        self._budget = math.inf
        self._thawing: set[str] = set()

    async def keep_within(self, budget: float) -> None:
        """Leave rows to the journal if the lane takes too much of ``budget`` (bytes)."""
        self._budget = budget
        if self._lane.size <= FREEZE_FROM * budget:
            return
        async with self._turn:
            for route in self._lane.routes:
                while self._lane.size > FREEZE_TO * budget and await self._freeze(route):
                    continue
        self._lane.nudge()  # what is left may be waiting for what went

    def refill(self, route: Route) -> None:
        """Take cold rows back if the queue runs low; they are there some time later."""
        backlog = route.backlog
        if not backlog.cold or len(backlog.ready) >= self._enough or route.name in self._thawing:
            return
        room = (FREEZE_TO * self._budget - self._lane.size) / OVERHEAD
        if room >= THAW_AT_LEAST or not backlog.ready:
            self._thawing.add(route.name)
            self._lane.jobs.spawn(self._thaw(route, round(min(self._enough, max(room, THAW_AT_LEAST)))))

    @property
    def _enough(self) -> int:
        limits = self._lane.destination.limits
        return THAW_BELOW if limits.bulk_from is None else limits.bulk_records

    @contextlib.asynccontextmanager
    async def recalled(self, route: Route, key: str) -> AsyncIterator[None]:
        """Take the row under ``key`` back, if it is cold; none goes the other way in the meantime."""
        async with self._turn:
            if key in route.backlog.cold:
                for row in (await self._lane.around.on_file(methodcaller("cold", route.name, [key]))).values():
                    route.backlog.thaw(row, self._lane.clock.monotonic())
                await self._lane.around.tick()
            yield

    async def _freeze(self, route: Route) -> int:
        """Leave some rows to the journal, together with what it holds of them already; returns how many.

        They are written at once: until then they are in memory.
        """
        backlog = route.backlog
        keys = backlog.freezable(AT_ONCE)
        cold = [key for key in keys if key in backlog.cold]
        older = await self._lane.around.on_file(methodcaller("cold", route.name, cold))
        frozen = [key for key in keys if backlog.can_freeze(key) and (key in older) == (key in backlog.cold)]
        for key in frozen:
            backlog.freeze(key, older.get(key))
        await self._lane.around.tick()
        return len(frozen)

    async def _thaw(self, route: Route, rows: int) -> None:
        try:
            async with self._turn:
                for row in await self._lane.around.on_file(methodcaller("coldest", route.name, rows)):
                    route.backlog.thaw(row, self._lane.clock.monotonic())
                # Rows that were thawed and are still in the file must not be read again.
                await self._lane.around.tick()
                left = await self._lane.around.on_file(methodcaller("coldest", route.name, 1))
                route.backlog.note_coldest(next(iter(left), None))
                if not left:
                    self._lane.look_again(route)
        finally:
            self._thawing.discard(route.name)
        self._lane.nudge()
