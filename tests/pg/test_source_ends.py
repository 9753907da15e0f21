"""What ends a source for good, and what a server's shutdown and promotion do to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.errors import SourceError
from cdcsync.wal.catalog import server_version
from cdcsync.wal.connect import connect
from cdcsync.wal.session import Event
from cdcsync.wal.slot import SlotIdentity, advance, create_slot, drop_slot
from tests.pg.reading import Reader, Setup, reading, set_up
from tests.polling import eventually_async


async def refused(
    db: Setup, *, start: int | None = None, expected: SlotIdentity | None = None, touched: int = 0
) -> SourceError:
    """Return the SourceError that ends a source."""
    reader = Reader(db.dsn, db.slot)
    start = db.start if start is None else start
    with pytest.raises(SourceError) as caught:
        await asyncio.wait_for(reader.source.run(start, expected or db.identity, touched), 20)
    assert caught.value.hint
    assert reader.changes == []
    return caught.value


async def test_a_missing_slot_is_final(db: Setup) -> None:
    """Without its slot the stream has a hole."""
    await drop_slot(db.connection, db.slot)
    assert "no slot" in (await refused(db)).message


async def test_a_slot_ahead_of_the_checkpoint_is_final(db: Setup) -> None:
    """Somebody else moved the slot: changes are missing."""
    await db.execute("INSERT INTO t VALUES (1)")
    await advance(db.connection, db.slot, await db.tip())
    assert "ahead of what is durable" in (await refused(db)).message


async def test_a_recreated_slot_is_final(db: Setup) -> None:
    """A new slot of the old name starts later than the old one ended."""
    await drop_slot(db.connection, db.slot)
    await db.execute("INSERT INTO t VALUES (1)")
    await create_slot(db.dsn, db.slot)
    assert "ahead of what is durable" in (await refused(db)).message


async def test_another_cluster_is_final(db: Setup) -> None:
    """The checkpoint belongs to one cluster."""
    stranger = replace(db.identity, system_id="1")
    assert "another cluster" in (await refused(db, expected=stranger)).message


async def test_a_server_that_lost_wal_is_final(db: Setup) -> None:
    """A position beyond the server's WAL was never written there: it is a restored backup."""
    assert "restored from a backup" in (await refused(db, start=1 << 60)).message


def up_to_17(db: Setup) -> None:
    """Skip where a slot survives that its publication was missing."""
    if server_version(db.connection) >= 180000:
        pytest.skip("from PostgreSQL 18 on the slot goes on")


def from_18(db: Setup) -> None:
    """Skip where a slot is stuck for good when its publication was missing."""
    if server_version(db.connection) < 180000:
        pytest.skip("up to PostgreSQL 17 the slot is stuck")


async def test_a_missing_publication_is_final(db: Setup) -> None:
    """The slot will be stuck at the rows that were written without it."""
    up_to_17(db)
    await db.execute("DROP PUBLICATION cdcsync")
    assert "no publication" in (await refused(db)).message


async def test_a_publication_that_goes_while_streaming_is_final(db: Setup) -> None:
    """The server ends the stream, and the slot is stuck."""
    up_to_17(db)
    reader = Reader(db.dsn, db.slot)
    task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
    await eventually_async(lambda: reader.source.connected)
    await db.execute("DROP PUBLICATION cdcsync")
    await db.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(SourceError, match="publication") as caught:
        await asyncio.wait_for(task, 20)
    assert "cdcsync slot reset" in caught.value.hint


async def test_a_publication_made_anew_does_not_mend_the_slot(db: Setup) -> None:
    """Rows written while there was no publication cannot be passed, whatever is there later."""
    up_to_17(db)
    await db.execute("DROP PUBLICATION cdcsync")
    await db.execute("INSERT INTO t VALUES (1)")
    await db.execute("CREATE PUBLICATION cdcsync FOR TABLE t")
    await db.execute("INSERT INTO t VALUES (2)")
    assert "publication" in (await refused(db)).message


