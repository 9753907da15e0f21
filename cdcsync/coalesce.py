"""Fold the changes of a row into the one that is still to be sent. Pure.

One ``Fold`` serves one mapping. Its rules:

* insert + update = insert with the columns merged; anything + delete = delete; delete + insert = update.
* A column that was not sent (unchanged TOAST) keeps the value folded earlier, else stays absent.
* A key change is an update of the *same* CRM record: the row moves to its new key and remembers under which
  keys the CRM may know it (``origins``). The lane sends a row only after the row that still has to leave its key.
* A row moved onto a key whose delete is still waiting becomes an update of that key's record, and the record it
  came from is deleted: what the database shows is the same, and no two records ever hold one key.
* A row that is in flight is no longer here. Its next changes fold beside it, and ``give_back`` folds the two
  together if the first has to be sent again.

``fold(a + b) = fold(fold(a), b)``: the journal may cut anywhere.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cdcsync.model import ABSENT, Change, ChangeKind, Position, Relation, Text
from cdcsync.wal.decode import join_tuple, split_tuple

_UNCHANGED = b"u"
OVERHEAD = 1_500
"""Bytes that a pending row costs beside its tuple, as of when it is sent (measured).

While it waits 600: the object, its key, its places in dicts; 350 more while a tick writes it; 800 more for its record,
what the ledger will say, and the CRM's answer.
"""


@dataclass(slots=True)
class PendingRow:
    """A row of one mapping that the CRM does not hold yet as the database does.

    ``image`` is the row in pgoutput's tuple form (empty for a delete). ``fresh``: the first change folded in was
    an insert, so unless the ledger or ``uncertain`` says otherwise the CRM has never seen the row. ``uncertain``:
    an earlier state may have reached the CRM without our knowing (a lost answer, a crash); nothing may be
    concluded from the ledger then. ``whole``: the CRM's record held another row before, so no column may be left
    out of the write. ``origins``: the key that the ledger knows the record by, if that is not ``key``; of an uncertain
    row also the keys that it had on its way. Times are Unix times of the commits.
    """

    key: str
    relation: Relation
    image: bytes
    deleted: bool
    fresh: bool
    first: Position
    last: Position
    since: float
    latest: float
    origins: tuple[str, ...] = ()
    uncertain: bool = False
    whole: bool = False
    left: dict[str, Position] | None = None
    """When the row left a key, as far as this process saw it."""

    def copy(self) -> PendingRow:
        """Return a row of its own that is equal: ``dataclasses.replace`` takes four times as long."""
        return PendingRow(
            self.key,
            self.relation,
            self.image,
            self.deleted,
            self.fresh,
            self.first,
            self.last,
            self.since,
            self.latest,
            self.origins,
            self.uncertain,
            self.whole,
            self.left,
        )

    def left_at(self, origin: str) -> Position:
        """Return when the row left a key; its first change has to do where that is not known."""
        return self.first if self.left is None else self.left.get(origin, self.first)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key under which the CRM may hold the record."""
        return (self.key, *self.origins)

    @property
    def size(self) -> int:
        """Bytes of memory, at most."""
        return len(self.image) + OVERHEAD


@dataclass(frozen=True, slots=True)
class Event:
    """A change with what the pipeline knows about it: keys of the row before and after, position, commit time."""

    change: Change
    key: str
    old_key: str | None
    position: Position
    time: float


def fill_absent(image: bytes, relation: Relation, older: bytes, older_relation: Relation) -> bytes:
    """Fill the columns that ``image`` does not carry from an older tuple of the same row, by column name."""
    if _UNCHANGED not in image or not older:
        return image
    values = split_tuple(image)
    if ABSENT not in values:
        return image
    known: dict[str, Text] = {
        column.name: value for column, value in zip(older_relation.columns, split_tuple(older), strict=True)
    }
    for index, column in enumerate(relation.columns):
        if values[index] is ABSENT:
            values[index] = known.get(column.name, ABSENT)
    return join_tuple(values)


