"""A copy while others write, truncate, and commit without being visible."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.wal.snapshot import Backfill
from tests.pg.copying import LOG, Copy, SlotStream, describe, execute
from tests.polling import eventually, eventually_async

STATEMENTS = [
    "UPDATE t SET version = nextval('version'), small = small + 1 WHERE id = {key}",
    "UPDATE t SET version = nextval('version'), small = small + 1 WHERE id = {key}",
    "UPDATE t SET version = nextval('version'), big = random_text() WHERE id = {key}",
    "DELETE FROM t WHERE id = {key}",
    "INSERT INTO t VALUES ({key}, nextval('version'), 0, random_text()) ON CONFLICT (id) DO NOTHING",
]


class Writers:
    """Sessions that write at random to a table ``t (id, version, small, big)`` until they are told to stop."""

    def __init__(self, dsn: str, seed: int) -> None:
        self.dsn = dsn
        self.random = random.Random(seed)
        self.stopping = False

    async def write(self) -> None:
        """Run one session: inserts, updates with and without the big column, deletes, rollbacks."""
        async with await AsyncConnection.connect(self.dsn) as connection:
            while not self.stopping:
                for _ in range(self.random.randrange(1, 4)):
                    key = self.random.randrange(300)
                    # With the key locked first, the numbers that are drawn for it grow.
                    await connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])
                    await connection.execute(self.random.choice(STATEMENTS).format(key=key))
                await (connection.commit() if self.random.random() < 0.9 else connection.rollback())
                await asyncio.sleep(self.random.random() * 0.005)


@pytest.mark.parametrize("chunk_rows", [7, 1000])
async def test_copy_beside_writers_converges(pg: str, chunk_rows: int) -> None:
    """Under concurrent inserts, updates with unchanged TOAST, deletes and rollbacks the copy becomes the table."""
    execute(
        pg,
        "CREATE SEQUENCE version",
        "CREATE FUNCTION random_text() RETURNS text LANGUAGE sql AS "
        "$$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 120) $$",
        "CREATE TABLE t (id int PRIMARY KEY, version int, small int, big text)",
        "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
        "INSERT INTO t SELECT n, nextval('version'), 0, repeat(md5(n::text), 100) FROM generate_series(0, 299, 2) n",
    )
    backfill = Backfill("t", await describe(pg, "t"), ["id"], chunk_rows=chunk_rows, log=LOG)
    stream = await SlotStream.open(pg)
    copy = Copy(pg, backfill, stream, version=1)
    writers = Writers(pg, seed=random.randrange(1 << 30))
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(retrying(writers.write))
        async with copy.streaming():
            await eventually_async(lambda: len(copy.newest) > 10)
            await copy.run()
            writers.stopping = True
        writers.stopping = True
    await copy.deliver()
    await stream.close()
    table = {str(row[0]): [None if v is None else v.encode() for v in row] for row in execute(
        pg, "SELECT id::text, version::text, small::text, big FROM t"
    )}  # fmt: skip
    assert copy.rows == table


async def retrying(write: Callable[[], Any]) -> None:
    """Start a writer again after a deadlock."""
    while True:
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            await write()
            return


async def test_truncate_during_a_chunk(pg: str) -> None:
    """Rows that were read before a TRUNCATE and not applied yet are not applied after it."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 5)")
    stream = await SlotStream.open(pg)
    copy = Copy(pg, Backfill("t", await describe(pg, "t"), ["id"], log=LOG), stream)
    original = copy.reached
    truncated = False

    async def reached(lsn: int) -> None:
        nonlocal truncated
        if not truncated:
            truncated = True
            await asyncio.to_thread(execute, pg, "TRUNCATE t", "INSERT INTO t VALUES (9)")
            await eventually_async(lambda: "9" in copy.rows)
        await original(lsn)

    copy.reached = reached  # type: ignore[method-assign] # the hook of this test
    async with copy.streaming():
        await copy.run()
    await stream.close()
    assert list(copy.rows) == ["9"]


@pytest.fixture
def stuck_server(own_pg_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Give a server with a table of 50 rows, whose commits wait for a standby that does not exist."""
    execute(
        own_pg_server.dsn(),
        "CREATE TABLE t (id int PRIMARY KEY, version int)",
        "INSERT INTO t SELECT n, 1 FROM generate_series(1, 50) n",
    )
    return own_pg_server


def hold_commits(server: EmbeddedPostgres, *, hold: bool) -> None:
    """Make commits wait for a standby, or let them go."""
    server.settings["synchronous_standby_names"] = "nobody" if hold else ""
    server.reload()
    wanted = [("nobody" if hold else "",)]
    eventually(lambda: execute(server.dsn(), "SHOW synchronous_standby_names") == wanted)


@pytest.mark.parametrize("when", ["before the run", "before a window", "in a window"])
async def test_commit_that_is_streamed_before_it_is_visible(stuck_server: EmbeddedPostgres, when: str) -> None:
    """An update held invisible by a missing standby is delivered first; the older row that SELECT shows never wins."""
    dsn = stuck_server.dsn()
    stream = await SlotStream.open(dsn)
    copy = Copy(dsn, Backfill("t", await describe(dsn, "t"), ["id"], chunk_rows=10, log=LOG), stream, version=1)
    original = copy.reached
    updates: list[asyncio.Task[Any]] = []

    async def bump() -> None:
        async with await AsyncConnection.connect(dsn) as connection:
            await connection.execute("UPDATE t SET version = 2 WHERE id = 15")

    async def update() -> None:
        updates.append(asyncio.create_task(bump()))
        await eventually_async(lambda: copy.newest.get("15") == 2)
        assert execute(dsn, "SELECT version FROM t WHERE id = 15") == [(1,)], "the test's premise: it is not visible"
        asyncio.get_running_loop().call_later(0.5, release)

    def release() -> None:
        updates.append(asyncio.create_task(asyncio.to_thread(hold_commits, stuck_server, hold=False)))

    async def reached(lsn: int) -> None:
        if when == "in a window" and copy.chunks == 2 and not updates:
            await update()
        await original(lsn)

    async def before_chunk(number: int) -> None:
        if when == "before a window" and number == 2:
            await update()

    copy.reached = reached  # type: ignore[method-assign] # the hook of this test
    copy.before_chunk = before_chunk
    hold_commits(stuck_server, hold=True)
    async with copy.streaming():
        if when == "before the run":
            await update()
            copy.backfill._window = type(copy.backfill._window)()  # what another process was told is not known here
        await copy.run()
    await asyncio.gather(*updates)
    await stream.close()
    assert copy.rows["15"] == [b"15", b"2"]
    assert len(copy.rows) == 50
