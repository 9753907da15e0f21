"""What to do about a parked row, by the code of its refusal, in plain words. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cdcsync.apply.remedies import REMEDIES

OURS: Final[Mapping[str, str]] = {
    "parent-missing": "nothing, if the parent is on its way or rejected itself: mend that one. Else insert it, or"
    " correct the reference",
    "incomplete-row": "with backfill = true the row is read from its table by itself; else touch the large column, or"
    " run `cdcsync resync` with its --key",
    "shape-outdated": "the table or the mapping has changed since: run `cdcsync resync` with its --key",
    "where-failed": "correct the mapping's where, or the row's value in that column",
    "value-unmapped": "add the value to values in the mapping, or set otherwise",
    "key-null": "give the key column a value: a record needs one",
    "key-empty": "give the key column a value: no CRM takes an empty key",
    "key-absent": "the key is too large a value for a key: map another column",
    "not-utf8": "correct the text: it is not UTF-8, as happens in databases whose encoding is SQL_ASCII",
    "number-not-finite": 'correct the number, or set on_invalid = "null" on the field',
    "time-out-of-range": 'correct the time, or set on_invalid = "null" or "clamp" on the field',
    "array-dimensions": 'map a column with one dimension, or set on_invalid = "null" on the field',
    "array-separator": "take the semicolon out of the element: it separates the values of a multi-select field",
}
"""Refusals of our own, before anything is sent."""
_UNKNOWN: Final = "the message says what is wrong: correct the row, the mapping, or the CRM's settings"


def remedy(kind: str, code: str) -> str:
    """Say what to do about rows that were refused with a code; ``kind`` is the CRM's."""
    return OURS.get(code) or REMEDIES.get(kind, {}).get(code) or _UNKNOWN