def complete_from_old(change: Change) -> bytes:
    """Return the new tuple, with what the server left out taken from the old tuple of the same message.

    With REPLICA IDENTITY FULL the old tuple holds the unchanged TOAST values; an old *key* tuple holds those of
    toasted key columns, and NULL in its other slots means "not sent".
    """
    image = change.new or b""
    if change.old is None or _UNCHANGED not in image:
        return image
    older = change.old
    if change.old_is_key:
        older = join_tuple([ABSENT if value is None else value for value in split_tuple(older)])
    return fill_absent(image, change.relation, older, change.relation)


class Fold:
    """The waiting rows of one mapping, by key, in the order of their first change."""

    def __init__(self) -> None:
        self.waiting: dict[str, PendingRow] = {}
        self.movers: dict[str, list[str]] = {}
        """Key that the CRM knows → keys of the waiting rows that leave it, in the order in which they left.

        More than one, where a row left, another was inserted under the key, and left as well.
        """
        self.coalesced = 0
        """Changes that were absorbed into another one, ever."""
        self.size = 0
        self.disturbed: set[str] = set()
        """Keys whose rows were made or changed beside the one asked for; the backlog takes them from here."""

    def feed(self, event: Event, *, uncertain: bool = False) -> list[str]:
        """Fold one change in; returns the keys whose waiting rows it made or changed."""
        before = len(self.waiting)
        kind = event.change.kind
        if kind is ChangeKind.DELETE:
            touched = [self._delete(event)]
        elif event.old_key is not None and event.old_key != event.key:
            touched = self._move(event)
        else:
            touched = [self._write(event)]
        if uncertain:
            for key in touched:
                self.waiting[key].uncertain = True
        self.coalesced += 1 - (len(self.waiting) - before)
        return touched

    def take(self, key: str) -> PendingRow:
        """Remove a waiting row, to send it."""
        row = self.waiting.pop(key)
        for origin in row.origins:
            leaving = self.movers[origin]
            leaving.remove(key)
            if not leaving:
                del self.movers[origin]
        self.size -= row.size
        return row

    def put(self, row: PendingRow) -> None:
        """Add a row as it is (from the journal, or taken but not sent)."""
        self.waiting[row.key] = row
        for origin in row.origins:
            insort(self.movers.setdefault(origin, []), row.key, key=lambda key: self.waiting[key].left_at(origin))
        self.size += row.size

    def newer_than(self, row: PendingRow) -> str | None:
        """Find the key of the waiting row that carries the later changes of a taken row."""
        leaving = self.movers.get(row.key)
        if leaving:
            return leaving[0]
        return row.key if row.key in self.waiting else None

    def give_back(self, row: PendingRow) -> str:
        """Return a taken row that has to be sent (again); changes that came meanwhile fold over it.

        Returns the key it waits under now.
        """
        key = self.newer_than(row)
        if key is None:
            # A copy: whoever took the row must see by identity that it is not in their hands any more.
            self.put(row.copy())
            return row.key
        newer = self.take(key)
        if key == row.key and newer.origins:
            self._vacate(newer)
        self.put(over(row, newer))
        self.coalesced += 1
        return key

    def forget_origins(self, keys: list[str]) -> None:
        """Let rows be written under the keys they have, as when they change keys in a circle.

        A key that an uncertain one of them had on its way, and that no row has now, may hold its record: that is
        deleted.
        """
        origins: dict[str, PendingRow] = {}
        for key in keys:
            row = self.take(key)
            origins.update(dict.fromkeys(row.origins, row))
            row.origins, row.whole = (), True
            self.put(row)
        self.disturbed.update(keys)
        for key, row in origins.items():
            if key not in keys:
                self._surrender(replace(row, key=key, origins=()))

    def _vacate(self, row: PendingRow) -> None:
        """Let a row that was to move onto a key be written there instead, and delete the record it came from."""
        left, row.origins, row.whole = row.origins, (), True
        for origin in left:
            self._surrender(replace(row, key=origin))

    def _surrender(self, row: PendingRow) -> None:
        """See to the record that may stand under ``row``'s key: the row that has the key takes it over, or it goes.

        A row that takes a record over leaves behind the one that it would have taken along.
        """
        self.disturbed.add(row.key)
        if row.key not in self.waiting:
            row.deleted, row.image, row.fresh, row.whole = True, b"", False, False
            self.put(row)
            self.coalesced -= 1
            return
        successor = self.take(row.key)
        left, successor.origins = successor.origins, ()
        successor.whole = successor.uncertain = True
        self.put(successor)
        for origin in left:
            self._surrender(replace(successor, key=origin))

    def _write(self, event: Event) -> str:
        image = complete_from_old(event.change)
        row = self.waiting.get(event.key)
        if row is None:
            self.put(_row(event, image))
            return event.key
        self.size -= row.size
        if not row.deleted:
            image = fill_absent(image, event.change.relation, row.image, row.relation)
        _advance(row, event, image)
        self.size += row.size
        return event.key

    def _delete(self, event: Event) -> str:
        row = self.waiting.get(event.key)
        if row is None:
            self.put(_row(event, b""))
            return event.key
        self.size -= row.size
        _advance(row, event, b"")
        self.size += row.size
        return event.key

    def _move(self, event: Event) -> list[str]:
        old_key = event.old_key
        assert old_key is not None  # noqa: S101 — for the type checker; feed() looked
        image = complete_from_old(event.change)
        source = self.take(old_key) if old_key in self.waiting else None
        if source is not None:
            image = fill_absent(image, event.change.relation, source.image, source.relation)
        target = self.waiting.get(event.key)
        if target is not None:
            return self._move_onto(event, image, source, target)
        row = _row(event, image)
        if source is not None:
            _inherit(row, source)
        passed = source.origins if source is not None else ()
        # A row that was inserted here, and was never sent, leaves no record behind: what stands there is another row's.
        if source is None or source.uncertain or not (passed or source.fresh):
            passed = (*passed, old_key)
        row.origins = _without(row.key, passed)
        row.left = {**(row.left or {}), old_key: event.position}
        self.put(row)
        return [row.key]

    def _move_onto(self, event: Event, image: bytes, source: PendingRow | None, target: PendingRow) -> list[str]:
        self.size -= target.size
        _advance(target, event, image)
        target.whole = True
        self.size += target.size
        leaving = source or _row(event, b"")
        leaving.key = event.old_key or leaving.key
        leaving.deleted, leaving.image = True, b""
        leaving.last, leaving.latest = event.position, event.time
        self.put(leaving)
        return [target.key, leaving.key]


