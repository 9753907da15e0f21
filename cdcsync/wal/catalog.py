"""What the system catalogs say of tables and types, in the same words as the stream's relation messages."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from cdcsync.errors import SourceError
from cdcsync.model import Column, Relation
from cdcsync.wal.connect import Connection

VERSION_15: Final = 150000
VERSION_18: Final = 180000

_TABLE = """
    SELECT c.oid, c.relreplident::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""

# An index serves as identity only when it is valid and not deferrable; the columns it merely includes do not count.
_COLUMNS = """
    SELECT a.attname, a.atttypid, a.atttypmod,
           CASE c.relreplident WHEN 'f' THEN true ELSE EXISTS (
               SELECT FROM pg_index i
               WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                 AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
                 AND a.attnum = ANY ((string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts])
           ) END,
           a.attgenerated::text
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""

_PRIMARY_KEY = """
    SELECT a.attname
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE n.nspname = %s AND c.relname = %s AND i.indisprimary AND k.place <= i.indnkeyatts
    ORDER BY k.place
"""

# information_schema's domains have oids below those of users; a domain may stand on another one.
_TYPES = """
    WITH RECURSIVE based (oid, base) AS (
        SELECT oid, oid FROM pg_type WHERE oid >= 16384 OR typtype = 'd'
        UNION ALL
        SELECT b.oid, t.typbasetype FROM based b JOIN pg_type t ON t.oid = b.base WHERE t.typtype = 'd'
    )
    SELECT b.oid, CASE
               WHEN b.base < 16384 THEN b.base
               WHEN t.typdelim = ',' AND EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid) THEN 'text[]'::regtype
               ELSE 'text'::regtype
           END::oid
    FROM based b JOIN pg_type t ON t.oid = b.base
    WHERE t.typtype <> 'd'
"""


async def load_relation(connection: Connection, schema: str, table: str, publication: str | None = None) -> Relation:
    """Return a table as the stream would describe it now: its columns without dropped and generated ones.

    With ``publication`` its column list counts too (PostgreSQL 15 and later), and so do the generated columns that it
    publishes (18 and later). Raises SourceError if there is no such table.
    """
    found = await rows(connection, _TABLE, [schema, table])
    if not found:
        raise SourceError(f"there is no table {schema}.{table}", hint="check the mapping's table, and the search_path")
    oid, identity = found[0]
    published = await _published_columns(connection, schema, table, publication)
    columns = [
        Column(name, type_oid, typmod, in_identity)
        for name, type_oid, typmod, in_identity, generated in await rows(connection, _COLUMNS, [oid])
        if (not generated if published is None else name in published and (not generated or _generated_too(connection)))
    ]
    return Relation(oid, schema, table, identity, tuple(columns))


async def load_types(connection: Connection) -> dict[int, int]:
    """Return for each user-defined type, and each domain, the builtin type whose text form its values have.

    A domain has its base type's, through any number of domains, and an array of them is an array of text (oid 1009);
    everything else (enums, composites, ranges, types of extensions) is text (oid 25).
    """
    return {oid: base for oid, base in await rows(connection, _TYPES)}  # noqa: C416 - dict() would lose the row's type


async def primary_key(connection: Connection, schema: str, table: str) -> tuple[str, ...]:
    """Return the columns of a table's primary key in its order; empty without one."""
    return tuple(name for (name,) in await rows(connection, _PRIMARY_KEY, [schema, table]))


def server_version(connection: Connection) -> int:
    """Return the server's version as a number: 160004 is 16.4."""
    return connection.info.server_version


async def rows(connection: Connection, query: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
    """Return a query's rows as tuples, whatever the connection's own row factory is.

    Raises SourceError for names in SQL_ASCII databases that are not UTF-8, and psycopg's errors.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        try:
            await cursor.execute(query.encode(), parameters)
        except psycopg.errors.CharacterNotInRepertoire as error:
            raise SourceError(
                "the name of a table, a column or another object of the database is not UTF-8",
                hint="rename it: a database in SQL_ASCII may hold such names, but no client can read them as text",
            ) from error
        return await cursor.fetchall()


async def _published_columns(
    connection: Connection, schema: str, table: str, publication: str | None
) -> frozenset[str] | None:
    if publication is None or server_version(connection) < VERSION_15:
        return None
    query = "SELECT attnames FROM pg_publication_tables WHERE pubname = %s AND schemaname = %s AND tablename = %s"
    found = await rows(connection, query, [publication, schema, table])
    return frozenset(found[0][0]) if found else None


def _generated_too(connection: Connection) -> bool:
    """Before 18 the view lists generated columns, but they are not sent."""
    return server_version(connection) >= VERSION_18
