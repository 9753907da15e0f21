"""A publication as the catalogs have it, and the SQL that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from psycopg import sql

from cdcsync.wal.catalog import VERSION_15, VERSION_18, rows, server_version
from cdcsync.wal.connect import Connection

KINDS: Final = "publish = 'insert, update, delete, truncate'"
VIA_ROOT: Final = "publish_via_partition_root = true"
GENERATED: Final = "publish_generated_columns = stored"

Tables = Mapping[str, str | None]
"""Tables as ``schema.table``, each with its row filter (SQL, without WHERE) or None."""

Columns = Mapping[str, frozenset[str]]
"""The columns of tables that are read from the stream."""

# Without publish_via_partition_root a partitioned table is published as its partitions, whose own filters count.
_ROOTS: Final = """
    SELECT n.nspname || '.' || c.relname, {filters}
    FROM pg_publication p
    JOIN pg_class c ON c.relkind = 'p'
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL pg_partition_tree(c.oid) AS member ON member.isleaf
    LEFT JOIN pg_class l ON l.oid = member.relid
    LEFT JOIN pg_namespace ln ON ln.oid = l.relnamespace
    LEFT JOIN pg_publication_tables t
           ON t.pubname = p.pubname AND t.schemaname = ln.nspname AND t.tablename = l.relname
    WHERE p.pubname = %s AND NOT p.pubviaroot AND (p.puballtables OR EXISTS (
        SELECT FROM pg_partition_ancestors(c.oid) AS ancestor (relid) JOIN pg_class a ON a.oid = ancestor.relid
        WHERE EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = a.oid) {schemas}
    ))
    GROUP BY 1
"""

_LISTS: Final = """
    SELECT n.nspname || '.' || c.relname, ARRAY(
        SELECT a.attname::text FROM unnest(r.prattrs::int2[]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum ORDER BY k.place
    )
    FROM pg_publication p
    JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prattrs IS NOT NULL
    JOIN pg_class c ON c.oid = r.prrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE p.pubname = %s
"""


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as it is. ``tables`` are those it covers with the server's form of their row filters.

    A partitioned table is among them also where its changes come under its partitions' names (not ``via_root``); then
    so are its partitions. ``own_list`` is false when it is made FOR ALL TABLES or for whole schemas; ``complete`` when
    it publishes all kinds of changes; ``generated`` when stored generated columns are published (18 and later).
    ``lists`` are the column lists that somebody gave to tables.
    """

    name: str
    own_list: bool
    complete: bool
    via_root: bool
    generated: bool
    tables: Tables
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


async def load_publication(connection: Connection, name: str) -> Publication | None:
    """Return the publication, or None if there is none of that name."""
    version = server_version(connection)
    generated_too = "pubgencols = 's'" if version >= VERSION_18 else "false"
    found = await rows(
        connection,
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, "  # noqa: S608 - constants
        f"{generated_too} FROM pg_publication WHERE pubname = %s",
        [name],
    )
    if not found:
        return None
    all_tables, complete, via_root, generated = found[0]
    modern = version >= VERSION_15
    schemas = modern and await rows(
        connection,
        "SELECT FROM pg_publication_namespace n JOIN pg_publication p ON p.oid = n.pnpubid WHERE p.pubname = %s",
        [name],
    )
    covered = await rows(
        connection,
        f"SELECT schemaname || '.' || tablename, {'rowfilter' if modern else 'NULL'}"  # noqa: S608 - two constants
        " FROM pg_publication_tables WHERE pubname = %s",
        [name],
    )
    covered += await rows(connection, _roots(modern=modern), [name])
    lists = {table: tuple(columns) for table, columns in await rows(connection, _LISTS, [name])} if modern else {}
    return Publication(name, not (all_tables or schemas), complete, via_root, generated, dict(covered), lists)


def _roots(*, modern: bool) -> str:
    if not modern:
        return _ROOTS.format(filters="NULL", schemas="")
    filters = "nullif(string_agg(DISTINCT coalesce(t.rowfilter, ''), ' or '), '')"
    schemas = (
        "OR EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = a.relnamespace)"
    )
    return _ROOTS.format(filters=filters, schemas=schemas)


def creation(
    connection: Connection | None, name: str, wanted: Tables, current: Publication | None, *, generated: bool
) -> str:
    """Return the SQL that makes the publication, or sets the tables of the one there is, without a semicolon."""
    lists = current.lists if current is not None else {}
    listed = ", ".join(
        listing(connection, table, condition, lists.get(table, ())) for table, condition in sorted(wanted.items())
    )
    identifier = sql.Identifier(name).as_string(connection)
    if current is None:
        options = f"{KINDS}, {VIA_ROOT}, {GENERATED}" if generated else f"{KINDS}, {VIA_ROOT}"
        return f"CREATE PUBLICATION {identifier} FOR TABLE {listed} WITH ({options})"
    return f"ALTER PUBLICATION {identifier} SET TABLE {listed}"


def listing(connection: Connection | None, table: str, condition: str | None, columns: tuple[str, ...] = ()) -> str:
    """Return a table as a publication lists it."""
    # ONLY: children by inheritance would come along unasked, and unchecked. Partitions belong to their root anyway.
    names = f" ({', '.join(sql.Identifier(column).as_string(connection) for column in columns)})" if columns else ""
    return f"ONLY {quoted(connection, table)}{names}" + (f" WHERE ({condition})" if condition else "")


def quoted(connection: Connection | None, table: str) -> str:
    """Write a ``schema.table`` as SQL wants it."""
    return sql.Identifier(*table.split(".", 1)).as_string(connection)