def over(older: PendingRow, newer: PendingRow) -> PendingRow:
    """Fold a later pending row of the same record over an earlier one."""
    # With ``whole`` the earlier state may be that of another row, which had the record before.
    if not newer.deleted and not older.deleted and not newer.whole:
        newer.image = fill_absent(newer.image, newer.relation, older.image, older.relation)
    _inherit(newer, older)
    newer.origins = _without(newer.key, (*older.origins, older.key, *newer.origins))
    return newer


def _without(key: str, origins: Iterable[str]) -> tuple[str, ...]:
    return tuple(origin for origin in dict.fromkeys(origins) if origin != key)


def _row(event: Event, image: bytes) -> PendingRow:
    kind = event.change.kind
    return PendingRow(
        key=event.key,
        relation=event.change.relation,
        image=image,
        deleted=kind is ChangeKind.DELETE,
        fresh=kind is ChangeKind.INSERT,
        first=event.position,
        last=event.position,
        since=event.time,
        latest=event.time,
    )


def _advance(row: PendingRow, event: Event, image: bytes) -> None:
    row.image = image
    row.relation = event.change.relation
    row.deleted = event.change.kind is ChangeKind.DELETE
    row.last = event.position
    row.latest = event.time


def _inherit(row: PendingRow, older: PendingRow) -> None:
    row.first = older.first
    row.since = older.since
    row.fresh = older.fresh
    row.uncertain = row.uncertain or older.uncertain
    row.whole = row.whole or older.whole
    if older.left is not None:
        row.left = {**older.left, **(row.left or {})}
