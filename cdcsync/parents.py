"""Parents before children: a row that refers to a record waits until that one is there, and for nothing else.

* A parent that is waiting, in flight or still to be copied holds its children; they are woken when it settles.
* A parent that is rejected, or that an association needs and nobody has, parks its children under it; they are taken up
  when it has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from cdcsync.coalesce import PendingRow, shown
from cdcsync.entries import Known, Reject
from cdcsync.mappers.compile import Mapped
from cdcsync.model import START, Rejected
from cdcsync.plan import map_rows, slot
from cdcsync.rejects import PARENT_MISSING
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its parents; here only for its type

Place: TypeAlias = tuple[str, str]
"""A mapping's name and a key in it."""


class Parents:
    """Who waits for whom in one lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._waiters: dict[Place, set[Place]] = {}
        """Parent → held children."""
        self._orphans: dict[Place, set[Place]] = {}
        """Parent → parked children that go when that parent has come."""
        _link(lane.routes)

    async def sort_out(
        self, route: Route, rows: list[PendingRow], mapped: dict[str, Mapped]
    ) -> tuple[list[PendingRow], dict[tuple[str, str], str]]:
        """Hold or park the rows whose parents are not there yet; returns the others, and the ids that links go to."""
        wanted: dict[str, list[tuple[Route, str, str | None]]] = {}
        for row in rows:
            if not row.deleted:
                wanted[row.key] = list(self._of(mapped[row.key]))
        known: dict[Place, Known] = {}
        for parent in {entry[0] for entries in wanted.values() for entry in entries}:
            keys = {key for entries in wanted.values() for owner, key, _ in entries if owner is parent}
            for key, entry in (await self._lane.known(parent, keys)).items():
                known[parent.name, key] = entry
        going: list[PendingRow] = []
        links: dict[tuple[str, str], str] = {}
        for row in rows:
            for parent, key, name in wanted.get(row.key, ()):
                if not await self._is_ready(route, row, (parent, key, name), known):
                    break
                there = known.get((parent.name, key))
                if name is not None and there is not None and there.crm_id is not None:
                    links[row.key, name] = there.crm_id
            else:
                going.append(row)
                route.backlog.refer(row.key, [(parent.name, key) for parent, key, _ in wanted.get(row.key, ())])
        return going, links

    @staticmethod
    def are_referred(route: Route, keys: Iterable[str]) -> bool:
        """Whether rows that refer to one of these records are in flight."""
        return any(child.backlog.referred[route.name, key] for child in route.children for key in keys)

    def refer(self, route: Route, mapped: Mapping[str, Mapped]) -> None:
        """Note to which records rows in flight refer that were taken before the last start."""
        for key, entry in mapped.items():
            route.backlog.refer(key, [(parent.name, place) for parent, place, _ in self._of(entry)])

    def remember_orphan(self, route: Route, reject: Reject) -> None:
        """Note whose coming takes a parked row up, as the state file has it."""
        if reject.code != PARENT_MISSING or reject.row.deleted:
            return
        mapped, _ = map_rows(route.mapper, [reject.row])
        for entry in mapped.values():
            for parent, key, _ in self._of(entry):
                self._orphans.setdefault((parent.name, key), set()).add((route.name, reject.row.key))

    def settled(self, route: Route, row: PendingRow) -> None:
        """Let the children of a row's record go, if they may."""
        keys = {shown(row.key), *row.keys}
        self.wake_waiters(route, keys)
        orphans: set[Place] = set()
        for key in keys:
            orphans |= self._orphans.pop((route.name, key), set())
        if orphans:
            self._lane.jobs.spawn(self._adopt(orphans))

    def wake_waiters(self, route: Route, keys: Iterable[str]) -> None:
        """Look at the held children of these records again."""
        for key in keys:
            for name, child in self._waiters.pop((route.name, key), ()):
                self._lane.by_name[name].backlog.wake(child, self._lane.clock.monotonic())

    def pass_on(self, route: Route, old_key: str, key: str) -> None:
        """Let the children that wait for a key wait for the row that has left it: nothing else may ever wake them."""
        waiting = self._waiters.pop((route.name, old_key), None)
        if waiting is not None:
            self._waiters.setdefault((route.name, key), set()).update(waiting)

    def _of(self, mapped: Mapped) -> Iterable[tuple[Route, str, str | None]]:
        """Yield (mapping, key, link slot or None) of each record that a row refers to."""
        for parent in mapped.parents:
            for route in self._lane.routes:
                if (route.target.object, route.target.key_field) == (parent.object, parent.key_field):
                    yield route, parent.key, None
        for link in mapped.links:
            for route in self._lane.routes:
                if route.target.object == link.to_object and link.key is not None:
                    yield route, link.key, slot(link)

    async def _is_ready(
        self,
        route: Route,
        row: PendingRow,
        reference: tuple[Route, str, str | None],
        known: dict[Place, Known],
    ) -> bool:
        """Whether a row may go as far as one of its parents is concerned; if not, the row is held or parked here."""
        parent, key, link = reference
        if parent is route and key == row.key:
            return True
        if (parent.name, key) not in known:
            for entry in (await self._lane.known(parent, [key])).values():
                known[parent.name, key] = entry
        backlog = parent.backlog
        there = (parent.name, key) in known
        if backlog.holds_up(key) or (not there and (backlog.will_write(key) or not parent.copied)):
            self._hold(route, row, parent, key)
            return False
        if not there and link is not None and key not in backlog.parked:
            there = await self._found(parent, key, known)
        if not there and (link is not None or key in backlog.parked):
            self._orphan(route, row, parent, key)
            return False
        return True

    def _hold(self, route: Route, row: PendingRow, parent: Route, key: str) -> None:
        reason = f"{parent.target.object} {key} has to be written first"
        held = route.backlog.give_back(row, self._lane.clock.monotonic(), hold=reason)
        self._waiters.setdefault((parent.name, key), set()).add((route.name, held))

    def _orphan(self, route: Route, row: PendingRow, parent: Route, key: str) -> None:
        why = "is itself rejected" if key in parent.backlog.parked else "does not exist"
        self._lane.rejects.park(route, row, Rejected(PARENT_MISSING, f"{parent.target.object} {key} {why}"))
        self._orphans.setdefault((parent.name, key), set()).add((route.name, row.key))

    async def _found(self, parent: Route, key: str, known: dict[Place, Known]) -> bool:
        """Ask the CRM for a parent that we never wrote, and remember it."""
        lane = self._lane
        found = (await lane.find(parent, [key])).get(key)
        entry = lane.books.ledger.get((parent.name, key))
        if entry is None and found is not None and not parent.backlog.knows(key):
            entry = lane.books.ledger[parent.name, key] = Known(found, (), b"", {}, START, lane.clock.time())
        if entry is not None:
            known[parent.name, key] = entry
        return entry is not None

    async def _adopt(self, children: set[Place]) -> None:
        for name, key in children:
            await self._lane.rejects.readmit_unchanged(self._lane.by_name[name], key)
        self._lane.nudge()


def _link(routes: Sequence[Route]) -> None:
    """Tell each mapping which ones refer to it, from the config's ``ref`` and ``associate``."""
    for route in routes:
        parents = {(f.ref.object, f.ref.key_field) for f in route.config.fields.values() if f.ref is not None}
        linked = {entry.to_object for entry in route.config.associate}
        for other in routes:
            refers = (other.target.object, other.target.key_field) in parents or other.target.object in linked
            if other is not route and refers:
                other.children.append(route)
