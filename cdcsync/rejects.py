"""A lane's parked rows: put aside with the CRM's reason, and taken up again when something has changed.

* A parked row is superseded by the row's next change, which takes its state along (``Backlog.readmit``).
* Without one it is tried again by the ladder, or when a person asks for it (``retries``). Refused once more as it is,
  it keeps its place there, also over restarts: the row itself carries how often it was refused.
* A person may *discard* it: the CRM will not get this change. Where the CRM knows nothing of the row, nothing is left.
  Else its state is kept, unseen and not counted as rejected, for as long as the row does not change: it knows under
  which keys the record may stand, what was tried without an answer, and large values that the next change may not
  carry. That change, or another row that wants one of these keys, takes it along, as it would take a rejected one.
* A mapping of which most records are refused is wrong, and not its data: it is paused (``verdicts``).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from cdcsync.coalesce import PendingRow, Refused, shown
from cdcsync.entries import Reject, Selection
from cdcsync.ladder import next_try
from cdcsync.model import INCOMPLETE_ROW, Rejected
from cdcsync.retries import Retries
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.verdicts import Verdicts

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its rejects; here only for its type

PARENT_MISSING = "parent-missing"
"""Code of a rejection."""
_NOT_THE_MAPPING = frozenset({PARENT_MISSING, INCOMPLETE_ROW})
"""Codes that say nothing about whether the mapping is right."""


class Rejects:
    """The parked rows of one lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.retries = Retries(lane)
        self._verdicts: defaultdict[str, Verdicts] = defaultdict(Verdicts)

    def restore(self, route: Route, state: State) -> None:
        """Load what the state file holds of a mapping; where that means something else by now, all is tried at once."""
        if route.seen is not None and route.seen.meaning != route.config.meaning:
            state.parked.make_due(Selection(route.name), self._lane.clock.time())
        for reject in state.parked.all(route.name):
            route.backlog.mark_parked(reject.row)
            if reject.discarded:
                route.backlog.discarded.add(reject.row.key)
                continue
            route.reasons[reject.code, reject.field] += 1
            self.retries.expect(route, reject)
            self._lane.parents.remember_orphan(route, reject)

    def park(self, route: Route, row: PendingRow, reason: Rejected) -> None:
        """Put a refused row aside, unless a later change of it is here already."""
        lane, backlog = self._lane, route.backlog
        lane.forget_attempts(route, row)
        if row.refused is None and reason.code not in _NOT_THE_MAPPING:
            self._judge(route, reason)
        if backlog.fold.newer_than(row) is not None:
            backlog.give_back(row, lane.clock.monotonic())
            return
        now = lane.clock.time()
        times, since = row.refused or (0, now)
        row.refused = Refused(times + 1, since)
        due = next_try(times + 1, now, random.random())  # noqa: S311 — spreads retries
        reject = Reject(row, reason.code, reason.field, reason.message, now, due)
        lane.books.rejects[route.name, row.key] = reject
        route.reasons[reason.code, reason.field] += 1
        self.retries.expect(route, reject)
        backlog.park(row, lane.clock.monotonic())
        lane.parents.wake_waiters(route, {shown(row.key), *row.keys})
        if reason.code == INCOMPLETE_ROW:
            lane.around.reread(route, row.key)
        tell = lane.log.warning if times == 0 else lane.log.debug
        tell("rejected", map=route.name, code=reason.code, field=reason.field)

    def accepted(self, route: Route, row: PendingRow) -> None:
        """Take note that the CRM took a record."""
        if row.refused is None:
            self._judge(route, None)

    def _judge(self, route: Route, reason: Rejected | None) -> None:
        """Count a verdict, and pause the mapping if most go against it. While it is paused nothing counts."""
        verdicts = self._verdicts[route.name]
        if route.paused:
            verdicts.clear()
            return
        verdicts.note(None if reason is None else (reason.code, reason.field))
        if verdicts.mass:
            why = _mass(route, verdicts)
            verdicts.clear()
            self._lane.log.error("mapping paused", map=route.name, reason=why)
            self._lane.around.pause(route, why)

    async def read(self, route: Route, keys: list[str]) -> list[Reject]:
        """Read parked rows."""
        fresh = self._lane.books.rejects
        asked = [key for key in keys if (route.name, key) not in fresh]
        stored = (
            await self._lane.around.on_file(lambda state: list(state.parked.of(route.name, asked))) if asked else []
        )
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
                self.take_up(route, reject)

    async def readmit_unchanged(self, route: Route, key: str) -> None:
        """Let a rejected row wait again unless it has changed since: then it goes with its later changes."""
        async with self._lane.spill.recalled(route, key):
            for reject in await self.read(route, [key]):
                if key in route.backlog.parked and not route.backlog.has(key) and not reject.discarded:
                    self.take_up(route, reject)

    def take_up(self, route: Route, reject: Reject) -> None:
        """Let a parked row wait again."""
        self._lane.books.rejects[route.name, reject.row.key] = None
        if reject.discarded:
            route.backlog.fed += 1  # it is in the balance as discarded, and comes in once more
        else:
            self._forget_reason(route, reject)
        route.backlog.readmit(reject.row, self._lane.clock.monotonic())

    def discard(self, route: Route, reject: Reject, *, known: bool) -> bool:
        """Give a rejected row up, as a person asked; ``known``: the ledger knows a record under its key.

        Returns whether it was still to be had.
        """
        lane, row = self._lane, reject.row
        place = route.name, row.key
        if row.key not in route.backlog.parked or place in lane.books.rejects:
            return False  # it was taken up, or refused anew, since the file was read
        lane.books.counters["discarded"] += 1
        self._forget_reason(route, reject)
        keep = bool(known or row.deleted or row.origins or row.whole)
        lane.books.rejects[place] = replace(reject, discarded=True) if keep else None
        route.backlog.discard(row, lane.clock.monotonic(), keep=keep)
        if not keep:
            lane.parents.settled(route, row)  # its children are judged without it
        return True

    @staticmethod
    def _forget_reason(route: Route, reject: Reject) -> None:
        route.reasons[reject.code, reject.field] -= 1
        route.reasons += Counter()  # drops what has come to zero


def _mass(route: Route, verdicts: Verdicts) -> str:
    code, field = verdicts.most_frequent()
    return (
        f"{verdicts.refused} of the last {verdicts.judged} records were refused, most often with {code}"
        f"{f' for {field}' if field else ''}: the mapping is wrong, rather than the rows. See cdcsync rejects list"
        f" {route.name}, mend it, then cdcsync resume {route.name} and cdcsync rejects retry {route.name}"
    )
