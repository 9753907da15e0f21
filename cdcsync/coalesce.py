"""Fold the changes of a row into the one that is still to be sent. Pure.

One ``Fold`` serves one mapping. Its rules:

* insert + update = insert with the columns merged; anything + delete = delete; delete + insert = update, unless both
  may have been sent before a crash.
* A column that was not sent (unchanged TOAST) keeps the value folded earlier, else stays absent. A row that was
  deleted and comes back, as into a row filter, has nothing to keep: what the record holds may be out of date.
* A row has a *seat*, the key that it has in the database, and *places*: the keys under which the CRM may hold its
  record. Changes alter the seat alone, and what is sent the places alone. So a key change is an update of the same
  record.
* While a row's record may stand under a key, no other row is written there. So no two rows have a place in common,
  except after a crash, where the stream shows every key that a row had, and not which of them was sent (``claims``).
* The delete of a row whose record stands under another key than the row's last has no seat, and so has one onto whose
  key another row moves: the seat is free for that one, which is written when the record is gone.
* A row that is in flight is no longer here. Its next changes fold beside it, and ``give_back`` folds the two
  together if the first has to be sent again.

``fold(a + b) = fold(fold(a), b)``: the journal may cut anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cdcsync.model import ABSENT, Change, ChangeKind, Position, Relation, Text
from cdcsync.wal.decode import join_tuple, split_tuple

_UNCHANGED = b"u"
_SEATLESS = "\0"
"""In the stead of a seat, after the last key: PostgreSQL's texts cannot have it."""
OVERHEAD = 1_500
"""Bytes that a pending row costs beside its tuple, as of when it is sent (measured).

While it waits 600: the object, its key, its places in dicts; 350 more while a tick writes it; 800 more for its record,
what the ledger will say, and the CRM's answer.
"""


class Refused(NamedTuple):
    """That a row was refused as it is: how many times, and since when (Unix time)."""

    times: int
    since: float


@dataclass(slots=True)
class PendingRow:
    """A row of one mapping that the CRM does not hold yet as the database does.

    ``key`` is its seat. ``image`` is the row in pgoutput's tuple form (empty for a delete). ``base``: the key that the
    record has in the CRM if nothing of what waits was sent, as the ledger knows it; None if the row was inserted since.
    ``tried``: other keys under which an earlier state may have been sent without our knowing. ``uncertain``: whether
    any was (a lost answer, a crash); nothing may be concluded from the ledger then. ``whole``: the CRM's record may
    have held another row before, so no column may be left out of the write. ``copied``: only copies have brought it.
    ``refused``: this very change was refused, by the CRM or the mapping, and taken up again; the row's next change
    starts afresh. Times are Unix times of the commits.
    """

    key: str
    relation: Relation
    image: bytes
    deleted: bool
    base: str | None
    first: Position
    last: Position
    since: float
    latest: float
    tried: tuple[str, ...] = ()
    uncertain: bool = False
    whole: bool = False
    refused: Refused | None = None
    copied: bool = False

    def copy(self) -> PendingRow:
        """Return a row of its own that is equal: ``dataclasses.replace`` takes four times as long."""
        return PendingRow(
            self.key,
            self.relation,
            self.image,
            self.deleted,
            self.base,
            self.first,
            self.last,
            self.since,
            self.latest,
            self.tried,
            self.uncertain,
            self.whole,
            self.refused,
            self.copied,
        )

    @property
    def places(self) -> tuple[str, ...]:
        """Every key under which the CRM may hold the record."""
        return self.tried if self.base is None else (self.base, *self.tried)

    @property
    def origins(self) -> tuple[str, ...]:
        """The places that are not the seat."""
        if not self.tried and self.base in {None, self.key}:
            return ()
        return tuple(place for place in self.places if place != self.key)

    @property
    def keys(self) -> tuple[str, ...]:
        """The seat and the places."""
        return (self.key, *self.origins)

    @property
    def is_sure(self) -> bool:
        """Whether the record that the ledger knows under the row's key, if it knows one, is there and is the row's."""
        return self.key in self.places and not self.uncertain and not self.whole

    @property
    def size(self) -> int:
        """Bytes of memory, at most."""
        return len(self.image) + OVERHEAD

    def doubt(self) -> None:
        """Note that the row, as it is, may have reached the CRM."""
        self.uncertain = True
        if not self.deleted and self.key not in self.places:
            self.tried = (*self.tried, self.key)

    def lies_at(self, place: str | None) -> None:
        """Note that the CRM holds the record under ``place`` alone; None: that it holds none."""
        self.base, self.tried = place, ()


