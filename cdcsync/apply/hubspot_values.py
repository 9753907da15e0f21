"""How a value is written to HubSpot. Pure.

Everything is sent as text, the way HubSpot reads it back. JSON null changes nothing there and "" clears a property of
any type (facts of the CRM, not of its documentation), so SQL NULL goes out as "", and a field that is to be left
alone is not in the record at all.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Final, TypeGuard

from cdcsync.errors import FatalError
from cdcsync.model import Record, Ref, Target, Value

ADDRESS: Final = "email"
"""The one key that is HubSpot's own: a contact has several values of it, and no update goes by it."""


def encode(value: Value) -> str:
    """Print a value as HubSpot wants it: numbers without exponent, ``true``/``false``, ISO 8601 with ms and Z.

    Raises FatalError for a reference to another record: HubSpot has associations instead.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # the shortest digits that mean this float; format(value) rounds to 6
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, dt.date):
        return value.isoformat()
    return _refuse(value)


def _refuse(ref: Ref) -> str:
    raise FatalError(
        f"a HubSpot property cannot refer to a record of {ref.object}",
        hint="use `associate` in the mapping instead of `ref`",
    )


def properties(target: Target, record: Record, instants: frozenset[str] = frozenset()) -> dict[str, str]:
    """Give all properties of a record, its key among them. Raises FatalError as ``encode`` does.

    ``instants`` are the properties of type datetime: they refuse a bare date, so it goes there as its midnight UTC.
    """
    given = {
        name: f"{value.isoformat()}T00:00:00.000Z" if name in instants and is_date(value) else encode(value)
        for name, value in record.fields.items()
    }
    return given | {target.key_field: record.key}


def is_date(value: Value) -> TypeGuard[dt.date]:
    """Tell a calendar date from everything else, points in time included."""
    return isinstance(value, dt.date) and not isinstance(value, dt.datetime)


def comparable(key_field: str, key: object) -> str:
    """Give a key as HubSpot compares it: addresses are stored and compared in lower case, other keys as they are."""
    return str(key).lower() if key_field == ADDRESS else str(key)
