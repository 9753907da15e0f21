"""What a slot's state means in plain words, its cause and remedy; and whether its standbys could go on with it.

Meanings: "pg_replication_slots" in PostgreSQL's manual. Only a copy that is synced, not temporary and not invalidated
survives the promotion of its standby; a fresh one stays temporary until the slot's reader has moved it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdcsync.errors import SourceUnavailableError
from cdcsync.wal.catalog import rows, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.slot import VERSION_17, SlotInfo, sessions, show_slot

Level: TypeAlias = Literal["fine", "warning", "lost"]

OLD_CATALOG: Final = 50_000_000
"""Transactions that a slot may hold the catalogs' cleaning back by; at 200 million PostgreSQL itself is alarmed."""

CAUSES: Final = {
    "wal_removed": (
        "it was read too late, and the server removed WAL beyond max_slot_wal_keep_size",
        "give it more room (ALTER SYSTEM SET max_slot_wal_keep_size = '…'; SELECT pg_reload_conf())",
    ),
    "rows_removed": (
        "the primary removed catalog rows that decoding on this standby still needed",
        "set hot_standby_feedback = on here, and primary_slot_name to a physical slot of the primary",
    ),
    "wal_level_insufficient": (
        "wal_level was lowered below logical on the primary",
        "set wal_level = 'logical' there, and restart it",
    ),
    "idle_timeout": (
        "nothing read it for longer than idle_replication_slot_timeout",
        "raise that setting, or see that cdcsync is not down for so long",
    ),
}
"""Why a slot is lost (``invalidation_reason``), and how to keep the next one from it."""

_SURROUNDINGS = """
    SELECT pg_is_in_recovery(), coalesce(current_setting('synchronized_standby_slots', true), ''),
           (SELECT count(*)::int FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
            WHERE s.slot_type = 'physical'),
           ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'physical' AND active)
"""


@dataclass(frozen=True, slots=True)
class Note:
    """One thing worth knowing of a slot: a sentence, and what to do about it where something is to be done."""

    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """A failover slot's copy on a standby. ``error`` says why that server could not be asked."""

    host: str
    info: SlotInfo | None = None
    error: str | None = None

    @property
    def ready(self) -> bool:
        """Whether the stream can go on from it once its standby is promoted."""
        info = self.info
        return info is not None and bool(info.synced) and not info.temporary and not info.lost


@dataclass(frozen=True, slots=True)
class Health:
    """A slot with everything around it that decides about its life.

    ``holder`` describes the reader. ``synchronized`` is the primary's ``synchronized_standby_slots``, of which ``away``
    are not connected now; ``standbys`` counts those that stream through a physical slot.
    """

    info: SlotInfo
    standby: bool = False
    modern: bool = False
    holder: str | None = None
    synchronized: tuple[str, ...] = ()
    away: tuple[str, ...] = ()
    standbys: int = 0
    copies: tuple[Copy, ...] = field(default=())


async def examine(connection: Connection, slot: str, standbys: Sequence[str] = ()) -> Health:
    """Look at the slot, and at its copies on the servers of ``standbys`` (connection strings)."""
    info = await show_slot(connection, slot)
    ((standby, setting, count, active),) = await rows(connection, _SURROUNDINGS)
    synchronized = tuple(name.strip().strip('"') for name in setting.split(",") if name.strip())
    copies = [copy for dsn in standbys if (copy := await _copy(dsn, slot)) is not None]
    return Health(
        info,
        standby=standby,
        modern=server_version(connection) >= VERSION_17,
        holder=await sessions(connection, [info.active_pid]) if info.active_pid else None,
        synchronized=synchronized,
        away=tuple(name for name in synchronized if name not in active),
        standbys=count,
        copies=tuple(copies),
    )


