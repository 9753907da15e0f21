"""Deletes in reverse: a parent's delete or key change waits until older changes of its children are through.

What its children's rows had to do when it came is through when none of them is ready or in flight since then; those
that are held may themselves wait for this very row. Nobody waits for what comes later. A key change waits only while
rows in flight refer to the record.
"""

from __future__ import annotations

from collections import defaultdict
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
        self._deletes: defaultdict[str, dict[str, float]] = defaultdict(dict)
        """Mapping → seats of deletes, with the time since when they wait, in that order."""
        self._moves: defaultdict[str, set[str]] = defaultdict(set)
        """Mapping → seats of key changes."""
        self._released: set[tuple[str, str]] = set()
        """Deletes whose children are through."""

    def defer(self, route: Route, row: PendingRow) -> str | None:
        """Say why a row that is about to be taken has to wait, if it has to."""
        if not row.deleted and not row.origins:
            return None
        if _is_referred(route, row) or (row.deleted and self._must_wait(route, row)):
            if row.deleted:
                self._deletes[route.name].setdefault(row.key, self._lane.clock.monotonic())
            else:
                self._moves[route.name].add(row.key)
            return REASON
        self._forget(route, row.key)
        return None

    def release(self) -> bool:
        """Look at the rows again whose children are through; returns whether there were any."""
        released = False
        for route in self._lane.routes:
            for key in [*self._moves[route.name], *self._through(route)]:
                row = route.backlog.fold.waiting.get(key)
                if row is None or not (row.deleted or row.origins):
                    self._forget(route, key)
                elif route.backlog.held.get(key) == REASON and not _is_referred(route, row):
                    self._released.add((route.name, key))
                    self._deletes[route.name].pop(key, None)
                    self._moves[route.name].discard(key)
                    route.backlog.wake(key, self._lane.clock.monotonic())
                    released = True
        return released

    def _must_wait(self, route: Route, row: PendingRow) -> bool:
        """Whether a delete that is ready comes upon older rows of its children; of its own mapping it is one itself."""
        if (route.name, row.key) in self._released:
            return False
        others = any(
            child is not route or len(child.backlog.ready) > 1 or child.backlog.in_flight for child in route.children
        )
        return others and not _is_through(route, row, self._lane.clock.monotonic())

    def _through(self, route: Route) -> list[str]:
        """Return the seats of deletes whose children are through: the first ones, since all came in order."""
        through = []
        for key, since in self._deletes[route.name].items():
            row = route.backlog.fold.waiting.get(key)
            released = (route.name, key) in self._released
            if row is not None and row.deleted and not released and not _is_through(route, row, since):
                break
            through.append(key)
        return through

    def _forget(self, route: Route, key: str) -> None:
        self._deletes[route.name].pop(key, None)
        self._moves[route.name].discard(key)
        self._released.discard((route.name, key))


def _is_referred(route: Route, row: PendingRow) -> bool:
    """Whether rows in flight refer to the record."""
    return any(child.backlog.referred[route.name, key] for child in route.children for key in row.keys)


def _is_through(route: Route, row: PendingRow, since: float) -> bool:
    """Whether nothing is left of what the children's rows had to do at a time."""
    return not any(child.backlog.moves_since(since, row.last) for child in route.children)
