"""The replication slot's life: create, show, advance, drop. The publication comes first (``wal.publication``).

A slot sees only what its database's catalogs held at each point of the WAL: up to PostgreSQL 17, one that is older than
its publication gets stuck for good.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.model import format_lsn, parse_lsn
from cdcsync.wal.catalog import VERSION_15, rows, server_version
from cdcsync.wal.connect import Connection, connect

VERSION_16: Final = 160000
VERSION_17: Final = 170000
PLUGIN: Final = "pgoutput"
CREATION_SECONDS: Final = 60.0
"""How long a new slot may wait for the transactions that were writing when it was asked for."""

Failover: TypeAlias = bool | Literal["auto"]


@dataclass(frozen=True, slots=True)
class SlotIdentity:
    """What a checkpoint is bound to. A new slot of the same name has another consistent point.

    ``timeline`` is that of the moment; it grows with each promotion of a standby.
    """

    system_id: str
    timeline: int
    database: str
    slot: str
    consistent_point: int


@dataclass(frozen=True, slots=True)
class System:
    """IDENTIFY_SYSTEM: the cluster, its timeline, how far its WAL is written, and the connection's database."""

    system_id: str
    timeline: int
    lsn: int
    database: str


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot as ``pg_replication_slots`` shows it; sizes in bytes. What the server's version lacks is None.

    ``retained_bytes`` is the WAL that the server keeps for it, ``lag_bytes`` what it has not confirmed.
    ``catalog_xmin_age`` is how many transactions back it keeps VACUUM from cleaning the system catalogs.
    """

    name: str
    exists: bool
    slot_type: str | None = None
    plugin: str | None = None
    database: str | None = None
    temporary: bool | None = None
    active_pid: int | None = None
    confirmed_flush_lsn: int | None = None
    restart_lsn: int | None = None
    retained_bytes: int | None = None
    lag_bytes: int | None = None
    catalog_xmin_age: int | None = None
    wal_status: str | None = None
    safe_wal_size: int | None = None
    invalidation_reason: str | None = None
    conflicting: bool | None = None
    two_phase: bool | None = None
    failover: bool | None = None
    synced: bool | None = None
    inactive_since: dt.datetime | None = None

    @property
    def lost(self) -> bool:
        """Whether the slot can never be used again."""
        return self.wal_status == "lost" or bool(self.invalidation_reason) or bool(self.conflicting)


_SHOW = """
    WITH tip AS (
        SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn
    )
    SELECT s.*, pg_wal_lsn_diff(tip.lsn, s.restart_lsn)::int8 AS retained_bytes,
           pg_wal_lsn_diff(tip.lsn, s.confirmed_flush_lsn)::int8 AS lag_bytes, age(s.catalog_xmin) AS catalog_xmin_age
    FROM pg_replication_slots s, tip WHERE s.slot_name = %s
"""

_SESSIONS = """
    SELECT format('pid %%s (%%s%%s, %%s, since %%s)', pid, coalesce(nullif(application_name, ''), backend_type),
                  ' of ' || usename, coalesce('from ' || host(client_addr), 'local'),
                  to_char(coalesce(xact_start, backend_start), 'YYYY-MM-DD HH24:MI:SS'))
    FROM pg_stat_activity WHERE pid = ANY (%s)
"""

_BLOCKERS = """
    SELECT CASE WHEN cardinality(pg_blocking_pids(%(pid)s)) > 0 THEN pg_blocking_pids(%(pid)s)
                ELSE ARRAY(SELECT pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 3)
           END
"""


async def show_slot(connection: Connection, name: str) -> SlotInfo:
    """Return what the server knows of the slot; ``exists`` is false when that is nothing."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_SHOW, [name])
        row: dict[str, Any] | None = await cursor.fetchone()
    if row is None:
        return SlotInfo(name, exists=False)
    for column in ("confirmed_flush_lsn", "restart_lsn"):
        row[column] = None if row[column] is None else parse_lsn(row[column])
    known = {field: row[field] for field in SlotInfo.__slots__ if field in row}
    return SlotInfo(name, exists=True, **known)


