"""The end of a history: nothing changes and nothing fails any more, and all has to become as it should be."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from cdcsync.lane import Lane
from tests.simulation.crm import NOTE
from tests.simulation.database import is_bad
from tests.simulation.judge import Difference, Place, Wrong, differences
from tests.simulation.plot import OWNED_BY, REPORTS_TO

if TYPE_CHECKING:
    from tests.simulation.life import Life  # a life has an end; here only for its type

LOOK = 0.5
STILL = 5
"""Looks in which nothing may be left to do."""
MENDS = 6
"""A row that waited for a rejected one may be rejected when that one is mended: for a large value that did not come.
What refers to a record that people deleted has to be written once more when that one is there again."""
COMPARED = 60
"""Looks for which tables are compared."""
LONGEST_SKIP = 600.0
"""Seconds."""
QUIET_LOOKS = 4
BUSY_LOOKS = 24
"""Looks after which time may be skipped: where nothing is under way, and where something is."""
PATIENCE = 36 * 3_600.0
"""Seconds after which the ladder has tried every row again."""
OUTAGE_PROBES = 8
"""Rungs of the breaker's ladder in the longest outage."""


class Ending:
    """Brings a life to its end, and judges. Raises Wrong."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._passed = 0
        self._quiet = 0
        """Looks since a request was sent."""

    async def come(self) -> None:
        """Let everything settle, mend what cannot without, and judge."""
        if self._life.database.truncated:
            await self._compare()
            return
        await self._settle(all_of_it=False)
        self._judge(self._excused())
        if self._life.plot.patient:
            await self._change_minds()
        for turn in range(MENDS):
            self._mend()
            await self._settle(all_of_it=turn == MENDS - 1)
            if not any(lane.rejected or lane.pending for lane in self._life.lanes) and not self._differences():
                break
        if any(lane.rejected for lane in self._life.lanes):
            raise Wrong("rows are parked that have nothing wrong")
        self._judge(set())
        self._judge_requests()
        if not self._life.plot.people.removals:
            await self._touch()

    async def _settle(self, *, all_of_it: bool) -> None:
        """Wait until nothing is left to do; unless ``all_of_it``, rows may be left that wait for rejected ones."""
        life, idle = self._life, 0
        while idle < STILL:
            await asyncio.sleep(LOOK)
            self._resume()
            behind = life.pipeline.received_lsn < life.database.lsn
            left = (
                behind or life.pipeline.copying or any(self._has_left(lane, all_of_it=all_of_it) for lane in life.lanes)
            )
            idle = 0 if left else idle + 1
            if left:
                self._pass_time()

    @staticmethod
    def _has_left(lane: Lane, *, all_of_it: bool) -> bool:
        waiting = any(len(route.backlog) > len(route.backlog.held) for route in lane.routes)
        return waiting or bool(lane.pending and (all_of_it or not lane.rejected))

    def _pass_time(self) -> None:
        """Skip time while nothing is sent, the more the longer that is so; what is under way has its time first."""
        passed = sum(side.crm.books.counts["passed"] for side in self._life.sides)
        if passed != self._passed:
            self._passed, self._quiet = passed, 0
            return
        self._quiet += 1
        busy = any(route.active for lane in self._life.lanes for route in lane.routes)
        looks = self._quiet - (BUSY_LOOKS if busy else QUIET_LOOKS)
        if looks > 0:
            self._life.loop.skip(min(LONGEST_SKIP, LOOK * 2.0 ** min(looks, 16)))

    def _resume(self) -> None:
        """Let mappings go on that people, or the daemon itself, have paused."""
        for lane in self._life.lanes:
            for route in lane.routes:
                if route.paused:
                    self._life.state.resume(route.name)

    async def _compare(self) -> None:
        """Have the tables compared, for a while.

        A TRUNCATE says nothing of its rows, and leaves changes that nothing will come after: what they refer to may
        never have been. So that all is well at the end is not asked for, but only that nothing is done that must not.
        """
        life = self._life
        for lane in life.lanes:
            for route in lane.routes:
                life.state.request_resync(route.name, "truncated", life.clock.time(), asker="person")
        for _ in range(COMPARED):
            await asyncio.sleep(LOOK)
            self._resume()

    async def _change_minds(self) -> None:
        """Let the CRMs take what they refused: the ladder has to bring it."""
        life = self._life
        for side in life.sides:
            side.crm.tolerant = True
        until = life.loop.now + PATIENCE
        while any(code in {"BAD_NAME", "INVALID"} for lane in life.lanes for r in lane.routes for code, _ in r.reasons):
            await asyncio.sleep(LOOK)
            self._resume()
            self._pass_time()
            if life.loop.now > until and not any(side.terms.daily for side in life.sides):
                raise Wrong("rejected rows were not tried again")
        await self._settle(all_of_it=False)

    # --- mending and judging

    def _mend(self) -> None:
        """Change what is parked, refused or, after what people did, not as it should be."""
        life = self._life
        places: defaultdict[str, set[str]] = defaultdict(set)
        for table, rows in life.database.tables.items():
            places[table] |= {key for key, row in rows.items() if is_bad(row)}
        for one in self._differences():
            places[one.place[0]].add(one.place[1])
        for lane in life.lanes:
            for route in lane.routes:
                places[route.config.table.partition(".")[2]] |= route.backlog.parked
        for table, keys in places.items():
            life.database.mend(life.loop.now, table, sorted(keys))

    def _differences(self) -> list[Difference]:
        return [one for side in self._life.sides for one in differences(self._life.database, side)]

    def _excused(self) -> set[tuple[int, Place]]:
        """Return what may stand as it was: what is parked, or waits for that, and what people had a hand in."""
        life = self._life
        excused: set[tuple[int, Place]] = set()
        for side, lane in zip(life.sides, life.lanes, strict=True):
            for route in lane.routes:
                table, backlog = route.config.table.partition(".")[2], route.backlog
                waiting = (key for row in backlog.fold.waiting.values() for key in row.keys)
                keys = {*backlog.parked, *backlog.anchored, *waiting}
                rows = life.database.tables[table].items()
                keys |= {key for key, row in rows if row["uid"] in life.disturbed}
                keys |= {held.key for held in side.crm.records.values() if held.uid in life.disturbed}
                excused |= {(side.number, (table, key)) for key in keys}
        return excused

    def _judge(self, excused: set[tuple[int, Place]]) -> None:
        wrong = [one.words for one in self._differences() if (one.side, one.place) not in excused]
        for side in self._life.sides:
            wrong += side.crm.books.wrong
            for crm_id, text in side.notes.items():
                held = side.crm.records.get(crm_id)
                if held is not None and held.fields.get(NOTE) != text:
                    wrong.append(f"{held.object} {held.key} has lost its note")
        if wrong:
            raise Wrong("\n".join(wrong))

    def _judge_requests(self) -> None:
        for side in self._life.sides:
            most = 2 * OUTAGE_PROBES + 12 * side.terms.limits.max_parallel
            if side.attempts > most:
                raise Wrong(f"{side.attempts} requests to a CRM that was not there: at most {most} were expected")
            # Rows that refer to rows like them may go twice: without what is not there yet, and once more.
            straight = not {REPORTS_TO, OWNED_BY}.intersection(self._life.plot.references)
            if self._life.plot.calm and straight and side.crm.books.counts["idle"]:
                raise Wrong(f"{side.crm.books.counts['idle']} writes changed nothing")

    async def _touch(self) -> None:
        """Update rows to what they are: of that, a CRM must not hear."""
        life = self._life
        before = [side.crm.books.counts["writes"] for side in life.sides]
        asked = [side.crm.books.counts["requests"] for side in life.sides]
        life.database.touch_all(life.loop.now)
        await self._settle(all_of_it=True)
        if [side.crm.books.counts["writes"] for side in life.sides] != before:
            raise Wrong("rows were written that had not changed")
        if life.plot.calm and [side.crm.books.counts["requests"] for side in life.sides] != asked:
            raise Wrong("the CRM was asked about rows that had not changed")
