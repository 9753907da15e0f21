"""Who holds the lock that a connection of ours waits for.

The catalogs are asked in ways that take the weakest table lock (``pg_get_publication_tables``, ``EXPLAIN``): they wait
while a migration has ACCESS EXCLUSIVE on a mapped table.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import psycopg
import structlog

from cdcsync.config import PostgresConfig
from cdcsync.errors import SourceUnavailableError
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import Connection, connect_again

LOOK_SECONDS: Final = 5.0

_BLOCKERS: Final = """
    SELECT coalesce(l.relation::regclass::text, l.locktype), a.pid, coalesce(a.usename, '?'),
           coalesce(nullif(a.application_name, ''), 'without a name')
    FROM pg_locks l CROSS JOIN unnest(pg_blocking_pids(l.pid)) AS b(pid) JOIN pg_stat_activity a ON a.pid = b.pid
    WHERE l.pid = %s AND NOT l.granted ORDER BY a.pid
"""


@contextlib.asynccontextmanager
async def telling_blockers(
    settings: PostgresConfig, connection: Connection, log: structlog.typing.FilteringBoundLogger
) -> AsyncIterator[None]:
    """Say in the log, within the context, what ``connection`` waits for, when it has waited for some seconds."""
    telling = asyncio.ensure_future(_tell(settings, connection.info.backend_pid, log))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait([telling])  # unlike awaiting it, this does not take a cancel of ours for its own


async def _tell(settings: PostgresConfig, pid: int, log: structlog.typing.FilteringBoundLogger) -> None:
    told: set[tuple[str, int]] = set()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            async with await connect_again(settings) as other:
                found = await rows(other, _BLOCKERS, [pid])
        except (psycopg.Error, SourceUnavailableError):
            continue
        for lock, blocker, user, application in found:
            if (lock, blocker) not in told:
                told.add((lock, blocker))
                log.warning("waiting for a lock", on=lock, held_by=blocker, user=user, application=application)