def shown(key: str) -> str:
    """Return the key that a row without a seat had last; other keys are what they are."""
    return key.partition(_SEATLESS)[0]


@dataclass(frozen=True, slots=True)
class Event:
    """A change with what the pipeline knows about it: keys of the row before and after, position, commit time."""

    change: Change
    key: str
    old_key: str | None
    position: Position
    time: float
    copied: bool = False
    """Whether it was read by a copy, or is the delete of what a copy did not meet."""


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


def is_partial(image: bytes) -> bool:
    """Whether a tuple does not carry all of its columns."""
    return _UNCHANGED in image and ABSENT in split_tuple(image)


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
    """The waiting rows of one mapping, by seat, in the order of their first change."""

    def __init__(self) -> None:
        self.waiting: dict[str, PendingRow] = {}
        self.movers: dict[str, dict[str, None]] = {}
        """Place → seats of the waiting rows whose record may stand there, and who sit elsewhere."""
        self.coalesced = 0
        """Changes that were absorbed into another one, ever."""
        self.size = 0

    def feed(self, event: Event, *, uncertain: bool = False) -> list[str]:
        """Fold one change in; returns the seats of the waiting rows that it made or changed."""
        before = len(self.waiting)
        kind = event.change.kind
        if kind is ChangeKind.DELETE:
            touched = [self._delete(event)]
        elif event.old_key is not None and event.old_key != event.key:
            touched = self._move(event)
        elif uncertain and kind is ChangeKind.INSERT and self._is_gone(event.key):
            # The two may have been sent one after the other: then each has a record.
            touched = self._take_seat(self._new(event, complete_from_old(event.change)))
        else:
            touched = [self._write(event)]
        if uncertain:
            for key in touched:
                self.waiting[key].doubt()
        self.coalesced += 1 - (len(self.waiting) - before)
        return touched

    def take(self, key: str) -> PendingRow:
        """Remove a waiting row, to send or to change it."""
        row = self.waiting.pop(key)
        for origin in row.origins:
            leaving = self.movers[origin]
            del leaving[key]
            if not leaving:
                del self.movers[origin]
        self.size -= row.size
        return row

    def put(self, row: PendingRow) -> str:
        """Add a row; returns the seat that it was given, which is not its key if it has lost that."""
        if row.deleted and (row.origins or row.key in self.waiting):
            row.key = f"{shown(row.key)}{_SEATLESS}{row.last.commit_lsn:X}/{row.last.ordinal}"
        self.waiting[row.key] = row
        for origin in row.origins:
            self.movers.setdefault(origin, {})[row.key] = None
        self.size += row.size
        return row.key

    def newer_than(self, row: PendingRow) -> str | None:
        """Find the seat of the waiting row that carries the later changes of a taken row."""
        for key in self.movers.get(row.key, ()):
            if self.waiting[key].base == row.key:
                return key
        newer = self.waiting.get(row.key)
        # A row that was inserted after this one was deleted takes its record over; one that moved here has its own.
        follows = newer is not None and (newer.base == row.key or not newer.places or newer.places == (row.key,))
        return row.key if follows else None

    def give_back(self, row: PendingRow) -> str:
        """Return a taken row that has to be sent (again); changes that came meanwhile fold over it.

        Returns the seat that it has now.
        """
        key = self.newer_than(row)
        if key is None:
            # A copy: whoever took the row must see by identity that it is not in their hands any more.
            row = row.copy()
            if row.key in self.waiting:  # the seat is another row's now, so this one has gone
                row.deleted, row.image = True, b""
            return self.put(row)
        self.coalesced += 1
        return self.put(over(row, self.take(key)))

    def claimants(self, place: str) -> list[str]:
        """Return the seats of the waiting rows whose record may stand under ``place``."""
        sitting = self.waiting.get(place)
        here = [place] if sitting is not None and place in sitting.places else []
        return [*self.movers.get(place, ()), *here]

    def contested(self, place: str) -> bool:
        """Whether the record under ``place`` may be that of more than one waiting row."""
        leaving = self.movers.get(place)
        if not leaving:
            return False
        sitting = self.waiting.get(place)
        return len(leaving) > 1 or (sitting is not None and place in sitting.places)

    def _write(self, event: Event) -> str:
        image = complete_from_old(event.change)
        row = self.waiting.get(event.key)
        if row is None:
            return self.put(self._new(event, image))
        self.size -= row.size
        if row.deleted:
            row.whole = row.whole or is_partial(image)
        else:
            image = fill_absent(image, event.change.relation, row.image, row.relation)
        _advance(row, event, image)
        self.size += row.size
        return event.key

    def _delete(self, event: Event) -> str:
        row = self.waiting.get(event.key)
        if row is None:
            return self.put(self._new(event, b""))
        if row.origins:
            self.take(event.key)
            _advance(row, event, b"")
            return self.put(row)
        self.size -= row.size
        _advance(row, event, b"")
        self.size += row.size
        return event.key

    def _move(self, event: Event) -> list[str]:
        old_key = event.old_key
        assert old_key is not None  # noqa: S101 — for the type checker; feed() looked
        row = self._new(event, complete_from_old(event.change))
        if old_key in self.waiting:
            source = self.take(old_key)
            row.image = fill_absent(row.image, row.relation, source.image, source.relation)
            _inherit(row, source)
        return self._take_seat(row)

    def _take_seat(self, row: PendingRow) -> list[str]:
        """Add a row where another one may have sat: that one is gone, or the key could not be this one's."""
        gone = self.take(row.key) if row.key in self.waiting else None
        self.put(row)
        if gone is None or not gone.places:
            return [row.key]
        gone.deleted, gone.image = True, b""
        return [row.key, self.put(gone)]

    def _is_gone(self, key: str) -> bool:
        return key in self.waiting and self.waiting[key].deleted

    def _new(self, event: Event, image: bytes) -> PendingRow:
        place = event.old_key or event.key
        # What another row left there is not this one's, which may have had no key before.
        known = event.change.kind is not ChangeKind.INSERT and place not in self.movers
        return PendingRow(
            key=event.key,
            relation=event.change.relation,
            image=image,
            deleted=event.change.kind is ChangeKind.DELETE,
            base=place if known else None,
            first=event.position,
            last=event.position,
            since=event.time,
            latest=event.time,
            copied=event.copied,
        )


def over(older: PendingRow, newer: PendingRow) -> PendingRow:
    """Fold a later pending row of the same record over an earlier one."""
    # With ``whole`` the earlier state may be that of another row, which had the record before.
    if not newer.deleted and not older.deleted and not newer.whole:
        newer.image = fill_absent(newer.image, newer.relation, older.image, older.relation)
    elif not newer.deleted and older.deleted:
        newer.whole = newer.whole or is_partial(newer.image)
    _inherit(newer, older)
    return newer


def _advance(row: PendingRow, event: Event, image: bytes) -> None:
    row.image = image
    row.relation = event.change.relation
    row.deleted = event.change.kind is ChangeKind.DELETE
    row.last = event.position
    row.latest = event.time
    row.copied = row.copied and event.copied
    row.refused = None


def _inherit(row: PendingRow, older: PendingRow) -> None:
    row.first = older.first
    row.since = older.since
    row.base = older.base
    row.tried = tuple(dict.fromkeys(place for place in (*older.tried, *row.tried) if place != row.base))
    row.uncertain = row.uncertain or older.uncertain
    row.whole = row.whole or older.whole
    row.copied = row.copied and older.copied
