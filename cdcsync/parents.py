"""Parents before children: a row that refers to a record waits until that one is there, and for nothing else.

* A parent that is waiting, in flight or still to be copied holds its children; they are woken when it settles.
* A parent that is rejected, or that an association needs and nobody has, parks its children under it; they are taken up
  when it has come.
* Where rows wait for each other in a circle, or a row for its own record, one goes without what it refers to, and once
  more when that is there.
* While a row in flight refers to a record, that one neither goes nor gets another key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cdcsync.coalesce import PendingRow, shown
from cdcsync.entries import Known, Reject
from cdcsync.mappers.compile import Mapped
from cdcsync.model import START, Ref, Rejected
from cdcsync.plan import map_rows, slot
from cdcsync.rejects import PARENT_MISSING
from cdcsync.route import Route
from cdcsync.wal.decode import split_tuple

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its parents; here only for its type

Place: TypeAlias = tuple[str, str]
"""A mapping's name and a key in it."""


class Reference(NamedTuple):
    """A record that a row refers to: by the field or link (``slot``) of this name; None: it only goes first."""

    parent: Route
    key: str
    name: str | None
    link: bool = False

    @property
    def place(self) -> Place:
        """The record's place."""
        return self.parent.name, self.key


@dataclass(slots=True)
class Standing:
    """Which of the rows taken may go as far as their parents are concerned, and what was found out about these.

    ``ids`` and ``later`` are as in ``plan.Facts``.
    """

    going: list[PendingRow] = field(default_factory=list)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)
    later: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def postpone(self, row: PendingRow, reference: Reference) -> None:
        """Leave what refers to a record for later; where nothing does, the row just goes first."""
        if reference.name is not None:
            self.later[row.key].add(reference.name)


