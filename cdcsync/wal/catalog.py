"""What the system catalogs say of tables and types, in the same words as the stream's relation messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, Literal, NamedTuple

import psycopg
from psycopg import sql
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

_UNIQUE = """
    SELECT coalesce(bool_or(i.indimmediate), false), coalesce(bool_or(NOT i.indimmediate), false)
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = %s
    WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid
      AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum AND i.indpred IS NULL
"""

_FOREIGN_KEYS = """
    SELECT c.conrelid::int8, child.attname::text, c.confrelid::int8, parent.attname::text
    FROM pg_constraint c
    JOIN pg_attribute child ON child.attrelid = c.conrelid AND child.attnum = c.conkey[1]
    JOIN pg_attribute parent ON parent.attrelid = c.confrelid AND parent.attnum = c.confkey[1]
    WHERE c.contype = 'f' AND cardinality(c.conkey) = 1 AND c.conrelid = ANY (%(oids)s) AND c.confrelid = ANY (%(oids)s)
    ORDER BY c.conrelid, c.conname
"""

# An order that every row has a place of its own in: no NULL, no condition, no expression, checked at once.
_COPY_KEY = """
    SELECT array_agg(a.attname::text ORDER BY k.place)
    FROM pg_index i
    JOIN pg_class n ON n.oid = i.indexrelid
    CROSS JOIN LATERAL unnest((string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts])
        WITH ORDINALITY AS k (attnum, place)
    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND a.attnotnull
        AND a.attname = ANY (%s)
    WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
    GROUP BY i.indexrelid, i.indisprimary, i.indisreplident, n.relname
    HAVING bool_and(a.attname IS NOT NULL)
    ORDER BY i.indisprimary DESC, i.indisreplident DESC, count(*), n.relname LIMIT 1
