"""What a deleted row leaves in the CRM where its record is kept (``on_delete = { set = … }``). Pure.

The record stays under its key, and the ledger says of it what was set, with a mark: so it is not done again, and nobody
takes the record for one whose row lives. A row that is inserted under the key again is written to that same record, all
of its fields, those of ``unset`` included: these are a part of what every row is mapped to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cdcsync.coalesce import PendingRow
from cdcsync.entries import Known
from cdcsync.mappers.values import field_hash
from cdcsync.model import Value

MARK: Final = ""
"""Stands before the fields of a record whose row is gone; no CRM has a field of that name."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The values that the record of a deleted row gets."""

    values: Mapping[str, Value]

    @property
    def fields(self) -> tuple[str, ...]:
        """What the ledger says that the record has, with the mark first."""
        return (MARK, *sorted(self.values))

    @property
    def hashes(self) -> bytes:
        """The hashes of these, that of the mark included."""
        return b"".join([field_hash(None), *(field_hash(self.values[name]) for name in sorted(self.values))])


def is_tombstone(known: Known | None) -> bool:
    """Whether the ledger knows a record as that of a deleted row."""
    return known is not None and known.fields[:1] == (MARK,)


def place_of(row: PendingRow, crm_id: str, found: Mapping[str, str]) -> str:
    """Return the key under which the CRM holds the record of a deleted row: what was ``found``, else the ledger's."""
    return next((place for place in row.places if found.get(place) == crm_id), row.base or row.key)
