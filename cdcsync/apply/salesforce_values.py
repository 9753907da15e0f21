"""How values are written to Salesforce: as JSON for the REST API, as cells for Bulk 2.0. Pure.

A value means the same on both ways. SQL NULL clears the field (``null``, ``#N/A``). So does a text without content: the
REST API takes ``""`` for null, while an empty cell would leave the field alone. Line breaks go as LF, since a CR
anywhere fails a whole bulk job. Times keep whole seconds, as Salesforce does.
Sources: Bulk API 2.0 guide, "Prepare CSV Files"; SOAP guide, "Primitive Data Types"; REST guide, "Null Values".
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

from cdcsync.apply.salesforce_objects import Field, Shape
from cdcsync.errors import FatalError
from cdcsync.model import Record, Ref, Rejected, Target, Value

NULL_CELL: Final = "#N/A"
BLANKS: Final = " \t\n\r\x0b\x0c"
"""What Salesforce trims; a no-break space stays."""

quoted: Final = json.JSONEncoder(ensure_ascii=False).encode
"""Writes a JSON string; ``json.dumps`` would make a new encoder for each."""

KeyField = Callable[[str, str], Field]
"""Finds an object's key field by (object, field)."""


def written(value: Value) -> str | None:
    """Print a value as text; None clears the field. Not for references."""
    match value:
        case str():
            return clean(value) or None
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return format(Decimal(repr(value)), "f")  # the shortest digits that mean this float, without exponent
        case Decimal():
            return format(value, "f")
        case dt.datetime():
            return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
        case dt.date():
            return value.isoformat()
        case _:
            return None


def clean(text: str) -> str:
    """Give a text with LF line breaks; one of blanks only, which Salesforce would trim to nothing, is empty."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    return plain if plain.strip(BLANKS) else ""


def number(text: str) -> str | None:
    """Give a key's text as a plain number; None if it is none."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return format(value, "f") if value.is_finite() else None


def unsendable(record: Record) -> Rejected | None:
    """Find what no API takes: a number that is none."""
    for name, value in record.fields.items():
        finite = (
            value.is_finite() if isinstance(value, Decimal) else not isinstance(value, float) or math.isfinite(value)
        )
        if not finite:
            return Rejected("number-not-finite", "NaN and infinity have no form in Salesforce", name)
    return None


def relationship(shape: Shape, name: str, ref: Ref) -> tuple[str, str | None]:
    """Name the relationship behind a reference field, and the object where it must be said (polymorphic fields).

    Raises FatalError if the field does not refer to that object.
    """
    field = shape.field(name)
    if field is None or field.relationship is None or ref.object not in field.refers_to:
        refers = f"refers to {' or '.join(field.refers_to) or 'nothing'}" if field else "is not there for our user"
        raise FatalError(
            f"{shape.name}.{name} cannot take a reference to {ref.object}: it {refers}",
            hint="run `cdcsync check`, then correct `ref` in the mapping",
        )
    return field.relationship, ref.object if field.polymorphic else None


class JsonForm:
    """Writes records as members of a Collections request."""

    def __init__(self, target: Target, shape: Shape, key_field: KeyField) -> None:
        self._shape = shape
        self._key_field = key_field
        self._head = f'{{"attributes":{{"type":{quoted(target.object)}}}'
        self._key_name = quoted(target.key_field)
        self._key = key_field(target.object, target.key_field)

    def upsert(self, record: Record) -> str:
        """Write a record with its key, which finds it."""
        return f"{self._head},{self._key_name}:{_key_json(self._key, record.key)}{self._members(record.fields)}}}"

    def update(self, record: Record) -> str:
        """Write a record with its id, which finds it; the key is one of the values."""
        return (
            f'{self._head},"id":{quoted(record.crm_id)},{self._key_name}:{_key_json(self._key, record.key)}'
            f"{self._members(record.fields)}}}"
        )

    def _members(self, fields: Mapping[str, Value]) -> str:
        return "".join(f",{self._member(name, value)}" for name, value in fields.items())

    def _member(self, name: str, value: Value) -> str:
        if isinstance(value, Ref):
            return self._reference(name, value)
        text = written(value)
        if text is None:
            return f"{quoted(name)}:null"
        bare = isinstance(value, bool | int | float | Decimal)
        return f"{quoted(name)}:{text if bare else quoted(text)}"

    def _reference(self, name: str, ref: Ref) -> str:
        relation, named = relationship(self._shape, name, ref)
        typed = f'"attributes":{{"type":{quoted(named)}}},' if named else ""
        key = _key_json(self._key_field(ref.object, ref.key_field), ref.key)
        return f"{quoted(relation)}:{{{typed}{quoted(ref.key_field)}:{key}}}"


def _key_json(field: Field, key: str) -> str:
    bare = number(key) if field.is_number else None
    return bare or quoted(clean(key))
