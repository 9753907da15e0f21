"""Whether PostgreSQL can serve the stream, and whether the mappings fit its tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import psycopg
from psycopg import sql

from cdcsync.apply.base import Finding
from cdcsync.check.provider import Provider, check_route, find_provider
from cdcsync.check.settings import check_settings
from cdcsync.check.tables import check_tables
from cdcsync.config import Config, PostgresConfig
from cdcsync.config.units import format_size
from cdcsync.errors import CdcsyncError, SourceError
from cdcsync.mappers.needs import columns_read, tables_read
from cdcsync.wal.catalog import rows, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.coverage import gaps, needs_generated, row_filters
from cdcsync.wal.published import creation, load_publication
from cdcsync.wal.slot import SlotInfo, check_wal_level, identify_system, show_slot
from cdcsync.wal.verify import verify_slot

OLDEST: Final = 130000
"""The first version that publishes partitioned tables, and limits the WAL that a slot keeps."""

_ROOM = """
    SELECT current_setting('max_replication_slots')::int, (SELECT count(*)::int FROM pg_replication_slots),
           current_setting('max_wal_senders')::int, (SELECT count(*)::int FROM pg_stat_replication)
"""

_MAY_PUBLISH = """
    SELECT has_database_privilege(current_database(), 'CREATE'),
           ARRAY(
               SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
                 AND NOT pg_has_role(c.relowner, 'USAGE')
               ORDER BY 1
           )
"""


async def check_source(config: Config) -> list[Finding]:
    """Check server, privileges, tables, publication and slot. What cannot be asked for is one finding too."""
    findings: list[Finding] = []
    try:
        async with await connect(config.postgres.dsn) as connection:
            async for finding in _findings(connection, config):
                findings.append(finding)  # noqa: PERF401 - those before an error stay
    except CdcsyncError as error:
        findings.append(failure("postgres", error))
    except psycopg.Error as error:
        findings.append(Finding("postgres", ok=False, message=" ".join(str(error).split())))
    return findings


def failure(subject: str, error: CdcsyncError) -> Finding:
    """Make a cross of an error, in one line."""
    return Finding(subject, ok=False, message=" ".join(error.message.split()), hint=" ".join(error.hint.split()))


async def _findings(connection: Connection, config: Config) -> AsyncIterator[Finding]:
    postgres = config.postgres
    provider = await find_provider(connection)
    yield _version(connection)
    yield await check_route(connection)
    if provider is not None:
        yield Finding("provider", ok=True, message=provider.name, hint="; ".join(provider.notes))
    yield await _wal_level(connection, provider)
    async for finding in check_settings(connection):
        yield finding
    slot = await show_slot(connection, postgres.slot)
    async for finding in _room(connection, slot):
        yield finding
    yield await _replication(connection, postgres, provider)
    async for finding in check_tables(connection, config):
        yield finding
    yield await _publication(connection, config)
    async for finding in _slot(connection, postgres, slot):
        yield finding


def _version(connection: Connection) -> Finding:
    text = f"PostgreSQL {connection.info.parameter_status('server_version')}"
    if server_version(connection) < OLDEST:
        hint = f"cdcsync needs PostgreSQL {OLDEST // 10000} or later"
        return Finding("postgres", ok=False, message=f"{text} is too old", hint=hint)
    return Finding("postgres", ok=True, message=f"{text}, database {connection.info.dbname}")


async def _wal_level(connection: Connection, provider: Provider | None) -> Finding:
    try:
        await check_wal_level(connection)
    except SourceError as error:
        finding = failure("wal_level", error)
        return replace(finding, hint=provider.logical) if provider is not None else finding
    return Finding("wal_level", ok=True, message="logical decoding is possible")


async def _room(connection: Connection, slot: SlotInfo) -> AsyncIterator[Finding]:
    """See that a slot and a walsender are free, beside one more for a reconnect that comes early."""
    ((slots, slots_used, senders, senders_used),) = await rows(connection, _ROOM)
    free = slots - slots_used + slot.exists
    yield Finding(
        "max_replication_slots",
        ok=free > 0,
        message=f"{slots_used} of {slots} in use",
        hint=""
        if free > 0
        else f"drop unused slots, or ALTER SYSTEM SET max_replication_slots = {slots + 5}; and restart",
    )
    needed = 1 if slot.active_pid else 2
    fits = senders - senders_used >= needed
    yield Finding(
        "max_wal_senders",
        ok=fits,
        message=f"{senders_used} of {senders} in use",
        hint="" if fits else f"ALTER SYSTEM SET max_wal_senders = {senders + 5}; and restart",
    )


async def _replication(connection: Connection, postgres: PostgresConfig, provider: Provider | None) -> Finding:
    """Open a replication connection: that proves the role's attribute and pg_hba.conf at once."""
    subject = "replication privilege"
    try:
        async with await connect(postgres.dsn, replication=True) as replication:
            system = await identify_system(replication)
    except CdcsyncError as error:
        role = sql.Identifier(connection.info.user).as_string(connection)
        statement = provider.replication if provider is not None else "ALTER ROLE {role} REPLICATION;"
        hint = f"{statement.format(role=role)} Else: {error.hint}"
        return Finding(subject, ok=False, message=" ".join(error.message.split()), hint=hint)
    return Finding(subject, ok=True, message=f"a replication connection opens (timeline {system.timeline})")