async def test_a_publication_that_goes_leaves_a_gap(db: Setup) -> None:
    """The stream goes on without the rows written meanwhile, which is told: also if it was all over before we came."""
    from_18(db)
    async with reading(db) as reader:
        await db.execute("DROP PUBLICATION cdcsync")
        await db.execute("INSERT INTO t VALUES (1)")
        await eventually_async(lambda: reader.gaps, what="the gap is not noticed")
        await db.execute("CREATE PUBLICATION cdcsync FOR TABLE t")
        await db.execute("INSERT INTO t VALUES (2)")
        await eventually_async(lambda: reader.keys == [b"2"], what=f"{reader.keys}")
    start = await db.confirmed()
    await db.execute("DROP PUBLICATION cdcsync")
    await db.execute("INSERT INTO t VALUES (3)")
    await db.execute("CREATE PUBLICATION cdcsync FOR TABLE t")
    await db.execute("INSERT INTO t VALUES (4)")
    async with reading(db, start=start) as reader:
        await eventually_async(lambda: reader.keys == [b"4"], what=f"{reader.keys}")
        assert reader.gaps


async def test_a_missing_publication_is_waited_for(db: Setup) -> None:
    """It is made anew beside the source, which says what it waits for."""
    from_18(db)
    await db.execute("DROP PUBLICATION cdcsync")
    reader = Reader(db.dsn, db.slot)
    task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
    await eventually_async(lambda: "no publication" in (reader.source.last_error or ""))
    await db.execute("CREATE PUBLICATION cdcsync FOR TABLE t")
    await eventually_async(lambda: reader.source.connected)
    await reader.source.stop()
    await asyncio.wait_for(task, 10)


async def test_a_two_phase_slot_is_final(db: Setup) -> None:
    """It would send what is not committed yet."""
    if server_version(db.connection) < 140000:
        pytest.skip("two-phase slots came with PostgreSQL 14")
    await drop_slot(db.connection, db.slot)
    await db.execute(f"SELECT pg_create_logical_replication_slot('{db.slot}', 'pgoutput', false, true)")
    error = await refused(db, start=await db.confirmed())
    assert "before they are committed" in error.message


async def test_another_databases_slot_is_final(db: Setup, pg: str) -> None:
    """Slot names are the whole server's, but a slot reads one database."""
    elsewhere = Setup(make_conninfo(pg, dbname="postgres"), db.connection, db.identity)
    async with await connect(elsewhere.dsn) as connection:
        with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            await connection.execute("CREATE PUBLICATION cdcsync")
    assert "belongs to database" in (await refused(elsewhere)).message


@asynccontextmanager
async def own_setup(server: EmbeddedPostgres) -> AsyncIterator[Setup]:
    """Set up a server of the test's own."""
    connection = await connect(server.dsn())
    try:
        yield await set_up(server.dsn(), connection)
    finally:
        await connection.close()


async def stop_in_time(server: EmbeddedPostgres) -> None:
    """Stop the server fast; raises when that takes over five seconds."""
    await asyncio.to_thread(server.stop, "fast", wait=5)


async def test_a_shutdown_is_not_held_up_by_a_consumer_that_confirms(own_pg_server: EmbeddedPostgres) -> None:
    """Everything is delivered and confirmed, the server stops, and when it is back the stream goes on."""
    async with own_setup(own_pg_server) as db, reading(db) as reader:
        await db.execute("INSERT INTO t SELECT i FROM generate_series(1, 10000) i")
        await stop_in_time(own_pg_server)
        assert len(reader.changes) == 10_000
        await asyncio.to_thread(own_pg_server.start)
        async with await connect(db.dsn) as connection:
            await connection.execute("INSERT INTO t VALUES (0)")
        await reader.commits_reach(2)
    assert len(reader.changes) == 10_001


async def test_a_shutdown_is_not_held_up_by_a_consumer_that_never_confirms(own_pg_server: EmbeddedPostgres) -> None:
    """The connection is let go after a second of the server's asking; what was not confirmed comes again."""
    async with own_setup(own_pg_server) as db, reading(db, confirms=False) as reader:
        await db.execute("INSERT INTO t VALUES (1)")
        await reader.commits_reach(1)
        await stop_in_time(own_pg_server)
        await asyncio.to_thread(own_pg_server.start)
        await reader.commits_reach(2)
    assert reader.keys == [b"1", b"1"]


