"""The publication's life: which tables the stream carries, and the refusal of those that would break applications.

A published table without a usable replica identity makes every UPDATE and DELETE of its owner's applications fail
(55000), and so does a row filter on columns outside that identity (42P10). PostgreSQL lets both be set up; this
module does not. It never makes a publication FOR ALL TABLES.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import Rollback, sql

from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.wal.catalog import VERSION_15, rows, server_version
from cdcsync.wal.connect import Connection
from cdcsync.wal.identity import identity_problems

OPTIONS: Final = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
LOCK_TIMEOUT: Final = "10s"

Tables = Mapping[str, str | None]
"""Tables as ``schema.table``, each with its row filter (SQL, without WHERE) or None."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as it is. ``tables`` are those it covers with the server's form of their row filters.

    ``own_list`` is false when it is made FOR ALL TABLES or for whole schemas; ``complete`` when it publishes all kinds
    of changes, through the roots of partitioned tables.
    """

    name: str
    own_list: bool
    complete: bool
    tables: Tables


async def load_publication(connection: Connection, name: str) -> Publication | None:
    """Return the publication, or None if there is none of that name."""
    query = """
        SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot
        FROM pg_publication WHERE pubname = %s
    """
    found = await rows(connection, query, [name])
    if not found:
        return None
    all_tables, complete = found[0]
    modern = server_version(connection) >= VERSION_15
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
    return Publication(name, not (all_tables or schemas), complete, dict(covered))


async def ensure_publication(connection: Connection, name: str, tables: Tables, *, create: bool) -> Publication:
    """Return the publication once it covers ``tables``; with ``create``, make it and keep its list in step.

    Row filters need PostgreSQL 15; before, they are left to the caller: the returned ``tables`` say what is filtered.
    A publication FOR ALL TABLES or for schemas is somebody's own: it has to cover the tables, and is not changed.
    All tables that are missing or unfit are named at once, before anything is changed. Raises SourceError, and
    SourceUnavailableError when the tables are locked by others.
    """
    await _refuse_unfit(connection, tables)
    wanted = dict(tables) if server_version(connection) >= VERSION_15 else dict.fromkeys(tables)
    current = await load_publication(connection, name)
    if create and (current is None or current.own_list):
        try:
            await _bring_in_step(connection, name, wanted, current)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceError(
                f"publication {name!r} cannot be changed by this role: {error.diag.message_primary}",
                hint=f"run as the tables' owner: {_statement(connection, name, wanted, make=current is None)};",
            ) from error
        except psycopg.errors.LockNotAvailable as error:
            raise SourceUnavailableError(
                f"publication {name!r} has to wait for a lock on its tables: {error.diag.message_primary}",
                hint="a VACUUM or a schema change is running; try again when it is done",
            ) from error
        current = await load_publication(connection, name)
    return _checked(connection, name, wanted, current)


def _checked(connection: Connection, name: str, wanted: Tables, current: Publication | None) -> Publication:
    """Return ``current``, or say by which statement it would be what is wanted."""
    if current is None:
        statement = _statement(connection, name, wanted, make=True)
        raise SourceError(f"there is no publication {name!r}", hint=f"{statement}; or set postgres.create = true")
    identifier = sql.Identifier(name).as_string(connection)
    if not current.complete:
        raise SourceError(
            f"publication {name!r} leaves out some kinds of changes, or partitioned tables' roots",
            hint=f"ALTER PUBLICATION {identifier} SET ({OPTIONS});",
        )
    if missing := sorted(wanted.keys() - current.tables.keys()):
        listed = ", ".join(_quoted(connection, table) for table in missing)
        raise SourceError(
            f"publication {name!r} does not cover {', '.join(missing)}",
            hint=f"ALTER PUBLICATION {identifier} ADD TABLE {listed}; or set postgres.create = true",
        )
    return current


async def _bring_in_step(connection: Connection, name: str, wanted: Tables, current: Publication | None) -> None:
    if current is not None and not current.complete:
        await connection.execute(
            sql.SQL("ALTER PUBLICATION {} SET ({})").format(sql.Identifier(name), sql.SQL(OPTIONS))
        )
        current = await load_publication(connection, name)
    if current is not None and current.tables == wanted and not any(wanted.values()):
        return
    # The server's form of a row filter is its own: whether one differs is seen only once it is set. Setting nothing
    # new is rolled back, so that no table is described anew to every subscriber.
    async with connection.transaction() as transaction:
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        await _set_tables(connection, name, wanted, make=current is None)
        await _refuse_filters_outside_identity(connection, name)
        if current is not None and await load_publication(connection, name) == current:
            raise Rollback(transaction)


async def _set_tables(connection: Connection, name: str, wanted: Tables, *, make: bool) -> None:
    try:
        await connection.execute(_statement(connection, name, wanted, make=make).encode())
    except (psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.DataError) as error:
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise
        filters = "; ".join(f"{table}: {condition}" for table, condition in wanted.items() if condition)
        raise SourceError(
            f"PostgreSQL refuses publication {name!r}: {error.diag.message_primary}",
            hint=f"check the mappings' where ({filters})" if filters else "",
        ) from error


def _statement(connection: Connection, name: str, wanted: Tables, *, make: bool) -> str:
    """Return the SQL that makes the publication, or that sets its tables."""
    # ONLY: children by inheritance would come along unasked, and unchecked. Partitions belong to their root anyway.
    listed = ", ".join(
        f"ONLY {_quoted(connection, table)}" + (f" WHERE ({condition})" if condition else "")
        for table, condition in sorted(wanted.items())
    )
    identifier = sql.Identifier(name).as_string(connection)
    if make:
        return f"CREATE PUBLICATION {identifier} FOR TABLE {listed} WITH ({OPTIONS})"
    return f"ALTER PUBLICATION {identifier} SET TABLE {listed}"


def _quoted(connection: Connection, table: str) -> str:
    schema, _, name = table.partition(".")
    return sql.Identifier(schema, name).as_string(connection)


async def _refuse_unfit(connection: Connection, tables: Tables) -> None:
    existing: dict[str, str] = dict(
        await rows(
            connection,
            "SELECT n.nspname || '.' || c.relname, c.relkind::text FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'pg_toast')",
        )
    )
    problems = []
    for table in sorted(tables.keys() - existing.keys()):
        close = difflib.get_close_matches(table, existing, n=1)
        problems.append(f"there is no table {table}" + (f" (did you mean {close[0]}?)" if close else ""))
    found = sorted(tables.keys() & existing.keys())
    problems += [
        f"{table} is a view or a foreign table: it has no changes" for table in found if existing[table] in "vmf"
    ]
    problems += await identity_problems(connection, found)
    if problems:
        raise SourceError("these tables cannot be published:\n" + "\n".join(f"  {problem}" for problem in problems))


async def _refuse_filters_outside_identity(connection: Connection, name: str) -> None:
    """Compare the columns that row filters use (their dependencies say which) with the replica identities."""
    if server_version(connection) < VERSION_15:
        return
    query = """
        SELECT n.nspname || '.' || c.relname, string_agg(DISTINCT a.attname, ', '),
               format('%%I.%%I', n.nspname, c.relname)
        FROM pg_publication p
        JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = r.prrelid AND d.refobjsubid > 0
        JOIN pg_class c ON c.oid = r.prrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
        CROSS JOIN LATERAL (
            SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf AND c.relkind = 'p'
            UNION ALL SELECT c.oid WHERE c.relkind = 'r'
        ) AS leaf
        JOIN pg_class l ON l.oid = leaf.relid
        WHERE p.pubname = %s AND l.relreplident <> 'f' AND NOT EXISTS (
            SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid
            WHERE i.indrelid = l.oid AND k.attname = a.attname
              AND CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
              AND k.attnum = ANY ((string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts])
        )
        GROUP BY 1, 3 ORDER BY 1
    """
    found = await rows(connection, query, [name])
    if found:
        raise SourceError(
            "\n".join(
                f"the row filter of {table} uses {columns}, outside its replica identity: the applications' own"
                " UPDATE and DELETE would fail"
                for table, columns, _ in found
            ),
            hint="; ".join(f"ALTER TABLE {quoted} REPLICA IDENTITY FULL" for _, _, quoted in found)
            + "; or leave the filter out",
        )
