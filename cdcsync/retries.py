"""When a lane's parked rows are tried again: by the ladder, and when a person asks; and what a person gives up.

Memory knows of each reason only when the first of its rows is due; the rows are in the state file, under an index.
Those with one reason go together, a bounded number at a time, so that neither a hundred thousand of them nor a clock
that jumps makes a storm. Rows of a paused mapping wait, and so do all while the CRM is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, Final, TypeAlias

from cdcsync.entries import Reject, RejectRequest
from cdcsync.ladder import is_due
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its rejects; here only for its type

AT_ONCE: Final = 2_000
"""Rows that are taken up, or given up, in one look: once a second."""
ROOM: Final = 10_000
"""With more rows of its mapping under way, a parked row waits."""
PATIENCE: Final = 60.0
"""Seconds until rows are looked at again that are due and wait for something else, such as a later change."""

Group: TypeAlias = tuple[str, str, str | None]
"""Mapping, code and field."""


class Retries:
    """The due times of one lane's parked rows."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._due: dict[Group, float] = {}
        """Unix time before which no row of a group is due, but for the clock being put back."""
        self._requests: Sequence[RejectRequest] = ()

    def expect(self, route: Route, reject: Reject) -> None:
        """Take note of when a parked row is due."""
        group = route.name, reject.code, reject.field
        self._due[group] = min(reject.due, self._due.get(group, reject.due))

    def heed(self, requests: Sequence[RejectRequest]) -> None:
        """Take note of what people have asked for."""
        self._requests = [one for one in requests if one.selection.mapping in self._lane.by_name]

    @property
    def pending(self) -> bool:
        """Whether there is something to be done that nothing but time keeps from its end."""
        now, routes = self._lane.clock.time(), self._lane.by_name
        due = (mapping for (mapping, *_), at in self._due.items() if is_due(at, now))
        return bool(self._requests) or any(not routes[mapping].paused for mapping in due)

    async def look(self) -> None:
        """Do what was asked for, and take up what is due. Raises StateError."""
        requests, self._requests = self._requests, ()
        for request in requests:
            await self._serve(request)
        lane, now, left = self._lane, self._lane.clock.time(), AT_ONCE
        if lane.stopping or lane.limiter.open_in or not lane.caught_up:
            return
        for group in sorted((group for group, at in self._due.items() if is_due(at, now)), key=self._due.__getitem__):
            route = lane.by_name[group[0]]
            fails = route.backoff.until > lane.clock.monotonic()
            if left > 0 and not route.paused and not fails and route.backlog.moving < ROOM:
                left -= await self._take_up(route, group, now, left)
        if left < AT_ONCE:
            lane.nudge()

    async def _take_up(self, route: Route, group: Group, now: float, limit: int) -> int:
        """Let rows of a group wait again; returns how many were looked at."""
        lane, (_, code, field) = self._lane, group
        rows = await lane.around.on_file(lambda state: state.parked.due(route.name, code, field, now, limit))
        taken = 0
        for reject in rows:
            key = reject.row.key
            if (route.name, key) not in lane.books.rejects and route.backlog.can_readmit(key):
                reject.row.doubt()  # before a crash it may have been sent once more
                lane.rejects.take_up(route, reject)
                taken += 1
        if taken:
            self._due[group] = 0.0  # there may be more; the next look sees
            lane.log.info("rejected rows are tried again", map=route.name, code=code, field=field, rows=taken)
        elif rows:
            self._due[group] = now + PATIENCE
        else:
            await self._look_up(route, group)
        return len(rows)

    async def _look_up(self, route: Route, group: Group) -> None:
        """See when the next row of a group is due; those parked just now are not in the file yet."""
        _, code, field = group
        stored = await self._lane.around.on_file(lambda state: state.parked.next_due(route.name, code, field))
        fresh = [
            one.due
            for (mapping, _), one in self._lane.books.rejects.items()
            if one is not None and not one.discarded and (mapping, one.code, one.field) == group
        ]
        times = fresh if stored is None else [stored, *fresh]
        if times:
            self._due[group] = min(times)
        else:
            self._due.pop(group, None)

    # --- what people ask for

    async def _serve(self, request: RejectRequest) -> None:
        route = self._lane.by_name[request.selection.mapping]
        if request.verb == "discard":
            await self._discard(route, request)
            return
        await self._lane.around.on_file(lambda state: state.parked.grant_retry(request))
        for group in self._groups(route.name):
            self._due[group] = 0.0

    def _groups(self, mapping: str) -> Iterable[Group]:
        return [group for group in self._due if group[0] == mapping]

    async def _discard(self, route: Route, request: RejectRequest) -> None:
        """Give up some of the rows asked for; the request stands until a look finds none."""
        lane = self._lane
        what = methodcaller("selected", request.selection, before=request.at, limit=AT_ONCE)
        rows: list[Reject] = await lane.around.on_file(lambda state: what(state.parked))
        if not rows:
            await lane.around.on_file(lambda state: state.parked.finish(request))
            return
        known = await lane.known(route, [reject.row.key for reject in rows])
        given_up = sum(lane.rejects.discard(route, reject, known=reject.row.key in known) for reject in rows)
        lane.log.warning("rejected rows are given up", map=route.name, rows=given_up)
        lane.nudge()
