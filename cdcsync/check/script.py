"""``cdcsync check --print-sql``: what a DBA runs so that a role with as few rights as possible can read the database.

Whatever changes nothing of the applications' stands as SQL that may be run again. What is a person's decision, the
server's settings and the tables' own shape, stands as a comment. No secret is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from cdcsync.check.provider import Provider, find_provider
from cdcsync.check.settings import KEEP
from cdcsync.config import Config
from cdcsync.mappers.needs import columns_read, tables_read
from cdcsync.wal.catalog import VERSION_15, rows, server_version
from cdcsync.wal.connect import Connection
from cdcsync.wal.coverage import gaps, needs_generated, row_filters
from cdcsync.wal.identity import Unfit, identity_problems
from cdcsync.wal.published import Tables, creation, load_publication, quoted

DEFAULT_ROLE: Final = "cdcsync"

_TABLES: Final = """
    SELECT n.nspname || '.' || c.relname, r.rolname, c.relrowsecurity
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
    WHERE n.nspname || '.' || c.relname = ANY (%s) ORDER BY 1
"""

_ROLE: Final = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the script is made for. Without a server only the config is known: ``version`` is then 0."""

    role: str = DEFAULT_ROLE
    database: str | None = None
    version: int = 0
    logical: bool = True
    provider: Provider | None = None
    owners: Sequence[str] = ()
    secured: Sequence[str] = ()
    """Tables with row security."""
    unfit: Sequence[Unfit] = ()
    publication: Sequence[str] = field(default_factory=tuple)
    """Statements that complete the publication there is."""
    exists: bool = False
    generated: bool = False


def from_config(config: Config) -> Surroundings:
    """Say what the config alone tells; a connection string that is a reference is not looked up."""
    dsn = config.postgres.dsn_or_reference
    given = conninfo_to_dict(dsn) if isinstance(dsn, str) else {}
    database = given.get("dbname")
    return Surroundings(str(given.get("user") or DEFAULT_ROLE), str(database) if database else None)


async def from_server(connection: Connection, config: Config) -> Surroundings:
    """Ask the server. A superuser is no role for a daemon: then the script makes one of its own."""
    columns = columns_read(config.maps)
    tables = row_filters(server_version(connection), tables_read(config.maps))
    ((superuser,),) = await rows(connection, _ROLE)
    ((level,),) = await rows(connection, "SELECT current_setting('wal_level')")
    found = await rows(connection, _TABLES, [list(tables)])
    current = await load_publication(connection, config.postgres.publication)
    generated = await needs_generated(connection, columns)
    missing = await gaps(connection, current, tables, columns) if current is not None else []
    return Surroundings(
        role=DEFAULT_ROLE if superuser else connection.info.user,
        database=connection.info.dbname,
        version=server_version(connection),
        logical=level == "logical",
        provider=await find_provider(connection),
        owners=sorted({owner for _, owner, _ in found}),
        secured=[table for table, _, secured in found if secured],
        unfit=await identity_problems(connection, sorted(tables), stored=generated),
        publication=[gap.remedy for gap in missing],
        exists=current is not None,
        generated=generated,
    )


def script(config: Config, at: Surroundings) -> str:
    """Return the SQL."""
    parts = [_head(at), _settings(at), _role(at), _rights(config, at), _identities(at), _publication(config, at)]
    parts.append(_ownership(at))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(at: Surroundings) -> Iterator[str]:
    server = f"PostgreSQL {at.version // 10000}" if at.version else "a server that was not asked"
    yield f"-- What cdcsync needs of {server}{f' ({at.provider.name})' if at.provider else ''}."
    yield "-- To be run in the database, by a superuser or a managed service's administrator; it may be run again."


def _settings(at: Surroundings) -> Iterator[str]:
    yield "-- 1. Settings"
    if at.provider is not None:
        yield f"-- {at.provider.name}: {at.provider.logical}."
        yield from (f"-- {note}." for note in at.provider.notes)
    elif not at.logical or not at.version:
        yield "-- ALTER SYSTEM SET wal_level = 'logical'; -- takes a restart; SHOW wal_level must say logical"
    yield "-- One slot and one walsender have to be free, and one more for reconnecting:"
    yield "-- SHOW max_replication_slots; SHOW max_wal_senders;"
    yield "-- How much WAL a slot may keep while cdcsync is stopped; beyond it the slot is lost, and the disk is safe:"
    yield f"-- {KEEP}"
    yield "-- wal_sender_timeout may be what it is: cdcsync sets its own."


