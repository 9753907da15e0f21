"""A lane's parked rows: put aside with the CRM's reason, and taken up again when something has changed.

A parked row is superseded by the row's next change, which takes its state along (``Backlog.readmit``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cdcsync.coalesce import PendingRow, shown
from cdcsync.entries import Reject
from cdcsync.model import INCOMPLETE_ROW, Rejected
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its rejects; here only for its type


class Rejects:
    """The parked rows of one lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def restore(self, route: Route, parked: Iterable[Reject]) -> None:
        """Load what the state file holds of a mapping."""
        for reject in parked:
            route.backlog.mark_parked(reject.row)
            route.reasons[reject.code, reject.field] += 1
            self._lane.parents.remember_orphan(route, reject)

    def park(self, route: Route, row: PendingRow, reason: Rejected) -> None:
        """Put a refused row aside, unless a later change of it is here already."""
        lane, backlog = self._lane, route.backlog
        if backlog.fold.newer_than(row) is not None:
            backlog.give_back(row, lane.clock.monotonic())
            return
        reject = Reject(row, reason.code, reason.field, reason.message, lane.clock.time())
        lane.books.rejects[route.name, row.key] = reject
        route.reasons[reason.code, reason.field] += 1
        backlog.park(row, lane.clock.monotonic())
        lane.parents.wake_waiters(route, {shown(row.key), *row.keys})
        if reason.code == INCOMPLETE_ROW:
            lane.around.reread(route, row.key)
        lane.log.warning("rejected", map=route.name, code=reason.code, field=reason.field)

    async def read(self, route: Route, keys: list[str]) -> list[Reject]:
        """Read parked rows."""
        fresh = self._lane.books.rejects
        asked = [key for key in keys if (route.name, key) not in fresh]
        stored = await self._lane.around.on_file(lambda state: list(state.rejects(route.name, asked))) if asked else []
        # What was parked or taken up while the file was read is newer than what the file said.
        stored = [reject for reject in stored if (route.name, reject.row.key) not in fresh]
        for reject in stored:
            reject.row.doubt()  # before a crash it may have been sent once more
        unwritten = [fresh[route.name, key] for key in keys if (route.name, key) in fresh]
        return [reject for reject in [*unwritten, *stored] if reject is not None]

    async def readmit(self, route: Route, keys: Iterable[str]) -> None:
        """Let parked rows wait again, folded with their later changes."""
        for reject in await self.read(route, list(keys)):
            if route.backlog.can_readmit(reject.row.key):
                self._take_up(route, reject)

    async def readmit_unchanged(self, route: Route, key: str) -> None:
        """Let a parked row wait again unless it has changed since: then it goes with its later changes."""
        async with self._lane.spill.recalled(route, key):
            for reject in await self.read(route, [key]):
                if key in route.backlog.parked and not route.backlog.has(key):
                    self._take_up(route, reject)

    def _take_up(self, route: Route, reject: Reject) -> None:
        self._lane.books.rejects[route.name, reject.row.key] = None
        route.reasons[reject.code, reject.field] -= 1
        route.reasons += Counter()  # drops what has come to zero
        route.backlog.readmit(reject.row, self._lane.clock.monotonic())