"""

# A partitioned table that is not published through its root is published as its partitions, each with its own list.
_PUBLISHED: Final = """
    SELECT n.nspname || '.' || c.relname, t.attnames::text[]
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (SELECT c.oid AS relid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS member
    JOIN pg_class l ON l.oid = member.relid
    JOIN pg_namespace ln ON ln.oid = l.relnamespace
    JOIN pg_publication_tables t ON t.pubname = %s AND t.schemaname = ln.nspname AND t.tablename = l.relname
    WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
"""

_GENERATED: Final = """
    SELECT n.nspname || '.' || c.relname, a.attname, a.attgenerated::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped
    WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
"""

_ANCESTORS: Final = """
    SELECT wanted.oid, ancestor.oid, ancestor.name
    FROM unnest(%s::oid[]) AS wanted (oid) JOIN pg_class ON pg_class.oid = wanted.oid
    LEFT JOIN LATERAL (
        SELECT c.oid, n.nspname || '.' || c.relname AS name
        FROM pg_partition_ancestors(wanted.oid) AS ancestor (relid)
        JOIN pg_class c ON c.oid = ancestor.relid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid <> wanted.oid
    ) AS ancestor ON true
"""

_LEAVES: Final = """
    SELECT ln.nspname, l.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL pg_partition_tree(c.oid) AS member
    JOIN pg_class l ON l.oid = member.relid
    JOIN pg_namespace ln ON ln.oid = l.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'p' AND member.isleaf AND l.relkind = 'r'
    ORDER BY 1, 2
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


async def load_relation(
    connection: Connection, schema: str, table: str, publication: str | None = None, *, generated: bool = False
) -> Relation:
    """Return a table as the stream would describe it now: its columns without dropped and generated ones.

    With ``publication`` its column list counts too (PostgreSQL 15 and later), and so do the generated columns that it
    publishes (18 and later). With ``generated``, all columns that the table has. Raises SourceError if there is no
    such table.
    """
    found = await rows(connection, _TABLE, [schema, table])
    if not found:
        raise SourceError(f"there is no table {schema}.{table}", hint="check the mapping's table, and the search_path")
    oid, identity = found[0]
    sent = await published_columns(connection, publication, [f"{schema}.{table}"]) if publication else {}
    published = sent.get(f"{schema}.{table}")
    columns = [
        Column(name, type_oid, typmod, in_identity)
        for name, type_oid, typmod, in_identity, kind in await rows(connection, _COLUMNS, [oid])
        if generated
        or (not kind if published is None else name in published and (not kind or _generated_too(connection)))
    ]
    return Relation(oid, schema, table, identity, tuple(columns))


async def uniqueness(connection: Connection, relation: Relation, column: str) -> Literal["at once", "deferred"] | None:
    """Tell whether an index keeps a column's values unique: at each moment, or only at a transaction's end."""
    ((at_once, deferred),) = await rows(connection, _UNIQUE, [column, relation.oid])
    return "at once" if at_once else "deferred" if deferred else None


class ForeignKey(NamedTuple):
    """A foreign key of one column; tables are oids."""

    table: int
    column: str
    parent: int
    parent_column: str


async def load_foreign_keys(connection: Connection, tables: Sequence[int]) -> list[ForeignKey]:
    """Return the foreign keys of one column between these tables (oids); those of partitions are their roots'."""
    return [ForeignKey(*found) for found in await rows(connection, _FOREIGN_KEYS, {"oids": list(tables)})]


async def load_leaves(
    connection: Connection, schema: str, table: str, publication: str | None = None, *, generated: bool = False
) -> list[Relation]:
    """Return the shapes of a partitioned table's partitions that hold rows, as ``load_relation`` does; none of others.

    A partition's columns may stand in another order than its root's, and its replica identity is its own.
    """
    found = await rows(connection, _LEAVES, [schema, table])
    return [
        await load_relation(connection, namespace, name, publication, generated=generated) for namespace, name in found
    ]


class Ancestor(NamedTuple):
    """A partitioned table above another one; ``table`` is its name (``schema.table``) as of when it was asked for."""

    oid: int
    table: str


async def load_ancestors(connection: Connection, oids: Collection[int]) -> dict[int, tuple[Ancestor, ...]]:
    """Return for each table that exists the partitioned tables above it; none for most."""
    found: dict[int, tuple[Ancestor, ...]] = {}
    for oid, above, table in await rows(connection, _ANCESTORS, [list(oids)]):
        found[oid] = (*found.get(oid, ()), *([] if above is None else [Ancestor(above, table)]))
    return found


async def published_columns(
    connection: Connection, publication: str, tables: Collection[str]
) -> dict[str, frozenset[str]]:
    """Return for tables (``schema.table``) that are published which of their columns are; empty before PostgreSQL 15.

    Of a partitioned table that is published as its partitions, those columns that all of them send. Versions before 18
    name generated columns here, and do not send them.
    """
    if server_version(connection) < VERSION_15:
        return {}
    sent: dict[str, frozenset[str]] = {}
    for table, columns in await rows(connection, _PUBLISHED, [publication, list(tables)]):
        here = frozenset(columns or ())  # a table may have none
        sent[table] = sent.get(table, here) & here
    return sent


async def generated_columns(connection: Connection, tables: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the generated columns of tables, each with its kind: ``s`` (stored) or ``v`` (virtual, 18 and later)."""
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in await rows(connection, _GENERATED, [list(tables)]):
        found.setdefault(table, {})[column] = kind
    return found


async def load_types(connection: Connection) -> dict[int, int]:
    """Return for each user-defined type, and each domain, the builtin type whose text form its values have.

    A domain has its base type's, through any number of domains, and an array of them is an array of text (oid 1009);
    everything else (enums, composites, ranges, types of extensions) is text (oid 25).
    """
    return {oid: base for oid, base in await rows(connection, _TYPES)}  # noqa: C416 - dict() would lose the row's type


async def copy_key(connection: Connection, relation: Relation) -> tuple[str, ...]:
    """Return the columns in whose order a table can be copied: unique, never NULL, and among the relation's.

    The primary key's, else the replica identity's, else those of any unique index that will do. Raises SourceError
    with the remedy where there is none.
    """
    found = await rows(connection, _COPY_KEY, [[column.name for column in relation.columns], relation.oid])
    if found:
        return tuple(found[0][0])
    table = sql.Identifier(relation.namespace, relation.name).as_string(connection)
    raise SourceError(
        f"{relation.table} cannot be copied: it has neither a primary key nor another unique index over published"
        " columns that are NOT NULL, so there is no order to read it in",
        hint=f"ALTER TABLE {table} ADD PRIMARY KEY (…); or backfill = false",
    )


def server_version(connection: Connection) -> int:
    """Return the server's version as a number: 160004 is 16.4."""
    return connection.info.server_version


async def rows(
    connection: Connection, query: str, parameters: list[Any] | dict[str, Any] | None = None
) -> list[tuple[Any, ...]]:
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


def _generated_too(connection: Connection) -> bool:
    """Before 18 the view lists generated columns, but they are not sent."""
    return server_version(connection) >= VERSION_18
