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
        self._released: set[tuple[str, str]] = set()
        """Those whose children are through."""

    def defer(self, route: Route, row: PendingRow) -> str | None:
        """Say why a row that is about to be taken has to wait, if it has to."""
        place = route.name, row.key
        if not _touches_children(row):
            return None
        if _is_referred(route, row) or (place not in self._released and self._must_wait(route, row)):
            self._since.setdefault(place, self._lane.clock.monotonic())
            return REASON
        self._since.pop(place, None)
        self._released.discard(place)
        return None

    def _must_wait(self, route: Route, row: PendingRow) -> bool:
        """Whether a row that is ready comes upon older ones of its children; of its own mapping it is one itself."""
        others = any(
            child is not route or len(child.backlog.ready) > 1 or child.backlog.in_flight for child in route.children
        )
        return others and not _is_through(route, row, self._lane.clock.monotonic())

    def release(self) -> bool:
        """Look at the rows again whose children are through; returns whether there were any."""
        released = False
        for (name, key), since in list(self._since.items()):
            route = self._lane.by_name[name]
            row = route.backlog.fold.waiting.get(key)
            if row is None or not _touches_children(row):
                del self._since[name, key]
                self._released.discard((name, key))
            elif (
                route.backlog.held.get(key) == REASON
                and not _is_referred(route, row)
                and _is_through(route, row, since)
            ):
                self._released.add((name, key))
                route.backlog.wake(key, self._lane.clock.monotonic())
                released = True
        return released


def _touches_children(row: PendingRow) -> bool:
    return row.deleted or bool(row.origins)


def _is_referred(route: Route, row: PendingRow) -> bool:
    """Whether rows in flight refer to the record."""
    return any(child.backlog.referred[route.name, key] for child in route.children for key in row.keys)


def _is_through(route: Route, row: PendingRow, since: float) -> bool:
    """Whether nothing is left of what the children's rows had to do at a time; a key change need not wait for that."""
    return not row.deleted or not any(child.backlog.moves_since(since, row.last) for child in route.children)
