"""Whether each mapping fits its table: columns, key, replica identity, privileges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from psycopg import sql

from cdcsync.apply.base import Finding
from cdcsync.config import Config, MapConfig, PostgresConfig
from cdcsync.errors import CdcsyncError
from cdcsync.mappers.compile import compile_mapper
from cdcsync.mappers.needs import columns_read
from cdcsync.model import Relation
from cdcsync.wal.catalog import (
    VERSION_15,
    copy_key,
    generated_columns,
    load_leaves,
    load_relation,
    load_types,
    rows,
    server_version,
    uniqueness,
)
from cdcsync.wal.connect import Connection
from cdcsync.wal.coverage import generated_problems, needs_generated
from cdcsync.wal.identity import identity_problems
from cdcsync.wal.published import load_publication, quoted
from cdcsync.wal.row_filter import RowFilter

_READABLE = """
    SELECT has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid) FROM pg_class c WHERE c.oid = %s
"""


async def check_tables(connection: Connection, config: Config) -> AsyncIterator[Finding]:
    """Yield the findings of each table, then of each mapping."""
    read, version = columns_read(config.maps), server_version(connection)
    publication = await load_publication(connection, config.postgres.publication)
    stored = (publication is not None and publication.generated) or (
        config.postgres.create and await needs_generated(connection, read)
    )
    for unfit in await identity_problems(connection, sorted(read), stored=stored):
        yield Finding("replica identity", ok=False, message=unfit.message, hint=unfit.remedy)
    generated = await generated_columns(connection, read.keys())
    for problem in generated_problems(version, generated, read):
        table, _, message = problem.partition(": ")
        yield Finding(f"table {table}", ok=False, message=message)
    types = await load_types(connection)
    for one in config.maps:
        async for finding in _mapping(connection, config.postgres, one, types):
            yield finding


async def _mapping(
    connection: Connection, postgres: PostgresConfig, one: MapConfig, types: Mapping[int, int]
) -> AsyncIterator[Finding]:
    """Compare a mapping with its table and that one's partitions; what of them is published is another question."""
    subject = f"map {one.name}: table {one.table}"
    schema, _, table = one.table.partition(".")
    try:
        relation = await load_relation(connection, schema, table, generated=True)
        for shape in [relation, *await load_leaves(connection, schema, table, generated=True)]:
            compile_mapper(one, shape, types)
    except CdcsyncError as error:
        message = error.message.replace(f"map {one.name}: ", "").replace("\n", "; ")
        yield Finding(subject, ok=False, message=message, hint=error.hint)
        return
    yield Finding(subject, ok=True, message="has all columns, and deletes carry the key")
    yield await _key(connection, one, relation)
    if one.where is not None and server_version(connection) < VERSION_15:
        yield await _condition(postgres, one, one.where, relation)
    if one.backfill:
        yield await _readable(connection, one, relation)


async def _condition(postgres: PostgresConfig, one: MapConfig, condition: str, relation: Relation) -> Finding:
    subject = f"map {one.name}: where"
    try:
        await RowFilter(postgres, one.table, condition).check(relation)
    except CdcsyncError as error:
        return Finding(subject, ok=False, message=error.message, hint=error.hint)
    return Finding(subject, ok=True, message="this server has no row filters: it is asked about the rows to be sent")


async def _key(connection: Connection, one: MapConfig, relation: Relation) -> Finding:
    subject = f"map {one.name}: key {one.key_column}"
    if await uniqueness(connection, relation, one.key_column) == "at once":
        return Finding(subject, ok=True, message="unique in the database")
    return Finding(
        subject,
        ok=False,
        message=f"no unique index says that no two rows of {one.table} have one {one.key_column}: "
        "they would overwrite each other's record",
        hint=f"CREATE UNIQUE INDEX CONCURRENTLY ON {quoted(connection, one.table)} "
        f"({sql.Identifier(one.key_column).as_string(connection)}); or map another key",
    )


async def _readable(connection: Connection, one: MapConfig, relation: Relation) -> Finding:
    subject = f"map {one.name}: copy of existing rows"
    role = sql.Identifier(connection.info.user).as_string(connection)
    ((may_select, hidden),) = await rows(connection, _READABLE, [relation.oid])
    if not may_select:
        hint = f"GRANT SELECT ON {quoted(connection, one.table)} TO {role}; or backfill = false"
        return Finding(subject, ok=False, message=f"this role may not read {one.table}", hint=hint)
    if hidden:
        return Finding(
            subject,
            ok=False,
            message=f"row security hides rows of {one.table} from this role, though the stream would show them",
            hint=f"ALTER ROLE {role} BYPASSRLS; or backfill = false",
        )
    try:
        key = await copy_key(connection, relation)
    except CdcsyncError as error:
        return Finding(subject, ok=False, message=error.message, hint=error.hint)
    return Finding(subject, ok=True, message=f"the table is readable, in the order of {', '.join(key)}")