class Parents:
    """Who waits for whom in one lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._waiters: defaultdict[Place, set[Place]] = defaultdict(set)
        """Parent → held children."""
        self._waits: dict[Place, Place] = {}
        """Held child → the parent that it waits for."""
        self._orphans: dict[Place, set[Place]] = {}
        """Parent → parked children that go when that parent has come."""
        _link(lane.routes)

    async def sort_out(self, route: Route, rows: list[PendingRow], mapped: Mapping[str, Mapped]) -> Standing:
        """Hold or park the rows whose parents are not there yet; says which ones may go."""
        wanted = {row.key: list(self._of(route, row, mapped[row.key])) for row in rows if not row.deleted}
        known = await self._known(reference for references in wanted.values() for reference in references)
        standing = Standing()
        for row in rows:
            self._waits.pop((route.name, row.key), None)
            references = wanted.get(row.key, ())
            for reference in references:
                if not await self._is_ready(route, row, reference, known, standing):
                    standing.later.pop(row.key, None)
                    break
                there = known.get(reference.place)
                if reference.name is not None and there is not None and there.crm_id is not None:
                    standing.ids[row.key, reference.name] = there.crm_id
            else:
                standing.going.append(row)
                self._refer(route, row.key, references)
        return standing

    async def ids(self, mapped: Mapping[str, Mapped]) -> dict[tuple[str, str], str]:
        """Return the ids, as in ``plan.Facts``, for rows in flight that were taken before the last start."""
        wanted = {key: list(self._named(entry)) for key, entry in mapped.items()}
        known = await self._known(reference for references in wanted.values() for reference in references)
        return {
            (key, reference.name): known[reference.place].crm_id or ""
            for key, references in wanted.items()
            for reference in references
            if reference.name is not None and reference.place in known
        }

    def refer(self, route: Route, rows: Iterable[PendingRow], mapped: Mapping[str, Mapped]) -> None:
        """Note to which records rows in flight refer that were taken before the last start."""
        for row in rows:
            if row.key in mapped:
                self._refer(route, row.key, list(self._of(route, row, mapped[row.key])))

    @staticmethod
    def _refer(route: Route, key: str, references: Sequence[Reference]) -> None:
        route.backlog.refer(key, [reference.place for reference in references])

    def remember_orphan(self, route: Route, reject: Reject) -> None:
        """Note whose coming takes a parked row up, as the state file has it."""
        if reject.code != PARENT_MISSING or reject.row.deleted:
            return
        mapped, _ = map_rows(route.mapper, [reject.row])
        for entry in mapped.values():
            for reference in self._named(entry):
                self._orphans.setdefault(reference.place, set()).add((route.name, reject.row.key))

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
                self._waits.pop((name, child), None)
                self._lane.by_name[name].backlog.wake(child, self._lane.clock.monotonic())

    def pass_on(self, route: Route, old_key: str, key: str) -> None:
        """Let the children that wait for a key wait for the row that has left it: nothing else may ever wake them."""
        for child in self._waiters.pop((route.name, old_key), ()):
            self._wait(child, (route.name, key))

    async def _known(self, references: Iterable[Reference]) -> dict[Place, Known]:
        keys: defaultdict[str, set[str]] = defaultdict(set)
        for reference in references:
            keys[reference.parent.name].add(reference.key)
        known: dict[Place, Known] = {}
        for name, wanted in keys.items():
            for key, entry in (await self._lane.known(self._lane.by_name[name], wanted)).items():
                known[name, key] = entry
        return known

    def _of(self, route: Route, row: PendingRow, mapped: Mapped) -> Iterable[Reference]:
        """Yield the records of this lane's mappings that have to be there before a row's."""
        yield from self._named(mapped)
        if not route.follows:
            return
        values = dict(zip((column.name for column in row.relation.columns), split_tuple(row.image), strict=True))
        for column, parent in route.follows:
            value = values.get(column)
            if isinstance(value, bytes):
                yield Reference(parent, value.decode(errors="replace"), None)

    def _named(self, mapped: Mapped) -> Iterable[Reference]:
        """Yield the records of this lane's mappings that a record refers to."""
        routes = self._lane.routes
        for name, value in mapped.fields.items() if mapped.parents else ():
            if isinstance(value, Ref):
                for route in routes:
                    if (route.target.object, route.target.key_field) == (value.object, value.key_field):
                        yield Reference(route, value.key, name)
        for link in mapped.links:
            for route in routes:
                if route.target.object == link.to_object and link.key is not None:
                    yield Reference(route, link.key, slot(link), link=True)

    async def _is_ready(
        self, route: Route, row: PendingRow, reference: Reference, known: dict[Place, Known], standing: Standing
    ) -> bool:
        """Whether a row may go as far as one of its parents is concerned; if not, the row is held or parked here."""
        parent, key = reference.parent, reference.key
        if parent is route and key == row.key:
            if reference.place not in known or row.uncertain or row.whole or row.base != key:
                standing.postpone(row, reference)
            return True
        if reference.place not in known:
            known |= await self._known([reference])
        backlog = parent.backlog
        there = reference.place in known and not (reference.link and known[reference.place].crm_id is None)
        if backlog.holds_up(key) or (not there and (backlog.will_write(key) or not parent.copied)):
            if self._closes_circle(route, row.key, reference.place):
                standing.postpone(row, reference)
                return True
            self._hold(route, row, reference)
            return False
        if not there and route.backlog.fold.newer_than(row) is not None:
            # It has changed since, and may refer to the record by another key by now.
            route.backlog.give_back(row, self._lane.clock.monotonic())
            return False
        there = there and key not in backlog.unsure
        parked = key in backlog.parked
        if not there and reference.link and not parked:
            there = await self._found(parent, key, known)
        if not there and reference.name is not None and (reference.link or parked):
            self._orphan(route, row, reference)
            return False
        return True

    def _closes_circle(self, route: Route, key: str, place: Place) -> bool:
        """Whether the record at ``place`` waits, perhaps by way of others, for the row itself."""
        seen: set[Place] = set()
        step: Place | None = place
        while step is not None and step not in seen:
            if step == (route.name, key):
                return True
            seen.add(step)
            backlog = self._lane.by_name[step[0]].backlog
            seat = backlog.leaves(step[1])
            step = self._waits.get(step) or (None if seat is None else (step[0], seat))
        return False

    def _hold(self, route: Route, row: PendingRow, reference: Reference) -> None:
        reason = f"{reference.parent.target.object} {reference.key} has to be written first"
        held = route.backlog.give_back(row, self._lane.clock.monotonic(), hold=reason)
        self._wait((route.name, held), reference.place)

    def _wait(self, child: Place, parent: Place) -> None:
        self._waiters[parent].add(child)
        self._waits[child] = parent

    def _orphan(self, route: Route, row: PendingRow, reference: Reference) -> None:
        parent, key = reference.parent, reference.key
        why = "is itself rejected" if key in parent.backlog.parked else "does not exist"
        self._lane.rejects.park(route, row, Rejected(PARENT_MISSING, f"{parent.target.object} {key} {why}"))
        self._orphans.setdefault(reference.place, set()).add((route.name, row.key))

    async def _found(self, parent: Route, key: str, known: dict[Place, Known]) -> bool:
        """Ask the CRM for a parent that we never wrote, or whose id we do not know, and remember it."""
        lane = self._lane
        found = (await lane.find(parent, [key])).get(key)
        place = parent.name, key
        entry = lane.books.ledger.get(place, known.get(place))
        if (entry is None or entry.crm_id is None) and found is not None and not parent.backlog.knows(key):
            new = Known(found, (), b"", {}, START, lane.clock.time())
            entry = lane.books.ledger[place] = new if entry is None else replace(entry, crm_id=found)
        if entry is not None:
            known[place] = entry
        return entry is not None and entry.crm_id is not None

    async def _adopt(self, children: set[Place]) -> None:
        for name, key in children:
            await self._lane.rejects.readmit_unchanged(self._lane.by_name[name], key)
        self._lane.nudge()


def _link(routes: Sequence[Route]) -> None:
    """Tell each mapping which ones refer to it, or follow it: by ``ref``, ``associate`` or foreign key."""
    for route in routes:
        parents = {(f.ref.object, f.ref.key_field) for f in route.config.fields.values() if f.ref is not None}
        linked = {entry.to_object for entry in route.config.associate}
        for other in routes:
            refers = (other.target.object, other.target.key_field) in parents or other.target.object in linked
            if refers or any(one.parent is other for one in route.follows):
                other.children.append(route)
