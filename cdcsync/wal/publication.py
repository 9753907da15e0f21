"""The publication's life: which tables the stream carries, and the refusal of those that would break applications.

A published table without a usable replica identity makes every UPDATE and DELETE of its owner's applications fail
(55000), and so does a row filter on columns outside that identity (42P10). PostgreSQL lets both be set up; this
module does not. It never makes a publication FOR ALL TABLES.
"""

from __future__ import annotations

import difflib
from typing import Final

import psycopg
from psycopg import Rollback, sql

from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.wal.catalog import VERSION_15, generated_columns, rows, server_version
from cdcsync.wal.connect import Connection
from cdcsync.wal.coverage import gaps, generated_problems, needs_generated
from cdcsync.wal.identity import identity_problems
from cdcsync.wal.published import (
    GENERATED,
    KINDS,
    VIA_ROOT,
    Columns,
    Publication,
    Tables,
    creation,
    load_publication,
    quoted,
)

LOCK_TIMEOUT: Final = "10s"


async def ensure_publication(
    connection: Connection, name: str, tables: Tables, columns: Columns | None = None, *, create: bool
) -> Publication:
    """Return the publication once it covers ``tables``; with ``create``, make it and keep its list in step.

    ``columns`` are those that are read: a stored generated one among them is published too (18 and later). Column
    lists of the publication stay as they are, and have to hold them. A publication FOR ALL TABLES or for schemas is
    somebody's own: it has to cover the tables, and is not changed.
    All tables that are missing or unfit are named at once, before anything is changed. Raises SourceError, and
    SourceUnavailableError when the tables are locked by others.
    """
    columns = columns or {}
    current = await load_publication(connection, name)
    changing = create and (current is None or current.own_list)
    generated = (current is not None and current.generated) or (changing and await needs_generated(connection, columns))
    await _refuse_unfit(connection, tables, columns, current if changing else None, generated=generated)
    if changing:
        try:
            await _bring_in_step(connection, name, tables, current, generated=generated)
        except psycopg.errors.InsufficientPrivilege as error:
            if current is None or await gaps(connection, current, tables, columns):
                statement = creation(connection, name, tables, current, generated=generated)
                raise SourceError(
                    f"publication {name!r} cannot be changed by this role: {error.diag.message_primary}",
                    hint=f"run as the tables' owner: {statement};",
                ) from error
        except psycopg.errors.LockNotAvailable as error:
            raise SourceUnavailableError(
                f"publication {name!r} has to wait for a lock on its tables: {error.diag.message_primary}",
                hint="a VACUUM or a schema change is running; try again when it is done",
            ) from error
        current = await load_publication(connection, name)
    return await _checked(connection, name, tables, columns, current, changed=changing)


async def _checked(
    connection: Connection,
    name: str,
    tables: Tables,
    columns: Columns,
    current: Publication | None,
    *,
    changed: bool,
) -> Publication:
    """Return ``current``, or say by which statements it would be what is wanted."""
    if current is None:
        generated = await needs_generated(connection, columns)
        statement = creation(connection, name, tables, None, generated=generated)
        raise SourceError(f"there is no publication {name!r}", hint=f"{statement}; or set postgres.create = true")
    await _refuse_filters_outside_identity(connection, name, tables)
    # What was set just now reads differently in the server's words, and is the same.
    as_wanted = {table: current.tables.get(table) for table in tables} if changed else tables
    if found := await gaps(connection, current, as_wanted, columns):
        raise SourceError(
            f"publication {name!r} " + "; ".join(gap.message for gap in found),
            hint=" ".join(gap.remedy for gap in found),
        )
    return current


async def _bring_in_step(
    connection: Connection, name: str, wanted: Tables, current: Publication | None, *, generated: bool
) -> None:
    if current is not None and (options := _missing_options(current, wanted, generated=generated)):
        identifier = sql.Identifier(name).as_string(connection)
        await connection.execute(f"ALTER PUBLICATION {identifier} SET ({', '.join(options)})".encode())
        current = await load_publication(connection, name)
    if current is not None and current.tables == wanted and not any(wanted.values()):
        return
    # The server's form of a row filter is its own: whether one differs is seen only once it is set. Setting nothing
    # new is rolled back, so that no table is described anew to every subscriber.
    async with connection.transaction() as transaction:
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        await _set_tables(connection, name, wanted, current, generated=generated)
        await _refuse_filters_outside_identity(connection, name, wanted)
        if current is not None and await load_publication(connection, name) == current:
            raise Rollback(transaction)


