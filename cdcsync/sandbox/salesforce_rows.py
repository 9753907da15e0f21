"""Rows as they are sent (JSON members or CSV cells) to field values, parents found by their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdcsync.sandbox.salesforce_errors import RowError
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Store
from cdcsync.sandbox.salesforce_values import Stored, check, from_csv, from_json

NULL_CELL: Final = "#N/A"


class HeaderError(Exception):
    """A CSV header that names a field which is not there; the message is the job's errorMessage."""


def read_json(store: Store, entity: Entity, raw: Mapping[str, Any]) -> dict[str, Stored]:
    """Read a record's members, but for ``attributes`` and ``Id``. Raises RowError."""
    values: dict[str, Stored] = {}
    for name, value in raw.items():
        if name == "attributes" or name.lower() == "id":
            continue
        member = entity.field(name)
        if member is not None:
            values[member.name] = from_json(member, value)
            continue
        relationship = entity.relationships.get(name.lower())
        if relationship is None or not (value is None or isinstance(value, dict)):
            raise RowError("INVALID_FIELD", f"No such column '{name}' on sobject of type {entity.name}")
        values[relationship.name] = None if value is None else _parent_by_json(store, relationship, value)
    return values


def _parent_by_json(store: Store, relationship: Field, raw: Mapping[str, Any]) -> str:
    named = (raw.get("attributes") or {}).get("type")
    if named is None and len(relationship.reference_to) > 1:
        message = f"The relationship {relationship.relationship} needs attributes.type: it may refer to several objects"
        raise RowError("INVALID_FIELD", message)
    target = store.schema.entity(named or relationship.reference_to[0])
    keys = [(name, value) for name, value in raw.items() if name != "attributes"]
    member = target.field(keys[0][0]) if target and len(keys) == 1 else None
    if target is None or target.name not in relationship.reference_to or member is None or not member.matchable:
        shown = ", ".join(name for name, _ in keys)
        raise RowError("INVALID_FIELD", f"No such column '{shown}' on sobject of type {target and target.name}")
    return find_parent(store, target, member, from_json(member, keys[0][1]))


def find_parent(store: Store, target: Entity, member: Field, key: Stored) -> str:
    """Find the one record that a reference by key means. Raises RowError."""
    found = store.find(target, member, key) if key is not None else []
    if not found:
        shown = "null" if key is None else key
        message = f"Foreign key external ID: {shown} not found for field {member.name} in entity {target.name}"
        raise RowError("INVALID_FIELD", message)
    if len(found) > 1:
        ids = ", ".join(found)
        message = f"{member.label}: more than one record found for external id field: [{ids}]"
        raise RowError("DUPLICATE_EXTERNAL_ID", message, [member.name])
    return found[0]


@dataclass(frozen=True, slots=True)
class Column:
    """One CSV column: a field, or with ``target`` a reference by the key field ``key`` of that object."""

    number: int
    field: Field
    target: Entity | None = None
    key: Field | None = None


def read_header(store: Store, entity: Entity, names: Sequence[str]) -> list[Column]:
    """Find the columns' fields. Raises HeaderError for the first that is not there."""
    columns = []
    seen = set()
    for number, name in enumerate(names):
        column = _column(store, entity, number, name)
        if column is None:
            raise HeaderError(f"InvalidBatch : Field name not found : {name}")
        if column.field.name in seen:
            raise HeaderError(f"InvalidBatch : Duplicate column : {name}")
        seen.add(column.field.name)
        columns.append(column)
    return columns


def _column(store: Store, entity: Entity, number: int, name: str) -> Column | None:
    if "." not in name:
        member = entity.field(name)
        return Column(number, member) if member else None
    path, key_name = name.rsplit(".", 1)
    typed, relation = path.split(":", 1) if ":" in path else ("", path)
    relationship = entity.relationships.get(relation.lower())
    if relationship is None or bool(typed) != (len(relationship.reference_to) > 1):
        return None
    target = store.schema.entity(typed or relationship.reference_to[0])
    key = target.field(key_name) if target and target.name in relationship.reference_to else None
    return Column(number, relationship, target, key) if key and key.matchable else None


def read_cells(store: Store, columns: Sequence[Column], cells: Sequence[str]) -> dict[str, Stored]:
    """Read one CSV row: empty cells are left alone, ``#N/A`` is null. ``Id`` stays in. Raises RowError."""
    values: dict[str, Stored] = {}
    for column in columns:
        cell = cells[column.number]
        if cell == "":
            continue
        if cell == NULL_CELL:
            values[column.field.name] = check(column.field, None)
        elif column.target is not None and column.key is not None:
            key = from_csv(column.key, cell, column.number)
            values[column.field.name] = find_parent(store, column.target, column.key, key)
        else:
            values[column.field.name] = from_csv(column.field, cell, column.number)
    return values
