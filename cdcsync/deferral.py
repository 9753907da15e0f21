"""Deletes in reverse: a parent's delete or key change waits until older changes of its children are through.

What its children's rows had to do when it came is through when none of them is ready or in flight since then; those
that are held may themselves wait for this very row. Nobody waits for what comes later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cdcsync.coalesce import PendingRow
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its deferral; here only for its type

REASON: Final = "children are to be settled first"


class Deferral:
    """The rows of one lane that wait for their children."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._since: dict[tuple[str, str], float] = {}
        """When a row had to wait first, by mapping and seat."""

    def defer(self, route: Route, row: PendingRow) -> str | None:
        """Say why a row that is about to be taken has to wait, if it has to."""
        place = route.name, row.key
        if not _touches_children(row):
            return None
        first = place not in self._since
        since = self._since.setdefault(place, self._lane.clock.monotonic())
        if _must_wait(route, row, since, first=first):
            return REASON
        del self._since[place]
        return None

    def release(self) -> bool:
        """Look at the rows again whose children are through; returns whether there were any."""
        released = False
        for (name, key), since in list(self._since.items()):
            route = self._lane.by_name[name]
            row = route.backlog.fold.waiting.get(key)
            if row is None or not _touches_children(row):
                del self._since[name, key]
            elif route.backlog.held.get(key) == REASON and not _must_wait(route, row, since, first=False):
                route.backlog.wake(key, self._lane.clock.monotonic())
                released = True
        return released


def _touches_children(row: PendingRow) -> bool:
    return row.deleted or bool(row.origins)


def _must_wait(route: Route, row: PendingRow, since: float, *, first: bool) -> bool:
    """Whether rows in flight refer to the record, or for a delete: whether children's rows may still come before it.

    Of the row's own mapping, which may refer to itself, the row is one of those that are ready.
    """
    keys = row.keys
    if any(child.backlog.referred[route.name, key] for child in route.children for key in keys):
        return True
    if not row.deleted:
        return False
    return any(
        (child is not route or not first or len(child.backlog.ready) > 1 or bool(child.backlog.in_flight))
        and child.backlog.moves_since(since, row.last)
        for child in route.children
    )
