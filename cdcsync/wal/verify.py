"""Whether what a connection finds can carry the stream on, and if not, what a person has to do.

Each check raises SourceError for what no retry mends, and SourceUnavailableError for what may pass.
"""

from __future__ import annotations

from typing import Final

import psycopg

from cdcsync.errors import REBUILD, SourceError, SourceUnavailableError
from cdcsync.model import format_lsn, parse_lsn
from cdcsync.wal.catalog import VERSION_18, rows, server_version
from cdcsync.wal.connect import Connection
from cdcsync.wal.health import loss
from cdcsync.wal.slot import PLUGIN, SlotIdentity, SlotInfo, System

UNTRANSLATABLE: Final = frozenset({"22021", "22P05"})
SETUP_CLASSES: Final = ("0A", "22", "42")
"""SQLSTATE classes that say that the command itself is not possible there."""


async def verify_publication(connection: Connection, name: str, *, made_anew: bool) -> None:
    """See that the publication exists; ``made_anew``: it soon will.

    Up to PostgreSQL 17 that does not help: the slot is stuck at the point where there was none.
    """
    if not await rows(connection, "SELECT FROM pg_publication WHERE pubname = %s", [name]):
        if made_anew and server_version(connection) >= VERSION_18:
            raise SourceUnavailableError(f"there is no publication {name!r}; it is made anew")
        raise SourceError(
            f"there is no publication {name!r}",
            hint="it was dropped, and with it the changes since: cdcsync slot reset makes publication and slot anew",
        )


async def verify_slot(connection: Connection, slot: SlotInfo, since: int) -> None:
    """See that the slot can serve everything from ``since``, the durable position (0: wherever the slot is)."""
    if not slot.exists:
        raise SourceError(f"there is no slot {slot.name!r}: changes were not kept for us", hint=REBUILD)
    if slot.slot_type != "logical" or slot.plugin != PLUGIN:
        kind = slot.plugin or slot.slot_type
        raise SourceError(f"slot {slot.name!r} is of another kind ({kind})", hint="choose another postgres.slot")
    ((database, standby),) = await rows(connection, "SELECT current_database(), pg_is_in_recovery()")
    if slot.database != database:
        raise SourceError(
            f"slot {slot.name!r} belongs to database {slot.database!r}, not to {database!r}",
            hint="slot names are the whole server's: choose another postgres.slot, or mend postgres.dsn",
        )
    if slot.two_phase:
        raise SourceError(
            f"slot {slot.name!r} sends transactions when they are prepared, before they are committed",
            hint="cdcsync slot drop and create: its own slots are not two-phase",
        )
    if slot.lost:
        cause, remedy = loss(slot)
        raise SourceError(f"slot {slot.name!r} was invalidated: {cause}", hint=f"{remedy}; then {REBUILD}")
    if standby and slot.synced:
        raise SourceUnavailableError(f"this server is a standby, and slot {slot.name!r} a copy of its primary's")
    if since and slot.confirmed_flush_lsn is not None and slot.confirmed_flush_lsn > since:
        raise SourceError(
            f"slot {slot.name!r} is at {format_lsn(slot.confirmed_flush_lsn)}, ahead of what is durable here"
            f" ({format_lsn(since)}): somebody advanced or re-created it, or this state file is an old copy",
            hint=REBUILD,
        )


async def verify_system(
    replication: Connection, system: System, expected: SlotIdentity | None, timeline: int | None, since: int
) -> None:
    """See that this is the cluster of before, and that its history still holds everything up to ``since``.

    ``since`` is what was taken from the stream, durable or not, and ``timeline`` the one on which that was.
    """
    if expected is not None and expected.system_id != system.system_id:
        raise SourceError(
            f"this is another cluster ({system.system_id}) than the one the state file belongs to"
            f" ({expected.system_id})",
            hint="mend postgres.dsn; or, if the database was moved here, " + REBUILD,
        )
    if timeline is not None and system.timeline != timeline:
        left_at = await _left_at(replication, system.timeline, timeline)
        if left_at is None or left_at < since:
            raise SourceError(
                f"the server's history (timeline {system.timeline}) does not contain ours: it left timeline {timeline}"
                f" at {format_lsn(left_at or 0)}, and {format_lsn(since)} was read already. Rows were sent that may"
                " never have happened there, and others may be missing",
                hint=REBUILD,
            )
    if system.lsn < since:
        ends = f"the server's WAL ends at {format_lsn(system.lsn)}, before {format_lsn(since)}, which was read already:"
        ((standby,),) = await rows(replication, "SELECT pg_is_in_recovery()")
        if standby:
            raise SourceUnavailableError(f"{ends} this standby has yet to catch up")
        raise SourceError(f"{ends} it was restored from a backup, or is not the primary of before", hint=REBUILD)


async def _left_at(replication: Connection, present: int, before: int) -> int | None:
    """Return where the history of timeline ``present`` left timeline ``before``; None if it never was on it."""
    if present < before:
        return None
    row = await (await replication.execute(b"TIMELINE_HISTORY %d" % present)).fetchone()
    content = row[1] if row else ""
    for line in (content if isinstance(content, str) else bytes(content).decode()).splitlines():
        fields = line.split()
        if fields and fields[0] == str(before):
            return parse_lsn(fields[1])
    return None


def refusal(error: Exception, slot: str, publication: str) -> SourceUnavailableError:
    """Return a connection's failure as what to wait for; raise SourceError if waiting does not help.

    The words of PostgreSQL's messages differ between versions and languages, so the SQLSTATE decides. An end by
    57P01 has several causes; if it was an invalidation, the next connection sees it in the slot.
    """
    if isinstance(error, SourceUnavailableError):
        return error
    text = str(error).strip()
    state = (error.sqlstate or "") if isinstance(error, psycopg.Error) else ""
    if state == "42704":
        raise SourceError(
            f"the stream cannot go on: {text}",
            hint=f"slot {slot!r} has reached a point at which publication {publication!r} did not exist: {REBUILD}",
        ) from error
    if state == "55000":
        raise SourceError(
            f"slot {slot!r} cannot be used: {text}", hint=f"cdcsync slot show; if it is lost, {REBUILD}"
        ) from error
    if state == "42501":
        raise SourceError(f"PostgreSQL refuses: {text}", hint="ALTER ROLE <user> REPLICATION;") from error
    if state in UNTRANSLATABLE:
        raise SourceError(
            "the stream cannot go on: a text in it has a character of the database's encoding that UTF-8 has not",
            hint=f"mend the row (the server's log has the character), then {REBUILD}",
        ) from error
    if state[:2] in SETUP_CLASSES:
        raise SourceError(f"PostgreSQL refuses: {text}", hint="run cdcsync check") from error
    return SourceUnavailableError(text or "the connection was lost")
