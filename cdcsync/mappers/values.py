"""PostgreSQL's text of a value → the value that a CRM gets. Pure.

The texts are those of the pinned session (ISO dates, UTC, UTF-8, 17 digits; facts of the server, not of its role's
settings). Values that no CRM has (NaN, infinity, years before 1 or after 9999, 24:00) reject the row, unless the field
has another policy. Types that are not named here, those of extensions among them, are text as printed; so are
intervals, and money, whose text is that of the database's locale.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from decimal import Decimal
from hashlib import blake2b
from typing import Final, TypeAlias

from cdcsync.errors import RowRejectedError
from cdcsync.model import Ref, Value

Converter: TypeAlias = Callable[[bytes], Value]
"""Raises one of ``INVALID`` for what no CRM has."""

INVALID: Final = (RowRejectedError, UnicodeDecodeError)
"""RowRejectedError comes without a field."""

BOOL: Final = 16
BINARY: Final = frozenset({17, 1001})
"""bytea, and arrays of it."""
BPCHAR: Final = 1042

HASH_BYTES: Final = 8


def text(printed: bytes) -> str:
    """Read text, or anything that goes out as printed."""
    return printed.decode()


def padded(printed: bytes) -> str:
    """Read ``char(n)``, whose trailing blanks mean nothing."""
    return printed.decode().rstrip(" ")


def boolean(printed: bytes) -> bool:
    """Read ``t`` or ``f``."""
    return printed == b"t"


def integer(printed: bytes) -> int:
    """Read an integer of any size."""
    return int(printed)


def numeric(printed: bytes) -> Decimal:
    """Read a numeric with all its digits, trailing zeros included."""
    value = Decimal(printed.decode())
    if not value.is_finite():
        raise _not_finite()
    return value


def floating(printed: bytes) -> float:
    """Read a float; its text is the shortest that means it, and so is that of Python. Minus zero is zero."""
    value = float(printed)
    if not math.isfinite(value):
        raise _not_finite()
    return value + 0.0


def date(printed: bytes) -> dt.date:
    """Read a date of the years 1 to 9999."""
    try:
        return dt.date.fromisoformat(printed.decode())
    except ValueError:
        raise _no_such_time("date") from None


def timestamp(printed: bytes) -> dt.datetime:
    """Read a timestamp of the years 1 to 9999, one without a zone as UTC."""
    try:
        value = dt.datetime.fromisoformat(printed.decode())
        return value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        raise _no_such_time("timestamp") from None


def time(printed: bytes) -> str:
    """Read a time of day, with or without a zone, which goes out as text; 24:00:00 is the next day's."""
    if printed.startswith(b"24"):
        raise RowRejectedError("time-out-of-range", None, "the time is the end of a day, 24:00, which CRMs do not have")
    return printed.decode()


