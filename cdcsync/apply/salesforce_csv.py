"""The CSV of Bulk 2.0: one job's rows out, its results in. Pure.

An empty cell leaves a field alone and ``#N/A`` clears it, so a text that is ``#N/A`` cannot be said in CSV: such
records are not in the file. Results come in any order and show the cells as they were sent; they are matched by the key
(or the id). Sources: Bulk API 2.0 guide, "Prepare CSV Files", "Get Job Successful Record Results".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cdcsync.apply.salesforce_errors import SHOWN
from cdcsync.apply.salesforce_objects import Shape
from cdcsync.apply.salesforce_values import BLANKS, NULL_CELL, clean, relationship, unsendable, written
from cdcsync.errors import TransientError
from cdcsync.model import Batch, Op, Record, Ref, Value

UPLOAD_LIMIT: Final = 100_000_000
"""Bytes of a job's CSV: 150 MB after base64 is the limit, Salesforce advises to stay at 100 MB before it."""
ID: Final = "Id"
ID_RESULT: Final = "sf__Id"
CREATED: Final = "sf__Created"
ERROR: Final = "sf__Error"

# A refused row's cell may well be longer than the csv module's default limit: it was refused for its length.
csv.field_size_limit(max(csv.field_size_limit(), UPLOAD_LIMIT))


class Result(NamedTuple):
    """One row of a result file. ``said`` is ``true`` or ``false`` (created) of a success, the error of a failure."""

    match: str
    crm_id: str
    said: str


@dataclass(slots=True)
class _Growing:
    """What the csv module writes to: UTF-8 without a byte-order mark."""

    data: bytearray

    def write(self, text: str) -> None:
        self.data += text.encode()


def matches_by(batch: Batch) -> str:
    """Name the column that tells which row is whose."""
    return batch.target.key_field if batch.op is Op.UPSERT else ID


def match_of(batch: Batch, record: Record) -> str:
    """Give a record's cell in that column."""
    return clean(record.key) if batch.op is Op.UPSERT else record.crm_id or ""


def fits(op: Op, record: Record) -> bool:
    """Tell whether CSV can say a record: no value is what CSV takes for null, and every number is one."""
    if op is Op.DELETE:
        return True
    texts = (value.key if isinstance(value, Ref) else value for value in (record.key, *record.fields.values()))
    null = any(isinstance(text, str) and text.strip(BLANKS) == NULL_CELL for text in texts)
    return not null and unsendable(record) is None


def write(batch: Batch, shape: Shape, limit: int = UPLOAD_LIMIT) -> bytes:
    """Write the upload: the records that ``fits``, as many of them as ``limit`` bytes hold. Raises FatalError."""
    out = _Growing(bytearray())
    writer = csv.writer(out, lineterminator="\n")
    names = [] if batch.op is Op.DELETE else list(dict.fromkeys(name for one in batch.records for name in one.fields))
    leading = [ID] if batch.op is Op.DELETE else [ID, batch.target.key_field][batch.op is Op.UPSERT :]
    writer.writerow([*leading, *(_header(batch.records, shape, name) for name in names)])
    for record in batch.records:
        if not fits(batch.op, record):
            continue
        before = len(out.data)
        writer.writerow([*_identity(batch.op, record), *(_cell(record, name) for name in names)])
        if len(out.data) > limit:
            del out.data[before:]
            break
    return bytes(out.data)


def _header(records: Sequence[Record], shape: Shape, name: str) -> str:
    """Name a field's column; a reference's by the relationship and the parent's key field."""
    for record in records:
        value = record.fields.get(name)
        if isinstance(value, Ref):
            relation, named = relationship(shape, name, value)
            return f"{named}:{relation}.{value.key_field}" if named else f"{relation}.{value.key_field}"
    return name


def _identity(op: Op, record: Record) -> tuple[str, ...]:
    if op is Op.UPSERT:
        return (clean(record.key),)
    return (record.crm_id or "",) if op is Op.DELETE else (record.crm_id or "", clean(record.key))


def _cell(record: Record, name: str) -> str:
    if name not in record.fields:
        return ""
    value: Value = record.fields[name]
    text = clean(value.key) or None if isinstance(value, Ref) else written(value)
    return NULL_CELL if text is None else text


def read(content: bytes, match: str, said: str) -> Iterator[Result]:
    """Read a result file by its columns ``match`` and ``said``; an empty body holds no rows.

    Raises TransientError if it is no result file: a page of something in between, or cut off.
    """
    if not content:
        return
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=""), strict=True)
    try:
        header = next(rows)
        places = [header.index(name) for name in (match, ID_RESULT, said)]
        for row in rows:
            yield Result(*(row[place] for place in places))
    except (csv.Error, ValueError, IndexError) as error:  # ValueError: not UTF-8, or a column is not there
        start = content[:SHOWN].partition(b"\n")[0]
        raise TransientError(f"Salesforce's answer is no result file ({error}): {start!r}") from error