def _role(at: Surroundings) -> Iterator[str]:
    role = _name(at.role)
    replication = (at.provider.replication if at.provider else "ALTER ROLE {role} WITH REPLICATION;").format(role=role)
    yield "-- 2. The role"
    yield "DO $cdcsync$ BEGIN"
    yield f"  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {sql.Literal(at.role).as_string()}) THEN"
    yield f"    CREATE ROLE {role} NOSUPERUSER NOCREATEDB NOCREATEROLE;"
    yield "  END IF;"
    yield "END $cdcsync$;"
    yield f"ALTER ROLE {role} WITH LOGIN;"
    yield replication
    yield f"-- Its password, in psql, where it is not logged: \\password {role}"
    if at.provider is None:
        database = _name(at.database or "<database>")
        yield "-- pg_hba.conf: the database's own name, for the word replication means physical replication only:"
        yield f"-- hostssl {database} {role} <address>/32 scram-sha-256"


def _rights(config: Config, at: Surroundings) -> Iterator[str]:
    role = _name(at.role)
    yield "-- 3. Rights: to connect, and to read the mapped tables for the first copy"
    if at.database is not None:
        yield f"GRANT CONNECT ON DATABASE {_name(at.database)} TO {role};"
    else:
        yield f"-- GRANT CONNECT ON DATABASE <database> TO {role};"
    tables = sorted(tables_read(config.maps))
    copied = {one.table for one in config.maps if one.backfill}
    for schema in sorted({table.partition(".")[0] for table in tables}):
        yield f"GRANT USAGE ON SCHEMA {_name(schema)} TO {role};"
    for table in tables:
        grant = f"GRANT SELECT ON {quoted(None, table)} TO {role};"
        yield grant if table in copied else f"-- Not needed with backfill = false: {grant}"
    if at.secured:
        yield f"-- {', '.join(at.secured)} has row security, which would hide rows from the copy; the stream has all."
        yield f"ALTER ROLE {role} WITH BYPASSRLS;"


def _identities(at: Surroundings) -> Iterator[str]:
    yield "-- 4. Replica identities: without one, publishing a table makes its applications' UPDATE and DELETE fail"
    if not at.version:
        yield "-- Each table needs a primary key, or: ALTER TABLE <table> REPLICA IDENTITY USING INDEX <unique index>;"
    elif not at.unfit:
        yield "-- All tables have one."
    for problem in at.unfit:
        yield f"-- {problem.message}:"
        yield problem.remedy if _harmless(problem) else f"--   {problem.remedy}"


def _harmless(problem: Unfit) -> bool:
    return "REPLICA IDENTITY USING INDEX" in problem.remedy and problem.remedy.endswith(";")


def _publication(config: Config, at: Surroundings) -> Iterator[str]:
    name = config.postgres.publication
    tables = row_filters(at.version or VERSION_15, tables_read(config.maps))
    yield "-- 5. The publication"
    if at.exists:
        yield from at.publication or ["-- It is there, and sends what is needed."]
        return
    lines = list(_creation(name, tables, at))
    if all(_harmless(problem) for problem in at.unfit):
        yield from lines
        return
    yield "-- Not before the tables above are mended:"
    yield from (f"-- {line}" for line in lines)


def _creation(name: str, tables: Tables, at: Surroundings) -> Iterator[str]:
    filtered = [table for table, condition in tables.items() if condition]
    if filtered:
        yield f"-- The columns in the condition on {', '.join(filtered)} have to be in its replica identity."
        if not at.version:
            yield "-- Before PostgreSQL 15 leave the condition out here: cdcsync applies it."
    yield "DO $cdcsync$ BEGIN"
    yield f"  IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {sql.Literal(name).as_string()}) THEN"
    yield f"    {creation(None, name, tables, None, generated=at.generated)};"
    yield "  END IF;"
    yield "END $cdcsync$;"


def _ownership(at: Surroundings) -> Iterator[str]:
    role = _name(at.role)
    yield "-- 6. In place of 5, cdcsync can keep the publication itself (create = true). It then has to own the tables,"
    yield "-- and may do with them whatever their owner may:"
    yield f"-- GRANT CREATE ON DATABASE {_name(at.database or '<database>')} TO {role};"
    for owner in at.owners or ["<owner>"]:
        yield f"-- GRANT {_name(owner)} TO {role};"
    yield "-- With create = false, `cdcsync slot create` makes the slot; that takes no more than the role above has."


def _name(name: str) -> str:
    return name if name.startswith("<") else sql.Identifier(name).as_string()
