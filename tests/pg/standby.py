"""A standby of an embedded server: cloned with pg_basebackup, streaming through a physical slot of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.polling import eventually

PHYSICAL_SLOT = "standby"


@contextmanager
def standby_of(
    primary: EmbeddedPostgres, directory: Path, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """Clone the running ``primary`` into ``directory`` and start the clone as its standby."""
    common = {"hot_standby_feedback": "on", "primary_slot_name": PHYSICAL_SLOT, "wal_receiver_status_interval": "1s"}
    standby = EmbeddedPostgres(directory, settings={**common, **(settings or {})}, binaries=primary.binaries)
    standby._prepare_directory()
    clone = ("-D", standby.data, "-R", "-C", "-S", PHYSICAL_SLOT, "-c", "fast", "-d", primary.dsn())
    standby._run("pg_basebackup", *clone)
    with standby:
        yield standby


def either(primary: EmbeddedPostgres, standby: EmbeddedPostgres, **parameters: str) -> str:
    """Return a connection string that names both servers, the primary first."""
    hosts = [str(conninfo_to_dict(server.dsn())["host"]) for server in (primary, standby)]
    return make_conninfo(primary.dsn(), host=",".join(hosts), port="5432,5432", **parameters)


def caught_up(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Wait until the standby has replayed all that the primary has written."""
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"

        def there() -> bool:
            found = connection.execute(query, row).fetchone()
            return found is not None and bool(found[0])

        eventually(there, what="the standby does not catch up")


def kill(server: EmbeddedPostgres) -> None:
    """End a server without a word to anybody, as a lost machine does."""
    os.kill(server.pid, signal.SIGQUIT)
    eventually(lambda: not server.running, what="the server does not end")
    server.stop()


async def promote(server: EmbeddedPostgres) -> None:
    """Make a standby the primary, on a timeline of its own."""

    def ask() -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")

    await asyncio.to_thread(ask)
