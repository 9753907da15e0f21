"""Parked rows as a file: every column that the stream carried, and why the row was refused, one row at a time.

JSON lines are exact. CSV is for spreadsheets: NULL and what the stream did not carry are both empty there, and a text
that a spreadsheet would run as a formula has an apostrophe in front of it.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from cdcsync.coalesce import shown
from cdcsync.entries import Reject
from cdcsync.model import Relation
from cdcsync.parked import columns

FORMAT: Final = 1
REASON: Final = ("key", "deleted", "code", "field", "message", "refusals", "first", "last")
_PREFIX: Final = "cdcsync_"
"""Before the names of the reason's columns: a table's own may have the same names."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
"""https://owasp.org/www-community/attacks/CSV_Injection"""
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def json_lines(mapping: str, rejects: Iterable[Reject]) -> Iterator[str]:
    """Yield each row as a line of JSON (docs/json.md)."""
    for reject in rejects:
        entry = {"format": FORMAT, "mapping": mapping, **_reason(reject), "row": columns(reject)}
        yield json.dumps(entry, ensure_ascii=False) + "\n"


def csv_lines(rejects: Iterable[Reject], shapes: Sequence[Relation]) -> Iterator[str]:
    """Yield a header and a line for each row; ``shapes`` are the shapes of the table that the rows may have."""
    names = list(dict.fromkeys(column.name for shape in shapes for column in shape.columns))
    yield _line([*(_PREFIX + name for name in REASON), *names])
    for reject in rejects:
        row = columns(reject)
        yield _line([*_reason(reject).values(), *(row.get(name) for name in names)])


def _reason(reject: Reject) -> dict[str, str | int | bool | None]:
    refused = reject.row.refused
    return {
        "key": shown(reject.row.key),
        "deleted": reject.row.deleted,
        "code": reject.code,
        "field": reject.field,
        "message": reject.message,
        "refusals": refused.times if refused is not None else 1,
        "first": _time(refused.since if refused is not None else reject.at),
        "last": _time(reject.at),
    }


def _line(cells: Iterable[str | int | bool | None]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_harmless(cell) if isinstance(cell, str) else cell for cell in cells])
    return line.getvalue()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat()