async def test_a_shutdown_is_not_held_up_by_a_paused_consumer(own_pg_server: EmbeddedPostgres) -> None:
    """A reader that does not read hears nothing of the shutdown, and lets go all the same."""
    async with own_setup(own_pg_server) as db, reading(db) as reader:
        reader.source.pause()
        await db.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) i")
        await stop_in_time(own_pg_server)
        assert reader.changes == []
        await asyncio.to_thread(own_pg_server.start)
        reader.source.resume()
        await reader.commits_reach(1)
    assert len(reader.changes) == 50_000


async def test_a_shutdown_is_not_held_up_by_a_slow_consumer(own_pg_server: EmbeddedPostgres) -> None:
    """A server that stops first sends all it has: it need not wait until that was read, and all comes afterwards."""
    async with own_setup(own_pg_server) as db:
        reader = Reader(db.dsn, db.slot)

        def take_slowly(events: list[Event]) -> None:
            reader.take(events)
            time.sleep(0.05 if len(events) > 10 else 0)

        reader.source._sink = take_slowly
        task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
        await eventually_async(lambda: reader.source.connected)
        await db.execute("INSERT INTO t SELECT i FROM generate_series(1, 100000) i")
        await eventually_async(lambda: reader.changes)
        await stop_in_time(own_pg_server)
        assert not reader.commits
        reader.source._sink = reader.take
        await asyncio.to_thread(own_pg_server.start)
        await reader.commits_reach(1)
        assert len(reader.transaction(0)) == 100_000
        await reader.source.stop()
        await task


async def test_an_invalidated_slot_is_final(own_pg_server: EmbeddedPostgres) -> None:
    """While streaming: the server ends the connection, and the next one sees why."""
    own_pg_server.settings |= {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    own_pg_server.restart()
    async with own_setup(own_pg_server) as db:
        reader = Reader(db.dsn, db.slot, confirms=False)
        task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
        await eventually_async(lambda: reader.source.connected)
        for _ in range(4):
            await db.execute("INSERT INTO t SELECT count(*) FROM t; SELECT pg_switch_wal()")
        await db.execute("CHECKPOINT")
        with pytest.raises(SourceError, match="invalidated") as caught:
            await asyncio.wait_for(task, 20)
    assert "slot reset" in caught.value.hint


async def test_a_promotion_is_followed(own_pg_server: EmbeddedPostgres) -> None:
    """A server that comes back on a later timeline that holds all we read is the same stream."""
    async with own_setup(own_pg_server) as db:
        async with reading(db) as reader:
            await db.execute("INSERT INTO t VALUES (1)")
            await reader.commits_reach(1)
        await promote(own_pg_server)
        async with reading(db, start=reader.commits[0].end_lsn) as again, await connect(db.dsn) as connection:
            await connection.execute("INSERT INTO t VALUES (2)")
            await again.commits_reach(1)
            assert again.source.timeline == 2
    assert again.keys == [b"2"]


async def test_a_promotion_that_lost_what_we_read_is_final(own_pg_server: EmbeddedPostgres) -> None:
    """A later timeline that left ours before our position lacks rows that we sent, durable or not, and has others."""
    async with own_setup(own_pg_server) as db:
        ahead = await db.tip() + (1 << 20)
        await promote(own_pg_server)
        async with await connect(db.dsn) as connection:
            await connection.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 4000000))")
            promoted = Setup(db.dsn, connection, db.identity)
            for error in (await refused(promoted, start=ahead), await refused(promoted, touched=ahead)):
                assert "does not contain ours" in error.message


async def promote(server: EmbeddedPostgres) -> None:
    """Let the server leave its timeline, as a standby that takes over."""
    await asyncio.to_thread(server.stop)
    signal = server.data / "standby.signal"
    signal.touch()
    await asyncio.to_thread(server.start)
    async with await connect(server.dsn()) as connection:
        await connection.execute("SELECT pg_promote()")
