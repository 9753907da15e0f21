"""A resync on demand: what it would read and cost, and the request for it."""

from __future__ import annotations

from psycopg import sql

from cdcsync.config import MapConfig
from cdcsync.entries import CopyState
from cdcsync.wal.connect import Connection
from cdcsync.wal.published import load_publication


async def copy_condition(
    connection: Connection, publication: str, mapping: MapConfig, entry: CopyState | None = None
) -> str | None:
    """Return which rows of a mapping's table a copy reads, in SQL; None for all.

    Those that the stream would carry, by the mapping's ``where`` and the publication's row filter, and of these what
    the copy was asked for.
    """
    published = await load_publication(connection, publication)
    conditions = [mapping.where, published.tables.get(mapping.table) if published is not None else None]
    if entry is not None:
        conditions.append(entry.condition)
    if entry is not None and entry.keys:
        keys = sql.SQL(", ").join(map(sql.Literal, entry.keys))
        chosen = sql.SQL("{} IN ({})").format(sql.Identifier(mapping.key_column), keys)
        conditions.append(chosen.as_string(connection))
    given = [condition for condition in conditions if condition]
    return " AND ".join(f"({condition}\n)" for condition in given) or None
