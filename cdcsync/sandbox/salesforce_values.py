"""Field values: from JSON or CSV, checked and brought to the form in which Salesforce stores them.

Stored forms: text (trimmed, never empty; e-mails in lower case), bool, Decimal (rounded to the field's scale),
dates ``2024-01-31``, times ``2024-01-31T10:00:00.000+0000`` (UTC, whole seconds), 18-character ids; None is null.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Final, TypeAlias

from cdcsync.sandbox.salesforce_errors import RowError
from cdcsync.sandbox.salesforce_ids import canonical
from cdcsync.sandbox.salesforce_schema import NUMBER_TYPES, Field

Stored: TypeAlias = str | bool | Decimal | None

BLANKS: Final = " \t\n\r\x0b\x0c"  # a no-break space is not trimmed
_EMAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*/=?^_+\-`{|}~]+@[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_DATE: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,3})?(Z|[+-]\d{2}:?\d{2})")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_XSD: Final = {"double": "double", "currency": "double", "percent": "double", "int": "int", "datetime": "dateTime"}
_FIRST_YEAR, _LAST_YEAR = 1700, 4000
_INT_LIMIT: Final = 2**31


class UnreadableError(Exception):
    """A text that is not of the field's type."""


def format_time(moment: float | dt.datetime) -> str:
    """Print a time (or a Unix time) as the API does: UTC, whole seconds."""
    time = moment if isinstance(moment, dt.datetime) else dt.datetime.fromtimestamp(moment, dt.UTC)
    return time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")


def from_json(field: Field, value: object) -> Stored:
    """Take a JSON value (numbers as int or Decimal). Raises RowError."""
    if value is None:
        return check(field, None)
    if isinstance(value, bool):
        if field.type != "boolean":
            raise _json_error(field, value)
        return value
    if isinstance(value, int | Decimal):
        if field.type not in NUMBER_TYPES:
            raise _json_error(field, value)
        return check(field, _read_number(field, str(value)))
    if not isinstance(value, str):
        raise _json_error(field, value)
    try:
        return check(field, _read(field, value))
    except UnreadableError:
        raise _json_error(field, value) from None


def from_csv(field: Field, cell: str, column: int) -> Stored:
    """Take a CSV cell that is neither empty nor ``#N/A``; ``column`` counts from 0. Raises RowError."""
    try:
        return check(field, _read(field, cell))
    except UnreadableError:
        kind = _XSD.get(field.type, field.type)
        message = (
            f"Failed to deserialize field at col {column}. Due to, '{cell}' is not a valid value for the type xsd:"
        )
        raise RowError("INVALID_FIELD", message + kind) from None


def check(field: Field, value: Stored) -> Stored:
    """Check a value against the field's definition, and normalise it. Raises RowError."""
    if value is None:
        _check_null(field)
        return None
    if isinstance(value, Decimal):
        return _checked_number(field, value)
    if isinstance(value, bool) or field.type in {"date", "datetime"}:
        return value
    text = value.strip(BLANKS)
    if not text:
        _check_null(field)
        return None
    if field.type == "reference":
        return _checked_reference(field, text)
    if field.length and len(text) > field.length:
        shown = text if len(text) <= field.length * 2 else text[: field.length] + "..."
        message = f"{field.label}: data value too large: {shown} (max length={field.length})"
        raise RowError("STRING_TOO_LONG", message, [field.name])
    if field.type == "email":
        if not _EMAIL.fullmatch(text):
            raise RowError("INVALID_EMAIL_ADDRESS", f"{field.label}: invalid email address: {text}", [field.name])
        return text.lower()
    if field.restricted and text not in field.values:
        message = f"{field.label}: bad value for restricted picklist field: {text}"
        raise RowError("INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", message, [field.name])
    return text


def _check_null(field: Field) -> None:
    if field.type == "boolean":
        message = f"{field.label}: value not of required type: "
        raise RowError("INVALID_TYPE_ON_FIELD_IN_RECORD", message, [field.name])


def _checked_number(field: Field, value: Decimal) -> Decimal:
    rounded = value if field.type == "int" else _rounded(value, field.scale)
    if rounded is None or abs(rounded) >= Decimal(10) ** (field.precision - field.scale):
        message = f"{field.label}: value outside of valid range on numeric field: {value}"
        raise RowError("NUMBER_OUTSIDE_VALID_RANGE", message, [field.name])
    return rounded


def _rounded(value: Decimal, scale: int) -> Decimal | None:
    try:
        return value.quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP) + 0  # no minus zero
    except InvalidOperation:
        return None


def _checked_reference(field: Field, text: str) -> str:
    found = canonical(text)
    if found is None:
        message = f"{field.titled}: id value of incorrect type: {text}"
        raise RowError("MALFORMED_ID", message, [field.name])
    return found


def _read(field: Field, text: str) -> Stored:
    """Read a text as the field's type, without checking ranges. Raises UnreadableError."""
    if field.type in NUMBER_TYPES:
        return _read_number(field, text)
    if field.type == "boolean":
        if text.strip(BLANKS).lower() not in _BOOLEANS:
            raise UnreadableError
        return _BOOLEANS[text.strip(BLANKS).lower()]
    if field.type == "date":
        return _read_date(field, text)
    if field.type == "datetime":
        return _read_time(field, text)
    return text


def _read_number(field: Field, text: str) -> Decimal:
    try:
        number = Decimal(text.strip(BLANKS))
    except InvalidOperation:
        raise UnreadableError from None
    if not number.is_finite() or "_" in text:
        raise UnreadableError
    if field.type == "int" and (number != number.to_integral_value() or "." in text or abs(number) >= _INT_LIMIT):
        raise UnreadableError
    return number


def _read_date(field: Field, text: str) -> str:
    match = _DATE.fullmatch(text)
    if not match:
        raise UnreadableError
    try:
        day = dt.date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        raise UnreadableError from None
    _check_year(field, day.year, text)
    return text


def read_moment(text: str) -> dt.datetime:
    """Read a time with its zone. Raises UnreadableError."""
    if not _TIME.fullmatch(text):
        raise UnreadableError
    try:
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        raise UnreadableError from None


def _read_time(field: Field, text: str) -> str:
    moment = read_moment(text)
    _check_year(field, moment.year, text)
    return format_time(moment)


def _check_year(field: Field, year: int, text: str) -> None:
    if not _FIRST_YEAR <= year <= _LAST_YEAR:
        raise RowError("NUMBER_OUTSIDE_VALID_RANGE", f"{field.label}: invalid date: {text}", [field.name])


def _json_error(field: Field, value: object) -> RowError:
    kind = "double" if field.type in {"currency", "percent"} else field.type
    kind = "string" if kind not in NUMBER_TYPES | {"boolean", "date", "datetime"} else kind
    where = "or request may be missing a required field at [line:1, column:1]"
    return RowError("JSON_PARSER_ERROR", f"Cannot deserialize instance of {kind} from {_token(value)} {where}")


def _token(value: object) -> str:
    match value:
        case bool():
            return f"VALUE_{str(value).upper()} value {str(value).lower()}"
        case int():
            return f"VALUE_NUMBER_INT value {value}"
        case Decimal():
            return f"VALUE_NUMBER_FLOAT value {value}"
        case str():
            return f"VALUE_STRING value {value}"
        case dict():
            return "START_OBJECT value {"
        case _:
            return "START_ARRAY value ["
