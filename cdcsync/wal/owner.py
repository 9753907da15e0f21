"""Whose publication it is. Two daemons with one publication would set its list of tables in turns, for ever.

The slot's name stands in the publication's comment, which is no change of the publication to anybody.
"""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import sql

from cdcsync.errors import SourceError
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import Connection

MARK: Final = "cdcsync, slot "

_COMMENT: Final = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = %s"


async def refuse_anothers(connection: Connection, publication: str, slot: str) -> None:
    """See that the publication is not that of another slot which is there. Raises SourceError."""
    owner = await _owner(connection, publication)
    if owner in {None, slot}:
        return
    if await rows(connection, "SELECT FROM pg_replication_slots WHERE slot_name = %s", [owner]):
        raise SourceError(
            f"publication {publication!r} belongs to the daemon that reads slot {owner!r}",
            hint="give this one a publication of its own (postgres.publication), or drop the other's slot",
        )


async def claim(connection: Connection, publication: str, slot: str) -> None:
    """Write down whose publication it is, where that may be done and nobody else has written there."""
    ((comment,),) = await rows(connection, _COMMENT, [publication])
    if comment == MARK + slot or (comment is not None and not comment.startswith(MARK)):
        return
    statement = sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(sql.Identifier(publication), sql.Literal(MARK + slot))
    try:
        await connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return  # then this role cannot change the list either


async def _owner(connection: Connection, publication: str) -> str | None:
    found = await rows(connection, _COMMENT, [publication])
    comment: str = (found[0][0] if found else None) or ""
    return comment.removeprefix(MARK) if comment.startswith(MARK) else None
