"""The org's records, indexed by unique and external-id fields and by parent; the rules are in ``salesforce_writes``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from cdcsync.sandbox.salesforce_ids import new_id
from cdcsync.sandbox.salesforce_schema import Entity, Field, Schema
from cdcsync.sandbox.salesforce_values import Stored, format_time

USER_PREFIX: Final = "005"


@dataclass(slots=True)
class Record:
    """One record. ``values`` holds no nulls and no system fields; a deleted one is in the recycle bin."""

    id: str
    entity: Entity
    values: dict[str, Stored]
    created: float
    modified: float
    created_by: str
    modified_by: str
    deleted: bool = False
    writes: int = 0

    def keys(self) -> dict[str, str]:
        """Give its external keys: {field: value}."""
        return {name: str(self.values[name]) for name in self.entity.key_fields if name in self.values}

    def present(self, member: Field) -> Any:
        """Give a field's value as JSON shows it."""
        match member.name:
            case "Id":
                return self.id
            case "IsDeleted":
                return self.deleted
            case "CreatedDate":
                return format_time(self.created)
            case "LastModifiedDate" | "SystemModstamp":
                return format_time(self.modified)
            case "CreatedById":
                return self.created_by
            case "LastModifiedById":
                return self.modified_by
        if member.calculated and member.name == "Name":
            parts = (self.values.get("FirstName"), self.values.get("LastName"))
            return " ".join(str(part) for part in parts if part)
        value = self.values.get(member.name)
        if isinstance(value, Decimal):
            return int(value) if member.type == "int" else float(value)
        return value


def index_key(member: Field, value: Stored) -> str:
    """Bring a value to the form by which equal keys are equal (facts 5: case counts, unless unique without case)."""
    text = str(value)
    return text.casefold() if member.unique and not member.case_sensitive else text


@dataclass(slots=True)
class Store:
    """All records of the org, live and deleted. ``room`` is how many live ones the org's storage holds; None: any."""

    schema: Schema
    room: int | None = None
    records: dict[str, Record] = field(default_factory=dict)
    _sequences: Counter[str] = field(default_factory=Counter)
    _index: dict[tuple[str, str], dict[str, set[str]]] = field(default_factory=dict)
    _referrers: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget all records; ids are not given again."""
        self.records.clear()
        self._index.clear()
        self._referrers.clear()

    def adopt(self, schema: Schema) -> None:
        """Go on with another schema: the indexes are built anew."""
        self.schema = schema
        self._index.clear()
        self._referrers.clear()
        for record in self.records.values():
            record.entity = schema.entity(record.entity.name) or record.entity
            self.link(record)

    def new_id(self, prefix: str) -> str:
        """Take the next id with a key prefix."""
        self._sequences[prefix] += 1
        return new_id(prefix, self._sequences[prefix])

    @property
    def is_full(self) -> bool:
        """Whether the storage has no room for another record; what is in the recycle bin takes none."""
        if self.room is None or len(self.records) < self.room:
            return False
        return sum(not record.deleted for record in self.records.values()) >= self.room

    def find(self, entity: Entity, member: Field, value: Stored) -> list[str]:
        """List the ids of live records with this key."""
        if member.type == "id":
            record = self.records.get(str(value))
            return [record.id] if record and record.entity is entity and not record.deleted else []
        return sorted(self._index.get((entity.name, member.name), {}).get(index_key(member, value), ()))

    def each(self, entity: Entity) -> Iterator[Record]:
        """Walk through an object's records, deleted ones too."""
        return (record for record in self.records.values() if record.entity is entity)

    def referrers(self, record_id: str) -> list[tuple[str, str]]:
        """List (child id, field name) of the live records that refer to this one."""
        return sorted(self._referrers.get(record_id, ()))

    def put(self, record: Record) -> None:
        """Add a record, or put an earlier state of it back."""
        known = self.records.get(record.id)
        if known:
            self.unlink(known)
        self.records[record.id] = record
        self.link(record)

    def drop(self, record_id: str) -> None:
        """Take a record out as if it had never been."""
        self.unlink(self.records.pop(record_id))

    def link(self, record: Record) -> None:
        """Enter a live record into the indexes."""
        if record.deleted:
            return
        for member in record.entity.indexed:
            if member.name in record.values:
                index = self._index.setdefault((record.entity.name, member.name), {})
                index.setdefault(index_key(member, record.values[member.name]), set()).add(record.id)
        for member in record.entity.relationships.values():
            if member.name in record.values:
                parent = str(record.values[member.name])
                self._referrers.setdefault(parent, set()).add((record.id, member.name))

    def unlink(self, record: Record) -> None:
        """Take a live record out of the indexes; call before its indexed values change."""
        if record.deleted:
            return
        for member in record.entity.indexed:
            if member.name in record.values:
                index = self._index[record.entity.name, member.name]
                key = index_key(member, record.values[member.name])
                index[key].discard(record.id)
                if not index[key]:
                    del index[key]
        for member in record.entity.relationships.values():
            if member.name in record.values:
                self._referrers[str(record.values[member.name])].discard((record.id, member.name))