def each_host(dsn: str) -> list[str]:
    """Return a connection string for each host of one that names several; none for one that does not."""
    parameters = conninfo_to_dict(dsn)
    hosts = str(parameters.get("host") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    if len(hosts) < 2:  # noqa: PLR2004 - several
        return []
    ports = ports * len(hosts) if len(ports) == 1 else ports
    return [
        make_conninfo(dsn, host=host, port=port or None, target_session_attrs="any")
        for host, port in zip(hosts, ports, strict=False)
    ]


async def _copy(dsn: str, slot: str) -> Copy | None:
    """Look at one server; None if it is no standby."""
    parameters = conninfo_to_dict(dsn)
    host = ":".join(str(parameters[name]) for name in ("host", "port") if parameters.get(name)) or "its default host"
    try:
        async with await connect(dsn) as connection:
            ((standby,),) = await rows(connection, "SELECT pg_is_in_recovery()")
            return Copy(host, await show_slot(connection, slot)) if standby else None
    except SourceUnavailableError as error:
        return Copy(host, error=" ".join(error.message.split()))


def loss(info: SlotInfo) -> tuple[str, str]:
    """Say why a lost slot is lost, and how to keep the next one from it."""
    # PostgreSQL 16 calls every lost slot conflicting; only one whose WAL is gone has no restart_lsn any more.
    reason = info.invalidation_reason or ("" if info.conflicting and info.restart_lsn else "wal_removed")
    if reason in CAUSES:
        return CAUSES[reason]
    if info.conflicting:  # it does not say which of the two
        (rows_removed, feedback), (level, raised) = CAUSES["rows_removed"], CAUSES["wal_level_insufficient"]
        return f"{rows_removed}, or {level}", f"{feedback}; {raised}"
    return reason, "see the server's log"


def diagnose(health: Health, warn_bytes: int) -> list[Note]:
    """Return what is worth knowing, the worst first; a slot in order gets one sentence. ``warn_bytes``: of WAL kept."""
    info = health.info
    if not info.exists:
        return [Note("lost", "the server has no such slot", "cdcsync slot create (or run, which makes it)")]
    if info.lost:
        cause, remedy = loss(info)
        return [Note("lost", f"the slot can never be used again: {cause}", f"{remedy}; then cdcsync slot reset")]
    notes = [*_room(info, warn_bytes), *_catalog(info), *_failover(health), *(_of_copy(copy) for copy in health.copies)]
    notes = sorted(notes, key=lambda note: note.level == "fine")
    reader = f"read by {health.holder}" if health.holder else _unread(info)
    return [*notes, Note("fine", reader)]


def _unread(info: SlotInfo) -> str:
    if info.active_pid:
        return f"read by server process {info.active_pid}"
    since = f" since {info.inactive_since:%Y-%m-%d %H:%M:%S %Z}" if info.inactive_since else ""
    return f"nothing reads it{since}"


def _room(info: SlotInfo, warn_bytes: int) -> list[Note]:
    mend = "start cdcsync" if info.active_pid is None else "cdcsync status says what holds the reader up"
    more_room = "ALTER SYSTEM SET max_slot_wal_keep_size = '…'; SELECT pg_reload_conf();"
    if info.wal_status == "unreserved":
        return [
            Note(
                "warning",
                "the next checkpoint removes WAL that it needs, and it is lost then",
                f"{mend}, now; {more_room}",
            )
        ]
    if (info.retained_bytes or 0) > warn_bytes:
        limit = "" if info.safe_wal_size is not None else ", without a limit (max_slot_wal_keep_size = -1)"
        return [Note("warning", f"the server keeps more WAL for it than postgres.warn_lag{limit}", mend)]
    if info.wal_status == "extended":
        return [Note("fine", "the server keeps more WAL for it than max_wal_size; still within its limits")]
    return []


def _catalog(info: SlotInfo) -> list[Note]:
    if (info.catalog_xmin_age or 0) < OLD_CATALOG:
        return []
    text = f"it keeps VACUUM from cleaning the system catalogs, {info.catalog_xmin_age:,} transactions back"
    remedy = "start cdcsync; if it runs, end the oldest transaction (pg_stat_activity.xact_start)"
    return [Note("warning", text, remedy)]


def _failover(health: Health) -> list[Note]:
    info = health.info
    if not health.modern or health.standby:
        return []
    if not info.failover:
        remedy = 'with postgres.failover = "auto", cdcsync slot reset makes one that standbys copy'
        return [Note("fine", "no failover slot: a standby that is promoted does not have it", remedy)]
    if health.away:
        text = f"rows are withheld until {', '.join(health.away)} of synchronized_standby_slots is connected"
        return [Note("warning", text, "start that standby, or take its slot out of synchronized_standby_slots")]
    if health.standbys and not health.synchronized:
        text = "rows may reach the CRMs before a standby has them, and never have happened after a failover"
        return [Note("warning", text, "name the standby's physical slot in synchronized_standby_slots")]
    return []


def _of_copy(copy: Copy) -> Note:
    where, info = f"standby {copy.host}", copy.info
    if info is None:
        return Note("warning", f"{where} cannot be asked: {copy.error}", "start it, or mend the connection string")
    if copy.ready:
        return Note("fine", f"{where} has a copy that survives its promotion")
    if not info.exists:
        remedy = (
            "there, set sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, and dbname in"
            " primary_conninfo"
        )
        return Note("warning", f"{where} has no copy", remedy)
    if info.lost:
        return Note("warning", f"the copy on {where} is invalid: {loss(info)[0]}", "it is made anew by the next sync")
    if info.synced is False:
        text = f"{where} has a slot of the same name that is no copy, and keeps the copy from being made"
        return Note("warning", text, "drop it there")
    return Note("warning", f"the copy on {where} is temporary still", "let cdcsync run: it lasts once it was read past")
