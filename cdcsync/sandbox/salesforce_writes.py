"""Writes with all of Salesforce's rules: required fields, uniqueness, references, locks, cascades, the books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from cdcsync.sandbox.books import Books, Write
from cdcsync.sandbox.salesforce_errors import RowError
from cdcsync.sandbox.salesforce_ids import SHORT
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Record, Store
from cdcsync.sandbox.salesforce_values import Stored

_READ_ONLY = (
    "Unable to create/update fields: {}. Please check the security settings of this field and verify that it is "
    "read/write for your profile or permission set."
)

MERGEABLE = frozenset({"Account", "Contact", "Lead", "Case"})


class RowLock(Protocol):
    """Tries to lock rows for a transaction."""

    def __call__(self, entity: Entity, ids: Iterable[str]) -> str | None:
        """Lock them, or return the id of one that could not be locked."""


def no_lock(entity: Entity, ids: Iterable[str]) -> str | None:  # noqa: ARG001 - the shape of RowLock
    """Lock nothing: what a person does in the CRM always gets through."""
    return None


def repeated(keys: Iterable[str | None]) -> set[str]:
    """Find the keys that occur more than once in one transaction (facts 5: all their rows fail)."""
    return {key for key, count in Counter(keys).items() if key is not None and count > 1}


@dataclass(slots=True)
class Transaction:
    """One request's, or one 200-row chunk's, writes. ``rollback`` works only with ``undoable``.

    Every write raises RowError and then has changed nothing. Nothing is in the books before ``commit``.
    """

    store: Store
    books: Books
    version_field: Callable[[str], str | None]
    now: float
    user: str
    lock: RowLock = no_lock
    by_person: bool = False
    undoable: bool = False
    _writes: list[Write] = field(default_factory=list)
    _before: dict[str, Record | None] = field(default_factory=dict)

    def insert(self, entity: Entity, values: Mapping[str, Stored]) -> str:
        """Create a record; returns its id."""
        self._check_writable(entity, values, creating=True)
        missing = [name for name in entity.required if values.get(name) is None]
        if missing:
            raise RowError("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(missing)}]", missing)
        if self.store.is_full:
            raise RowError("STORAGE_LIMIT_EXCEEDED", "storage limit exceeded")
        self._check_unique(entity, values, None)
        parents = self._parents(entity, values)
        self._lock(entity, parents)
        record_id = self.store.new_id(entity.prefix)
        record = Record(
            record_id, entity, _initial(entity, values, record_id), self.now, self.now, self.user, self.user
        )
        self._save(record_id, None)
        self.store.put(record)
        self._note("create", record, {}, None, tuple(record.values))
        return record_id

    def update(self, entity: Entity, record_id: str, values: Mapping[str, Stored]) -> None:
        """Change a record; a value of None empties a field."""
        record = self._live(entity, record_id)
        self._check_writable(entity, values, creating=False)
        emptied = [name for name in entity.required if name in values and values[name] is None]
        if emptied:
            raise RowError("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(emptied)}]", emptied)
        changed = {name: value for name, value in values.items() if record.values.get(name) != value}
        self._check_unique(entity, changed, record_id)
        parents = self._parents(entity, changed)
        self._lock(entity, [record_id, *parents, *self._parents(entity, record.values)])
        self._apply(record, changed)

    def upsert(
        self, entity: Entity, member: Field, key: Stored, values: Mapping[str, Stored], *, create: bool = True
    ) -> tuple[str, bool]:
        """Create or change the record with this key; returns its id, and whether it was created.

        With ``create`` false a missing record is a RowError ``NOT_FOUND``.
        """
        if key is None and member.type != "id":
            raise RowError("MISSING_ARGUMENT", f"{member.name} not specified")
        found = self.store.find(entity, member, key) if key is not None else []
        if len(found) > 1:
            ids = ", ".join(found)
            message = f"{member.label}: more than one record found for external id field: [{ids}]"
            raise RowError("DUPLICATE_EXTERNAL_ID", message, [member.name])
        if found:
            self.update(entity, found[0], values)
            return found[0], False
        if not create:
            raise RowError("NOT_FOUND", "The requested resource does not exist")
        if member.type == "id":
            if key is not None:
                self._live(entity, str(key))
            return self.insert(entity, values), True
        return self.insert(entity, {**values, member.name: key}), True

    def delete(self, entity: Entity, record_id: str) -> None:
        """Move a record to the recycle bin, with the children that go with it."""
        record = self._live(entity, record_id)
        self._lock(entity, [record_id, *self._parents(entity, record.values)])
        self._bury(record, by_person=self.by_person)

    def merge(self, entity: Entity, master_id: str, other_id: str) -> None:
        """Bury a record, and give its children to another, which stays as it is (SOAP guide, "merge()")."""
        if entity.name not in MERGEABLE:
            raise RowError("INVALID_TYPE", f"{entity.name} records cannot be merged")
        master, other = self._live(entity, master_id), self._live(entity, other_id)
        if master is other:
            raise RowError("INVALID_OPERATION", "a record cannot be merged with itself")
        for child_id, name in self.store.referrers(other.id):
            parent = None if child_id == master.id else master.id
            self._apply(self.store.records[child_id], {name: parent}, by_person=True)
        self._bury(other, by_person=True)

    def commit(self) -> None:
        """Enter the effects into the books."""
        self.books.record_all(self._writes)
        self._writes.clear()

    def rollback(self) -> None:
        """Put everything back as it was."""
        for record_id, record in self._before.items():
            if record is None:
                self.store.drop(record_id)
            else:
                self.store.put(record)
        self._writes.clear()

    def _live(self, entity: Entity, record_id: str) -> Record:
        record = self.store.records.get(record_id)
        if record is None or record.entity is not entity:
            raise RowError("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")
        if record.deleted:
            raise RowError("ENTITY_IS_DELETED", "entity is deleted")
        return record

    def _check_writable(self, entity: Entity, values: Mapping[str, Stored], *, creating: bool) -> None:
        members = entity.fields
        refused = [
            name
            for name in values
            if not (members[name.lower()].createable if creating else members[name.lower()].updateable)
        ]
        if refused:
            raise RowError("INVALID_FIELD_FOR_INSERT_UPDATE", _READ_ONLY.format(", ".join(refused)), refused)

    def _check_unique(self, entity: Entity, values: Mapping[str, Stored], own_id: str | None) -> None:
        for member in entity.indexed:
            value = values.get(member.name) if member.unique else None
            others = [found for found in self.store.find(entity, member, value) if found != own_id] if value else []
            if others:
                message = f"duplicate value found: {member.name} duplicates value on record with id: "
                raise RowError("DUPLICATE_VALUE", message + others[0][:SHORT])

    def _parents(self, entity: Entity, values: Mapping[str, Stored]) -> list[str]:
        """List the ids referred to. Raises RowError if one is not there or of a wrong kind."""
        parents = []
        for member in entity.relationships.values():
            value = values.get(member.name)
            if value is None:
                continue
            parent = self.store.records.get(str(value))
            if parent is None:
                raise RowError("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")
            if parent.entity.name not in member.reference_to:
                message = f"{member.titled}: id value of incorrect type: {value}"
                raise RowError("MALFORMED_ID", message, [member.name])
            if parent.deleted:
                raise RowError("ENTITY_IS_DELETED", "entity is deleted")
            parents.append(parent.id)
        return parents

    def _lock(self, entity: Entity, ids: list[str]) -> None:
        blocked = self.lock(entity, ids)
        if blocked is not None:
            message = f"unable to obtain exclusive access to this record or 1 records: {blocked}"
            raise RowError("UNABLE_TO_LOCK_ROW", message)

    def _apply(self, record: Record, changed: Mapping[str, Stored], *, by_person: bool | None = None) -> None:
        self._save(record.id, record)
        keys, version = record.keys(), self._version(record)
        linked = not record.entity.linked.isdisjoint(changed)
        if linked:
            self.store.unlink(record)
        for name, value in changed.items():
            if value is None:
                record.values.pop(name, None)
            else:
                record.values[name] = value
        if linked:
            self.store.link(record)
        record.modified, record.modified_by = self.now, self.user
        self._note("update", record, keys, version, tuple(changed), by_person=by_person)

    def _bury(self, record: Record, *, by_person: bool) -> None:
        self._save(record.id, record)
        keys, version = record.keys(), self._version(record)
        self.store.unlink(record)
        record.deleted = True
        record.modified, record.modified_by = self.now, self.user
        write = Write(self.now, "delete", record.entity.name, record.id, keys, {}, version, None, (), by_person)
        self._writes.append(write)
        record.writes += not by_person
        for child_id, name in self.store.referrers(record.id):
            child = self.store.records[child_id]
            if child.deleted:
                continue
            if child.entity.fields[name.lower()].cascade:
                self._bury(child, by_person=True)
            else:
                self._apply(child, {name: None}, by_person=True)

    def _save(self, record_id: str, record: Record | None) -> None:
        if self.undoable and record_id not in self._before:
            saved = copy(record)
            if saved:
                saved.values = dict(saved.values)
            self._before[record_id] = saved

    def _version(self, record: Record) -> Decimal | None:
        name = self.version_field(record.entity.name)
        value = record.values.get(name) if name else None
        return value if isinstance(value, Decimal) else None

    def _note(
        self,
        action: str,
        record: Record,
        keys: Mapping[str, str],
        version: Decimal | None,
        changed: tuple[str, ...],
        *,
        by_person: bool | None = None,
    ) -> None:
        person = self.by_person if by_person is None else by_person
        record.writes += not person
        self._writes.append(
            Write(
                self.now,
                "create" if action == "create" else "update",
                record.entity.name,
                record.id,
                keys,
                record.keys(),
                version,
                self._version(record),
                changed,
                person,
            )
        )


def _initial(entity: Entity, values: Mapping[str, Stored], record_id: str) -> dict[str, Stored]:
    """Give a new record's values: as sent, with the defaults."""
    initial: dict[str, Stored] = {name: value for name, value in values.items() if value is not None}
    for member in entity.fields.values():
        if member.name in initial or not member.createable:
            continue
        if member.type == "boolean":
            initial[member.name] = member.default == "true"
        elif member.defaulted:
            initial[member.name] = member.default or record_id
    return initial
