"""The records of a portal: live ones, the recycle bin, unique values, aliases of merged records; and their books.

No IO; the caller gives the time. Property dictionaries are replaced on a change and never mutated, so that the search
index can keep old ones by reference.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from cdcsync.sandbox.books import Action, Books, Write
from cdcsync.sandbox.hubspot_associations import Associations
from cdcsync.sandbox.hubspot_index import SearchIndex
from cdcsync.sandbox.hubspot_schema import EMAIL, MORE_EMAILS, ObjectType, Schema
from cdcsync.sandbox.hubspot_values import print_time

FIRST_ID = 171_591_000_001


@dataclass(slots=True, eq=False)
class Stored:
    """One record. Times are Unix seconds; a property that was never set is missing, a cleared one is empty."""

    kind: ObjectType
    id: str
    properties: Mapping[str, str]
    created: float
    modified: float
    archived: float | None = None
    writes: int = 1


@dataclass(slots=True)
class Table:
    """The records of one object type.

    ``ids`` are all ids ever given, growing; ``holders`` maps (property, value) to the live record's id; ``kept`` the
    values of archived records to their ids and the time until which they stay taken.
    """

    ids: list[int] = field(default_factory=list)
    live: dict[str, Stored] = field(default_factory=dict)
    bin: dict[str, Stored] = field(default_factory=dict)
    holders: dict[tuple[str, str], str] = field(default_factory=dict)
    kept: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class Store:
    """All records. ``version_fields`` and the holding time of archived values come from the portal's settings."""

    def __init__(self, schema: Schema, books: Books) -> None:
        self.schema = schema
        self.books = books
        self.associations = Associations()
        self.index = SearchIndex()
        self.archived_unique_hold = 0.0
        self._version_fields: Mapping[str, str | None] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self._tables: dict[str, Table] = {}
        self._next_id = FIRST_ID
        self.associations.clear()
        self.index.clear()

    def use_version_fields(self, fields: Mapping[str, str | None]) -> None:
        """Say which property of each object type only ever increases."""
        self._version_fields = fields

    def table(self, kind: ObjectType) -> Table:
        """Return the records of one object type."""
        return self._tables.setdefault(kind.name, Table())

    def get(self, kind: ObjectType, record_id: str) -> Stored | None:
        """Return a live record by its id, or by one that it had before a merge."""
        table = self.table(kind)
        return table.live.get(table.aliases.get(record_id, record_id))

    def find(self, kind: ObjectType, name: str, value: str) -> Stored | None:
        """Return a live record by a unique property's value; contacts by any of their addresses."""
        table = self.table(kind)
        holder = table.holders.get(_claim(name, value))
        return table.live[holder] if holder else None

    def holder(self, kind: ObjectType, claim: tuple[str, str], now: float) -> str | None:
        """Return the id of the record that holds a unique value: a live one, or an archived one that still keeps it."""
        table = self.table(kind)
        if claim in table.holders:
            return table.holders[claim]
        kept = table.kept.get(claim)
        return kept[0] if kept and kept[1] > now else None

    def next_id(self) -> str:
        """Return the id that the next record will get."""
        return str(self._next_id)

    def insert(self, kind: ObjectType, properties: Mapping[str, str], now: float, *, by_person: bool = False) -> Stored:
        """Create a record."""
        record_id = self.next_id()
        self._next_id += 1
        meta = {
            "hs_object_id": record_id,
            kind.created_property: print_time(now),
            kind.modified_property: print_time(now),
        }
        given = {name: value for name, value in properties.items() if value}
        record = Stored(kind, record_id, {**meta, **given}, now, now)
        table = self.table(kind)
        table.live[record_id] = record
        table.ids.append(int(record_id))
        for claim in claims(kind, record.properties):
            table.holders[claim] = record_id
        self.index.note(kind.name, record_id, record.properties, now)
        self._enter("create", record, {}, tuple(given), now, by_person=by_person)
        return record

    def change(self, record: Stored, changes: Mapping[str, str], now: float, *, by_person: bool = False) -> None:
        """Write properties. Values that are stored already change nothing, not even the modification time.

        To clear what was never set changes nothing either.
        """
        changed = {name: value for name, value in changes.items() if record.properties.get(name, "") != value}
        before = record.properties
        record.writes += 1
        if changed:
            record.properties = {**before, **changed, record.kind.modified_property: print_time(now)}
            record.modified = now
            self._move_claims(record, before)
            self.index.note(record.kind.name, record.id, record.properties, now)
        self._enter("update", record, before, tuple(changed), now, by_person=by_person)

    def _move_claims(self, record: Stored, before: Mapping[str, str]) -> None:
        table = self.table(record.kind)
        old, new = claims(record.kind, before), claims(record.kind, record.properties)
        for claim in old - new:
            table.holders.pop(claim, None)
        for claim in new - old:
            table.holders[claim] = record.id

    def archive(self, record: Stored, now: float, *, by_person: bool = False) -> None:
        """Put a record into the recycle bin: its associations go, and its unique values become free."""
        table = self.table(record.kind)
        del table.live[record.id]
        table.bin[record.id] = record
        record.archived = now
        for claim in claims(record.kind, record.properties):
            table.holders.pop(claim, None)
            if self.archived_unique_hold:
                table.kept[claim] = (record.id, now + self.archived_unique_hold)
        self.associations.drop(record.kind.name, record.id)
        self.index.note(record.kind.name, record.id, None, now)
        self._enter("delete", record, record.properties, (), now, by_person=by_person)

    def merge(self, primary: Stored, other: Stored, now: float) -> Stored:
        """Merge two records, as a person would: the survivor gets a new id, both old ids stay usable."""
        kind = primary.kind
        properties = {**other.properties, **{name: value for name, value in primary.properties.items() if value}}
        for meta in ("hs_object_id", kind.created_property, kind.modified_property):
            properties.pop(meta, None)
        if kind.name == "contacts":
            addresses = {
                value for one in (primary, other) for name, value in claims(kind, one.properties) if name == EMAIL
            }
            properties[MORE_EMAILS] = ";".join(sorted(addresses - {properties.get(EMAIL, "")}))
        for one in (primary, other):
            self.associations.move(kind.name, one.id, self.next_id())
        for one in (primary, other):
            self.archive(one, now, by_person=True)
        survivor = self.insert(kind, properties, now, by_person=True)
        survivor.created = primary.created
        table = self.table(kind)
        for old, new in list(table.aliases.items()):
            if new in {primary.id, other.id}:
                table.aliases[old] = survivor.id
        for one in (primary, other):
            del table.bin[one.id]
            table.aliases[one.id] = survivor.id
        return survivor

    def linked(self, record: Stored, to: ObjectType, now: float, *, changed: bool) -> None:
        """Enter a write of an association into the books."""
        key = self._key(record.kind, record.properties)
        names = (f"associations.{to.name}",) if changed else ()
        record.writes += 1
        self.books.record(Write(now, "update", record.kind.name, record.id, key, key, changed=names))

    def each(self, kind: ObjectType) -> Iterator[Stored]:
        """Every record of a type, live ones first."""
        table = self.table(kind)
        yield from table.live.values()
        yield from table.bin.values()

    def page(self, kind: ObjectType, after: int, limit: int, *, archived: bool) -> list[Stored]:
        """Up to ``limit`` records in the order of their ids, from the id ``after`` on."""
        table = self.table(kind)
        records = table.bin if archived else table.live
        later = itertools.islice(table.ids, bisect_left(table.ids, after), None)
        return list(itertools.islice((records[text] for text in map(str, later) if text in records), limit))

    def key(self, record: Stored) -> dict[str, str]:
        """Return the external key as the books know it."""
        return self._key(record.kind, record.properties)

    def _key(self, kind: ObjectType, properties: Mapping[str, str]) -> dict[str, str]:
        """Return custom unique values; the e-mail only where there are none, for rows may pass an e-mail on."""
        key = {name: properties[name] for name in kind.key_names if properties.get(name)}
        if not key and kind.name == "contacts" and properties.get(EMAIL):
            key = {EMAIL: properties[EMAIL]}
        return key

    def _version(self, kind: ObjectType, properties: Mapping[str, str]) -> Decimal | None:
        name = self._version_fields.get(kind.name)
        try:
            return Decimal(properties[name]) if name and properties.get(name) else None
        except InvalidOperation:
            return None

    def _enter(
        self,
        action: Action,
        record: Stored,
        before: Mapping[str, str],
        changed: Iterable[str],
        now: float,
        *,
        by_person: bool,
    ) -> None:
        kind = record.kind
        after: Mapping[str, str] = {} if action == "delete" else record.properties
        write = Write(
            now,
            action,
            kind.name,
            record.id,
            self._key(kind, before),
            self._key(kind, after),
            self._version(kind, before),
            self._version(kind, after),
            tuple(changed),
            by_person,
        )
        self.books.record(write)


def _claim(name: str, value: str) -> tuple[str, str]:
    if name in {EMAIL, MORE_EMAILS}:
        return EMAIL, value.lower()
    return name, value


def claims(kind: ObjectType, properties: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return the unique values of a record; a contact's primary and additional addresses are one kind of value."""
    found: set[tuple[str, str]] = set()
    for name in kind.unique_names:
        value = properties.get(name)
        if not value:
            continue
        if name == MORE_EMAILS:
            found.update(_claim(EMAIL, one) for one in value.split(";"))
        else:
            found.add(_claim(name, value))
    return found