_ARRAY = re.compile(r"(?:\[-?\d+:-?\d+\]=)?\{(.*)\}", re.DOTALL)
_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^",{}\\]+)', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def array(printed: bytes) -> str:
    """Read a one-dimensional array: its elements joined by ``;``, the form of multi-select fields, without NULLs.

    https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    return _joined(_elements(printed))


def padded_array(printed: bytes) -> str:
    """Read an array of ``char(n)``."""
    return _joined([element.rstrip(" ") for element in _elements(printed)])


def _elements(printed: bytes) -> list[str]:
    match = _ARRAY.fullmatch(printed.decode())
    if match is None or match[1].startswith("{"):
        raise RowRejectedError("array-dimensions", None, "an array of several dimensions has no form in a CRM")
    return [
        _ESCAPE.sub(r"\1", element[1]) if element[1] is not None else element[2]
        for element in _ELEMENT.finditer(match[1])
        if element[2] != "NULL"
    ]


def _joined(elements: list[str]) -> str:
    if any(";" in element for element in elements):
        raise RowRejectedError("array-separator", None, "an array element holds a semicolon, which separates elements")
    return ";".join(elements)


_CONVERTERS: Final[dict[int, Converter]] = {
    BOOL: boolean,
    **dict.fromkeys((20, 21, 23, 26), integer),  # int8, int2, int4, oid
    **dict.fromkeys((700, 701), floating),  # float4, float8
    1700: numeric,
    1082: date,
    **dict.fromkeys((1114, 1184), timestamp),  # timestamp, timestamptz
    **dict.fromkeys((1083, 1266), time),  # time, timetz
    BPCHAR: padded,
    **dict.fromkeys(
        (
            *(1000, 1002, 1003, 1005, 1007, 1009, 1015, 1016, 1021, 1022, 1028),  # bool to oid, text among them
            *(1041, 1040, 651, 775, 1115, 1182, 1183, 1185, 1187, 1231, 1270, 2951),  # addresses, times, numeric, uuid
            *(791, 1561, 1563, 143, 199, 3807, 3643, 3645, 3221, 271),  # money, bits, xml, json, text search, positions
            *(3905, 3907, 3909, 3911, 3913, 3927, 6150, 6151, 6152, 6153, 6155, 6157),  # ranges, multiranges
            *(629, 719, 1017, 1018, 1019, 1027),  # geometry, but for box, whose elements stand apart by semicolons
        ),
        array,
    ),
    1014: padded_array,
}


def converter(type_oid: int) -> Converter:
    """Return the function for values of a builtin type; anything unknown is text."""
    return _CONVERTERS.get(type_oid, text)


def nearest(type_oid: int) -> Converter | None:
    """Return the function that gives the nearest value to one that the type's converter refuses.

    None for types whose refused values have none near, such as NaN.
    """
    return _NEAREST.get(type_oid)


def _nearest_date(printed: bytes) -> dt.date:
    return dt.date.min if _is_early(printed) else dt.date.max


def _nearest_timestamp(printed: bytes) -> dt.datetime:
    return _FIRST if _is_early(printed) else _LAST


def _nearest_time(printed: bytes) -> str:
    return "23:59:59.999999" + printed.removeprefix(b"24:00:00").decode()


def _is_early(printed: bytes) -> bool:
    """Tell minus infinity, years before 1, and what its zone puts there, from what is too late."""
    return printed.startswith((b"-", b"0001-")) or printed.endswith(b"BC")


_FIRST: Final = dt.datetime.min.replace(tzinfo=dt.UTC)
_LAST: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
_NEAREST: Final[dict[int, Converter]] = {
    1082: _nearest_date,
    **dict.fromkeys((1114, 1184), _nearest_timestamp),
    **dict.fromkeys((1083, 1266), _nearest_time),
}


def field_hash(value: Value) -> bytes:
    """Return 8 bytes by which a value is known again, in other runs and on other machines too.

    Types count (``1``, ``True`` and ``"1"`` differ), and so do a numeric's trailing zeros. A short value stands for
    itself, which saves most of the cost.
    """
    form = b"s" + value.encode() if value.__class__ is str else _FORMS[value.__class__](value)
    # 0xFF is in no UTF-8 text, so no two short forms become one.
    return (
        form.ljust(HASH_BYTES, b"\xff") if len(form) <= HASH_BYTES else blake2b(form, digest_size=HASH_BYTES).digest()
    )


_FORMS: Final[dict[type, Callable[..., bytes]]] = {
    type(None): lambda _: b"n",
    int: b"i%d".__mod__,
    bool: {False: b"b0", True: b"b1"}.__getitem__,
    float: lambda value: b"f" + repr(value).encode(),
    Decimal: lambda value: b"d" + str(value).encode(),
    dt.datetime: lambda value: b"t" + str(value).encode(),
    dt.date: lambda value: b"y" + str(value).encode(),
    Ref: lambda ref: f"r{ref.object}\0{ref.key_field}\0{ref.key}".encode(),
}


def _not_finite() -> RowRejectedError:
    return RowRejectedError("number-not-finite", None, "NaN and infinity have no form in a CRM")


def _no_such_time(what: str) -> RowRejectedError:
    return RowRejectedError(
        "time-out-of-range",
        None,
        f"the {what} is infinite, or its year is not between 1 and 9999: CRMs have no such time",
    )