async def create_slot(
    dsn: str, name: str, *, failover: Failover = "auto", deadline: float = CREATION_SECONDS
) -> SlotIdentity:
    """Create the slot, without a snapshot, and return what a checkpoint is to be bound to.

    Creation waits for all transactions that are writing now (on a standby for its primary to say which those are);
    after ``deadline`` seconds it is given up. Raises SourceError (the slot exists, the server is not set up,
    ``failover`` is asked of a server without it) and SourceUnavailableError (not connected; waited too long, naming
    who was waited for).
    """
    async with await connect(dsn, replication=True) as replication:
        return await create_slot_on(replication, dsn, name, failover=failover, deadline=deadline)


async def create_slot_on(
    replication: Connection,
    dsn: str,
    name: str,
    *,
    failover: Failover = False,
    deadline: float = CREATION_SECONDS,
    temporary: bool = False,
) -> SlotIdentity:
    """Create the slot as ``create_slot``, by this connection; a ``temporary`` one is gone when that is."""
    async with await connect(dsn) as ordinary:
        await check_wal_level(ordinary)
        standby = await present_timeline(ordinary) is None
        options = _creation_options(server_version(ordinary), failover, standby=standby)
        kind = sql.SQL("TEMPORARY LOGICAL" if temporary else "LOGICAL")
        command = sql.SQL("CREATE_REPLICATION_SLOT {} {} pgoutput {}").format(sql.Identifier(name), kind, options)
        try:
            consistent_point = await _create(ordinary, replication, command, deadline, standby=standby)
        except psycopg.errors.DuplicateObject as error:
            raise SourceError(f"slot {name!r} exists", hint="cdcsync slot show; cdcsync slot drop") from error
        except psycopg.errors.ConfigurationLimitExceeded as error:
            raise SourceError(
                f"no slot can be added: {_first_line(error)}",
                hint="drop unused slots (SELECT * FROM pg_replication_slots) or raise max_replication_slots",
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceError(_first_line(error), hint="ALTER ROLE <user> REPLICATION;") from error
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            raise SourceError(_first_line(error), hint="set wal_level = 'logical' on the primary, too") from error
        system = await identify_system(replication)
        return SlotIdentity(system.system_id, system.timeline, system.database, name, consistent_point)


async def drop_slot(connection: Connection, name: str) -> None:
    """Drop the slot. Raises SourceError when it is in use or does not exist."""
    await _call(connection, name, "SELECT pg_drop_replication_slot(%s)", [name])


async def advance(connection: Connection, name: str, lsn: int) -> int:
    """Give up what the slot holds before ``lsn``, and return where it is then. Raises SourceError as ``drop_slot``."""
    query = "SELECT end_lsn FROM pg_replication_slot_advance(%s, %s)"
    return parse_lsn((await _call(connection, name, query, [name, format_lsn(lsn)]))[0][0])


async def identify_system(replication: Connection) -> System:
    """Ask a replication connection where it is."""
    row = await (await replication.execute("IDENTIFY_SYSTEM")).fetchone()
    if row is None:
        raise SourceUnavailableError("the server did not identify itself")
    return System(str(row[0]), int(row[1]), parse_lsn(str(row[2])), str(row[3]))


async def present_timeline(connection: Connection) -> int | None:
    """Return the timeline that the server writes on; None on a standby. Needs no replication connection."""
    ((standby,),) = await rows(connection, "SELECT pg_is_in_recovery()")
    if standby:
        return None
    ((file,),) = await rows(connection, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    return int(file[:8], 16)


async def present_lsn(connection: Connection) -> int:
    """Return where the server's WAL ends: written there, on a standby replayed."""
    query = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text"
    ((lsn,),) = await rows(connection, query)
    return parse_lsn(lsn)


async def check_wal_level(connection: Connection) -> None:
    """Raise SourceError, with the remedy, unless the server writes logical WAL (or can begin to: 19 and later)."""
    settings = dict(
        await rows(
            connection, "SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'effective_wal_level')"
        )
    )
    if "effective_wal_level" not in settings and settings["wal_level"] != "logical":
        raise SourceError(
            f"wal_level is {settings['wal_level']}; logical replication needs logical",
            hint="ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL (managed: its parameter group)",
        )


async def sessions(connection: Connection, pids: list[int]) -> str:
    """Describe server processes for people, as far as they still run and may be seen."""
    return ", ".join(text for (text,) in await rows(connection, _SESSIONS, [pids]))


def _creation_options(version: int, failover: Failover, *, standby: bool) -> sql.SQL:
    if standby and version < VERSION_16:
        raise SourceError(
            "this server is a standby, and standbys cannot decode before PostgreSQL 16",
            hint="point postgres.dsn at the primary (several hosts: target_session_attrs=read-write)",
        )
    options = sql.SQL("(SNAPSHOT 'nothing')" if version >= VERSION_15 else "NOEXPORT_SNAPSHOT")
    if failover is False:
        return options
    if version >= VERSION_17 and not standby:
        return sql.SQL("(SNAPSHOT 'nothing', FAILOVER)")
    if failover is True:
        raise SourceError(
            "this server cannot make failover slots",
            hint='they need PostgreSQL 17 and a primary; set postgres.failover to "auto" or false',
        )
    return options


async def _create(
    ordinary: Connection, replication: Connection, command: sql.Composed, deadline: float, *, standby: bool
) -> int:
    creation = asyncio.ensure_future(replication.execute(command))
    try:
        done, _ = await asyncio.wait([creation], timeout=deadline)
        blockers = "" if done else await _blockers(ordinary, replication.info.backend_pid)
        if not done:  # neither the server's own time limits nor a closed connection would end its wait
            await replication.cancel_safe(timeout=10)
        row = await (await creation).fetchone()
    except psycopg.errors.QueryCanceled as error:
        if standby:
            raise SourceUnavailableError(
                f"a new slot on a standby waits for the primary's word on running transactions; it has not come in"
                f" {deadline:.0f} s",
                hint="run SELECT pg_log_standby_snapshot(); on the primary while the slot is being made; if that does"
                " not help, end transactions there that have been writing for long",
            ) from error
        raise SourceUnavailableError(
            f"a new slot waits for running transactions; after {deadline:.0f} s still for {blockers}",
            hint="end that transaction (SELECT pg_terminate_backend(pid)) or try again at a quieter time",
        ) from error
    finally:
        creation.cancel()
    if row is None:
        raise SourceUnavailableError("the server did not say where the new slot starts")
    return parse_lsn(str(row[1]))


async def _blockers(connection: Connection, pid: int) -> str:
    async with connection.cursor() as cursor:
        await cursor.execute(_BLOCKERS, {"pid": pid})
        row = await cursor.fetchone()
    pids: list[int] = row[0] if row else []
    if 0 in pids:
        return "a prepared transaction (SELECT * FROM pg_prepared_xacts)"
    return await sessions(connection, pids) or "a transaction that has ended since"


async def _call(connection: Connection, name: str, query: str, parameters: list[str]) -> list[tuple[Any, ...]]:
    try:
        return await rows(connection, query, parameters)
    except psycopg.errors.ObjectInUse as error:
        raise SourceError(
            f"slot {name!r} is in use: {await _holder(connection, name)}", hint="stop it first"
        ) from error
    except psycopg.errors.UndefinedObject as error:
        raise SourceError(f"there is no slot {name!r}", hint="cdcsync slot create") from error
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        raise SourceError(f"slot {name!r}: {_first_line(error)}", hint="cdcsync slot show") from error


async def _holder(connection: Connection, name: str) -> str:
    info = await show_slot(connection, name)
    return await sessions(connection, [info.active_pid]) if info.active_pid else "by a process that has ended since"


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).strip()
