"""How a copy begins beside what is going on: writers that were there before it, publications of the user's, locks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdcsync.config import MapConfig
from cdcsync.copies import copy_condition
from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.entries import CopyState
from cdcsync.wal.catalog import copy_key, load_relation
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.snapshot import Backfill
from tests.pg.copying import LOG, Copy, SlotStream, copy_of, describe, execute
from tests.pg.standby import caught_up, standby_of
from tests.polling import eventually_async
from tests.servers import needs


@pytest.fixture
def prepared_server(own_pg_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """Give a server that takes prepared transactions."""
    own_pg_server.settings["max_prepared_transactions"] = "5"
    own_pg_server.restart()
    return own_pg_server


async def test_a_standby_that_is_behind_the_stream_is_not_read(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """With several hosts a copy may be led to another server than the stream: no row goes back to what is there."""
    dsn = own_pg_server.dsn()
    execute(dsn, "CREATE TABLE t (id int PRIMARY KEY, version int)", "INSERT INTO t VALUES (1, 1)")
    stream = await SlotStream.open(dsn, "FOR TABLE t")
    with standby_of(own_pg_server, tmp_path) as standby:
        caught_up(own_pg_server, standby)
        execute(standby.dsn(), "SELECT pg_wal_replay_pause()")
        execute(dsn, "UPDATE t SET version = 2")
        copy = Copy(dsn, Backfill("t", await describe(dsn, "t"), ["id"], log=LOG), stream, version=1)
        await copy.deliver()
        copy.backfill = Backfill("t", await describe(dsn, "t"), ["id"], log=LOG)  # it knows nothing of that change
        copy.dsn = standby.dsn()
        async with copy.streaming():
            task = asyncio.create_task(copy.run())
            await eventually_async(lambda: copy.chunks > 2 or task.done())
            assert copy.emitted == []
            execute(standby.dsn(), "SELECT pg_wal_replay_resume()")
            await task
        assert copy.rows == {"1": [b"1", b"2"]}
    await stream.close()


@pytest.mark.parametrize("ending", ["COMMIT", "PREPARE"])
async def test_rows_written_before_their_table_was_published(prepared_server: EmbeddedPostgres, ending: str) -> None:
    """A transaction that is open while its table is published commits rows the stream leaves out: the copy has them."""
    dsn = prepared_server.dsn()
    execute(
        dsn,
        "CREATE TABLE t (id int PRIMARY KEY, note text)",
        "CREATE TABLE other (id int PRIMARY KEY)",
        "INSERT INTO t SELECT n, 'first' FROM generate_series(10, 15) n",
    )
    stream = await SlotStream.open(dsn, "FOR TABLE other")
    with psycopg.connect(dsn) as writer, psycopg.connect(dsn) as elsewhere:
        writer.execute("INSERT INTO t VALUES (1, 'unseen')")
        elsewhere.execute("INSERT INTO other VALUES (1)")  # of another table: nobody waits for it
        await asyncio.to_thread(execute, dsn, "ALTER PUBLICATION p ADD TABLE t")
        copy = Copy(dsn, Backfill("t", await describe(dsn, "t"), ["id"], log=LOG), stream)
        async with copy.streaming():
            task = asyncio.create_task(copy.run())
            await eventually_async(lambda: copy.backfill.waiting)
            assert f"process {writer.info.backend_pid}" in str(copy.backfill.waiting)
            assert str(elsewhere.info.backend_pid) not in str(copy.backfill.waiting)
            if ending == "PREPARE":
                writer.execute("PREPARE TRANSACTION 'for later'")
                # The copy asks again within a moment, and goes on waiting for what has no process any more.
                waits = "SELECT 1 FROM pg_locks WHERE pid IS NULL AND relation = 't'::regclass"
                await eventually_async(lambda: asyncio.to_thread(execute, dsn, waits))
                assert not task.done()
                assert copy.emitted == []
                await asyncio.to_thread(execute, dsn, "COMMIT PREPARED 'for later'")
            else:
                writer.commit()
            await task
            assert copy.backfill.waiting is None
        elsewhere.rollback()
    streamed = await stream.poll()
    await stream.close()
    assert streamed == []
    assert copy.emitted == ["1", *map(str, range(10, 16))], "the row came with the copy: the stream left it out"


async def test_a_users_publication_limits_the_copy_too(pg: str) -> None:
    """Rows that its row filter leaves out, and columns that are not in its list, are not read, nor unasked ones."""
    needs(pg, 15)
    execute(
        pg,
        "CREATE TABLE t (id int PRIMARY KEY, name text, secret text)",
        "INSERT INTO t SELECT n, 'n' || n, 'secret' FROM generate_series(1, 20) n",
        "CREATE PUBLICATION theirs FOR TABLE t (id, name) WHERE (id <= 10)",
    )
    given = {"name": "t", "table": "t", "to": "crm.T", "key": {"Key": "id"}, "fields": {"Name": "name"}}
    mapping = MapConfig.model_validate({**given, "where": "id > 2 -- not the first"})

    async def copied(entry: CopyState | None) -> list[str]:
        async with await connect(pg) as connection:
            relation = await load_relation(connection, "public", "t", "theirs")
            where = await copy_condition(connection, "theirs", mapping, entry)
            key = await copy_key(connection, relation)
        assert [column.name for column in relation.columns] == ["id", "name"]
        copy = Copy(pg, Backfill("t", relation, key, where, log=LOG))
        await copy.run()
        return copy.emitted

    asked: dict[str, Any] = {"id": 1, "mapping": "t", "reason": "", "requested": 0.0}
    assert await copied(None) == [str(number) for number in range(3, 11)]
    assert await copied(CopyState(**asked, condition="id % 5 = 0 -- every fifth")) == ["5", "10"]
    assert await copied(CopyState(**asked, keys=("1", "7", "15", "99"))) == ["7"]


async def test_a_copy_takes_no_lock_that_hurts_and_holds_no_snapshot(pg: str) -> None:
    """While it reads it holds ACCESS SHARE locks and nothing more; between two chunks, nothing at all."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 4)")
    copy = await copy_of(pg, "t", "id", chunk_rows=2, where="pg_sleep(0.2) IS NOT NULL")
    pids: list[int] = []
    between: list[Any] = []

    async def connecting() -> Connection:
        connection = await connect(pg)
        pids.append(connection.info.backend_pid)
        return connection

    async def look(_: int) -> None:
        idle = f"SELECT state, backend_xmin FROM pg_stat_activity WHERE pid = {pids[0]}"
        between.append(await asyncio.to_thread(execute, pg, idle))

    copy.connect = connecting  # type: ignore[method-assign] # the hook of this test
    copy.before_chunk = look
    task = asyncio.create_task(copy.run())
    await eventually_async(lambda: pids)
    reading = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pids[0]} AND wait_event = 'PgSleep'"
    await eventually_async(lambda: asyncio.to_thread(execute, pg, reading))
    locks = f"SELECT DISTINCT mode FROM pg_locks WHERE pid = {pids[0]} AND relation IS NOT NULL"
    assert await asyncio.to_thread(execute, pg, locks) == [("AccessShareLock",)]
    await task
    assert len(between) > 1
    assert between == [[("idle", None)]] * len(between)
