"""A row's tuple in pgoutput's form (TupleData): taking apart, putting together, picking columns.

A tuple is a 16-bit count of columns, then for each column ``n`` (NULL), ``u`` (an unchanged TOAST value that was not
sent), or ``t`` with a 32-bit length and the value as text. ``b`` instead of ``t`` holds the binary form; servers send
it only when asked, we never ask, and it is returned as its bytes.

Each function gives values or raises DecodeError, whatever bytes it gets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from struct import Struct

from cdcsync.errors import DecodeError
from cdcsync.model import ABSENT, Text

_COUNT, _LENGTH = Struct(">H"), Struct(">i")
_NULL, _UNCHANGED, _TEXT, _BINARY = b"nutb"


def split_tuple(raw: bytes) -> list[Text]:
    """Return all columns of a tuple (``Change.new`` or ``.old``) in the relation's order. Raises DecodeError.

    A value in binary form, which servers send only when asked and we never ask, is returned as its bytes.
    """
    values: list[Text] = []
    try:
        (count,) = _COUNT.unpack_from(raw)
        at = 2
        for _ in range(count):
            tag = raw[at]
            if tag in (_TEXT, _BINARY):
                (length,) = _LENGTH.unpack_from(raw, at + 1)
                begin = at + 5
                at = begin + length
                if length < 0 or at > len(raw):
                    raise _broken_tuple(begin)
                values.append(raw[begin:at])
            elif tag == _NULL:
                values.append(None)
                at += 1
            elif tag == _UNCHANGED:
                values.append(ABSENT)
                at += 1
            else:
                raise _broken_tuple(at)
    except (struct.error, IndexError) as error:
        raise _broken_tuple(len(raw)) from error
    if at != len(raw):
        raise _broken_tuple(at)
    return values


def join_tuple(values: Iterable[Text]) -> bytes:
    """Return the tuple that ``split_tuple`` takes apart into ``values`` (at most 65,535 of them)."""
    parts = []
    count = 0
    for count, value in enumerate(values, start=1):  # noqa: B007 - the last number is the count
        if value is None:
            parts.append(b"n")
        elif value is ABSENT:
            parts.append(b"u")
        else:
            parts += (b"t", _LENGTH.pack(len(value)), value)
    return _COUNT.pack(count) + b"".join(parts)


def pick(raw: bytes, indexes: Sequence[int]) -> list[Text]:
    """Return the columns at ``indexes`` (0-based, in any order), reading no further than the last of them.

    Raises DecodeError, also when the tuple has too few columns.
    """
    last = max(indexes, default=-1)
    starts = []
    at = 2
    try:
        if last >= _COUNT.unpack_from(raw)[0]:
            raise _broken_tuple(0)
        for _ in range(last + 1):
            starts.append(at)
            at = column_end(raw, at)
    except (struct.error, IndexError, ValueError) as error:
        raise _broken_tuple(at) from error
    if at > len(raw):
        raise _broken_tuple(len(raw))
    return [_value(raw, starts[index]) for index in indexes]


def _value(raw: bytes, at: int) -> Text:
    """Return the column that starts at ``at`` and was walked over before."""
    tag = raw[at]
    if tag == _NULL:
        return None
    if tag == _UNCHANGED:
        return ABSENT
    return raw[at + 5 : at + 5 + _LENGTH.unpack_from(raw, at + 1)[0]]


def column_end(raw: bytes, at: int) -> int:
    """Return where the column that starts at ``at`` ends, which may be beyond the end of ``raw``.

    Raises IndexError, struct.error or ValueError for what is no column; callers know what to call it.
    """
    tag = raw[at]
    if tag in (_NULL, _UNCHANGED):
        return at + 1
    if tag not in (_TEXT, _BINARY):
        raise ValueError
    length: int = _LENGTH.unpack_from(raw, at + 1)[0]
    if length < 0:
        raise ValueError
    return at + 5 + length


def _broken_tuple(at: int) -> DecodeError:
    return DecodeError(f"a row's tuple is malformed at byte {at}")