async def _publication(connection: Connection, config: Config) -> Finding:
    postgres, columns = config.postgres, columns_read(config.maps)
    tables = row_filters(server_version(connection), tables_read(config.maps))
    subject = f"publication {postgres.publication}"
    found = await load_publication(connection, postgres.publication)
    lacks = await gaps(connection, found, tables, columns) if found is not None else []
    if found is not None and not lacks:
        return Finding(subject, ok=True, message=f"covers {len(tables)} mapped table{'s' if len(tables) > 1 else ''}")
    message = "; ".join(gap.message for gap in lacks) or "does not exist"
    by_hand = " ".join(gap.remedy for gap in lacks)
    if found is None:
        generated = await needs_generated(connection, columns)
        by_hand = creation(connection, postgres.publication, tables, None, generated=generated) + ";"
    if not postgres.create or (found is not None and not found.own_list):
        return Finding(subject, ok=False, message=message, hint=by_hand)
    if found is not None and any(found.lists.get(table) for table in tables):
        return Finding(subject, ok=False, message=message, hint=by_hand)
    return await _can_be_made(connection, subject, message, by_hand, sorted(tables))


async def _can_be_made(connection: Connection, subject: str, message: str, by_hand: str, tables: list[str]) -> Finding:
    ((may_create, foreign),) = await rows(connection, _MAY_PUBLISH, [tables])
    if may_create and not foreign:
        return Finding(subject, ok=True, message=f"{message}; `cdcsync run` will put that right")
    info = connection.info
    role, database = sql.Identifier(info.user).as_string(connection), sql.Identifier(info.dbname).as_string(connection)
    lacks = [] if may_create else [f"GRANT CREATE ON DATABASE {database} TO {role}"]
    lacks += [f"make {role} a member of the role that owns {table}" for table in foreign]
    hint = f"{', '.join(lacks)}; or let a DBA run: {by_hand}"
    return Finding(subject, ok=False, message=f"{message}, and this role may not mend that", hint=hint)


async def _slot(connection: Connection, postgres: PostgresConfig, slot: SlotInfo) -> AsyncIterator[Finding]:
    subject = f"slot {slot.name}"
    if not slot.exists:
        message = "does not exist yet; `cdcsync run` will make it" if postgres.create else "does not exist"
        yield Finding(
            subject, ok=postgres.create, message=message, hint="" if postgres.create else "cdcsync slot create"
        )
        return
    try:
        await verify_slot(connection, slot, 0)
    except CdcsyncError as error:
        yield failure(subject, error)
        return
    retained = slot.retained_bytes or 0
    use = f"in use by server process {slot.active_pid}" if slot.active_pid else "not in use"
    room = f", {format_size(slot.safe_wal_size)} until the server drops it" if slot.safe_wal_size is not None else ""
    yield Finding(
        subject,
        ok=retained <= postgres.warn_lag,
        message=f"{use}, holds back {_roughly(retained)} of WAL{room}",
        hint="" if retained <= postgres.warn_lag else "start cdcsync, or see cdcsync status for what holds it up",
    )


def _roughly(size: int) -> str:
    """Print bytes in whole units."""
    step = 1 << 30 if size >= 10 << 30 else 1 << 20 if size >= 10 << 20 else 1 << 10
    return format_size(size // step * step) if size >= step else f"{size}B"
