"""What the mappings need of the database: tables with the condition on their rows, and columns. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.config import MapConfig
from cdcsync.mappers.compile import columns_used


def tables_read(maps: Sequence[MapConfig]) -> dict[str, str | None]:
    """Return the tables to publish, each with the row filter that its mappings share."""
    return {entry.table: entry.where for entry in maps}


def columns_read(maps: Sequence[MapConfig]) -> dict[str, frozenset[str]]:
    """Return the columns that each table's mappings read."""
    read: dict[str, frozenset[str]] = {}
    for entry in maps:
        read[entry.table] = read.get(entry.table, frozenset()) | columns_used(entry)
    return read