def _missing_options(current: Publication, wanted: Tables, *, generated: bool) -> list[str]:
    options = [] if current.complete else [KINDS]
    # A partitioned table's filter counts only when its changes come through it; without one either way will do.
    if any(wanted.values()) and not current.via_root:
        options.append(VIA_ROOT)
    if generated and not current.generated:
        options.append(GENERATED)
    return options


async def _set_tables(
    connection: Connection, name: str, wanted: Tables, current: Publication | None, *, generated: bool
) -> None:
    try:
        await connection.execute(creation(connection, name, wanted, current, generated=generated).encode())
    except (psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.DataError) as error:
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise
        filters = "; ".join(f"{table}: {condition}" for table, condition in wanted.items() if condition)
        raise SourceError(
            f"PostgreSQL refuses publication {name!r}: {error.diag.message_primary}",
            hint=f"check the mappings' where ({filters})" if filters else "",
        ) from error


async def _refuse_unfit(
    connection: Connection, tables: Tables, columns: Columns, ours: Publication | None, *, generated: bool
) -> None:
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
    unfit = await identity_problems(connection, found, stored=generated)
    problems += [str(problem) for problem in unfit]
    problems += generated_problems(
        server_version(connection), await generated_columns(connection, columns.keys()), columns
    )
    if not problems:
        return
    published = sorted({problem.table for problem in unfit} & (ours.tables.keys() if ours is not None else set()))
    hint = ""
    if ours is not None and published and await take_out(connection, ours.name, published):
        hint = (
            f"{', '.join(published)} was taken out of publication {ours.name!r}, so that its applications' UPDATE and"
            " DELETE work again; once it is mended, the next start publishes it and copies it anew"
        )
    raise SourceError("these tables cannot be published:\n" + "\n".join(f"  {one}" for one in problems), hint=hint)


async def take_out(connection: Connection, name: str, tables: list[str]) -> bool:
    """Stop publishing tables that have lost their identity: as long as they are, their applications' UPDATE fails.

    Returns whether that was possible: the role may not be allowed to, or the publication has no list of its own.
    """
    listed = ", ".join(f"ONLY {quoted(connection, table)}" for table in tables)
    statement = f"ALTER PUBLICATION {sql.Identifier(name).as_string(connection)} DROP TABLE {listed}"
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            await connection.execute(statement.encode())
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject, psycopg.errors.LockNotAvailable):
        return False
    return True


async def _refuse_filters_outside_identity(connection: Connection, name: str, tables: Tables) -> None:
    """Compare the columns that row filters use (their dependencies say which) with the replica identities."""
    if server_version(connection) < VERSION_15:
        return
    query = """
        SELECT n.nspname || '.' || c.relname, string_agg(DISTINCT a.attname, ', '),
               format('%%I.%%I', n.nspname, c.relname)
        FROM pg_publication p
        JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = r.prrelid
                        AND r.prqual::text ~ (':varattno ' || d.refobjsubid || ' ') -- a column list's depend as well
        JOIN pg_class c ON c.oid = r.prrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
        CROSS JOIN LATERAL (
            SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf AND c.relkind = 'p'
            UNION ALL SELECT c.oid WHERE c.relkind = 'r'
        ) AS leaf
        JOIN pg_class l ON l.oid = leaf.relid
        WHERE p.pubname = %s AND n.nspname || '.' || c.relname = ANY (%s) AND l.relreplident <> 'f' AND NOT EXISTS (
            SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid
            WHERE i.indrelid = l.oid AND k.attname = a.attname
              AND CASE l.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END
              AND k.attnum = ANY ((string_to_array(i.indkey::text, ' ')::int2[])[1:i.indnkeyatts])
        )
        GROUP BY 1, 3 ORDER BY 1
    """
    found = await rows(connection, query, [name, list(tables)])
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
