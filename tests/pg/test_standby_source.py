"""Standbys: as the source itself (16 and later), and as what takes over from the source."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
import structlog

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.wal.catalog import load_relation
from cdcsync.wal.chunks import ChunkReader
from cdcsync.wal.connect import connect
from cdcsync.wal.health import diagnose, each_host, examine
from cdcsync.wal.publication import ensure_publication
from cdcsync.wal.slot import create_slot, drop_slot, present_timeline, show_slot
from cdcsync.wal.snapshot import Backfill, Cursor
from tests.pg.reading import TABLE, Reader, Setup, reading, set_up
from tests.pg.standby import PHYSICAL_SLOT, caught_up, either, kill, promote, standby_of
from tests.polling import eventually_async
from tests.servers import server_home


@pytest.fixture
def standby(own_pg_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Give a standby of the test's own server; the table ``t`` is published there."""
    with psycopg.connect(own_pg_server.dsn(), autocommit=True) as connection:
        connection.execute(TABLE.encode())
        connection.execute("CREATE PUBLICATION cdcsync FOR TABLE t WITH (publish_via_partition_root = true)")
    with server_home() as directory, standby_of(own_pg_server, directory) as server:
        yield server


async def slot_on(standby: EmbeddedPostgres, primary: EmbeddedPostgres, name: str = "s") -> Setup:
    """Make a slot on the standby, with the primary's help."""
    made = asyncio.ensure_future(create_slot(standby.dsn(), name))
    async with await connect(primary.dsn()) as connection:
        while not made.done():
            await connection.execute("SELECT pg_log_standby_snapshot()")
            await asyncio.wait([made], timeout=0.1)
    return Setup(standby.dsn(), await connect(standby.dsn()), await made)


async def test_a_slot_on_a_standby_waits_for_the_primarys_word(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """On a quiet primary the creation ends after its deadline, and says which statement helps; with it, it succeeds."""
    caught_up(own_pg_server, standby)
    with pytest.raises(SourceUnavailableError, match="primary's word") as caught:
        await create_slot(standby.dsn(), "s", deadline=0.5)
    assert "pg_log_standby_snapshot" in caught.value.hint
    db = await slot_on(standby, own_pg_server)
    assert (await show_slot(db.connection, "s")).exists
    await drop_slot(db.connection, "s")
    await db.connection.close()


async def test_a_standby_is_read_and_its_promotion_changes_nothing(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """What the primary commits comes from the standby; once promoted, what it commits itself comes, and nothing twice.

    The stream goes on over the promotion, on the new timeline: a later connection takes that for its own history.
    """
    db = await slot_on(standby, own_pg_server)
    async with await connect(own_pg_server.dsn()) as primary, reading(db) as reader:
        await primary.execute("INSERT INTO t VALUES (1)")
        await reader.commits_reach(1)
        assert reader.source.timeline == 1
        await promote(standby)
        await db.execute("INSERT INTO t VALUES (2)")
        await reader.commits_reach(2)
        await eventually_async(lambda: reader.source.timeline == 2)
        await db.terminate()
        await eventually_async(lambda: reader.connections == 2)
        await db.execute("INSERT INTO t VALUES (3)")
        await reader.commits_reach(3)
    assert reader.keys == [b"1", b"2", b"3"]
    await db.connection.close()


async def test_a_chunk_read_on_a_standby_knows_its_place(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """Rows are read with the replayed position, and the stream reaches it: a copy from a standby can be ordered."""
    db = await slot_on(standby, own_pg_server)
    async with await connect(own_pg_server.dsn()) as primary, await connect(standby.dsn()) as copying:
        await primary.execute("INSERT INTO t SELECT i FROM generate_series(1, 10) i")
        caught_up(own_pg_server, standby)
        relation = await load_relation(copying, "public", "t")
        reader = await ChunkReader.open(copying, relation)
        chunk = await reader.read(relation, ["id"], None, 100)
        assert len(chunk.rows) == 10
        async with reading(db) as stream:
            await eventually_async(lambda: stream.source.received_lsn >= chunk.upto_lsn)
            assert len(stream.changes) == 10
    await db.connection.close()


async def test_a_publication_cannot_be_made_on_a_standby(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """A standby's catalogs are its primary's: the publication has to be there already, and is left as it is."""
    async with await connect(own_pg_server.dsn()) as primary, await connect(standby.dsn()) as connection:
        assert await present_timeline(primary) == 1
        assert await present_timeline(connection) is None
        await ensure_publication(connection, "cdcsync", {"public.t": None}, create=False)
        with pytest.raises(SourceError, match="no publication"):
            await ensure_publication(connection, "another", {"public.t": None}, create=False)


async def test_a_conflict_with_recovery_is_final(own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Without hot_standby_feedback the primary's VACUUM takes catalog rows that the slot needs: cause and remedy."""
    standby.settings |= {"hot_standby_feedback": "off"}
    standby.restart()
    db = await slot_on(standby, own_pg_server)
    reader = Reader(db.dsn, db.slot)
    task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
    await eventually_async(lambda: reader.source.connected)
    async with await connect(own_pg_server.dsn()) as primary:
        while not task.done():  # the physical slot lets go of old rows only when it has heard of the changed setting
            await primary.execute("CREATE TABLE gone (id int)")
            await primary.execute("DROP TABLE gone")
            await primary.execute("VACUUM pg_class")
            await asyncio.wait([task], timeout=0.2)
    with pytest.raises(SourceError, match="catalog rows") as caught:
        await asyncio.wait_for(task, 30)
    assert "hot_standby_feedback" in caught.value.hint
    assert "slot reset" in caught.value.hint
    with pytest.raises(SourceError, match="catalog rows"):
        await asyncio.wait_for(Reader(db.dsn, db.slot).source.run(db.start, db.identity), 30)
    await db.connection.close()


async def test_a_lowered_wal_level_on_the_primary_is_final(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """The standby's slot is invalidated when the primary no longer writes what decoding needs."""
    db = await slot_on(standby, own_pg_server)
    reader = Reader(db.dsn, db.slot)
    task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
    await eventually_async(lambda: reader.source.connected)
    own_pg_server.settings["wal_level"] = "replica"
    await asyncio.to_thread(own_pg_server.restart)
    with pytest.raises(SourceError, match="wal_level was lowered") as caught:
        await asyncio.wait_for(task, 30)
    assert "wal_level = 'logical'" in caught.value.hint
    await db.connection.close()
    with pytest.raises(SourceError, match="wal_level"):
        await create_slot(standby.dsn(), "another")


@pytest.fixture
def failover_pair(own_pg_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Give a standby that gets copies of the primary's failover slots, and that the primary waits for."""
    if own_pg_server.version < 17:
        pytest.skip("failover slots came with PostgreSQL 17 (CDCSYNC_TEST_PG=18)")
    own_pg_server.settings["synchronized_standby_slots"] = PHYSICAL_SLOT
    with server_home() as directory, standby_of(own_pg_server, directory, {"sync_replication_slots": "on"}) as server:
        own_pg_server.reload()
        yield server


async def test_a_failover_loses_and_doubles_nothing(
    own_pg_server: EmbeddedPostgres, failover_pair: EmbeddedPostgres
) -> None:
    """The primary is killed and its standby promoted: the source finds it by its list of hosts, and goes on.

    The slot's copy on the standby counts only once it is no longer temporary, which takes an acknowledgement.
    """
    both = either(own_pg_server, failover_pair, target_session_attrs="read-write")
    async with await connect(own_pg_server.dsn()) as connection:
        db = await set_up(own_pg_server.dsn(), connection)
        async with reading(db, dsn=both) as reader:
            await db.execute("INSERT INTO t VALUES (1)")
            await reader.commits_reach(1)

            async def copied() -> bool:
                health = await examine(connection, db.slot, each_host(both))
                assert health.info.failover
                assert health.synchronized == (PHYSICAL_SLOT,)
                assert len(health.copies) == 1
                await db.execute("INSERT INTO t VALUES ((SELECT max(id) + 1 FROM t))")
                return health.copies[0].ready

            await eventually_async(copied, timeout=60, what="the slot is not copied for good")
            ((last,),) = await (await connection.execute("SELECT max(id) FROM t")).fetchall()
            await reader.commits_reach(last)
            kill(own_pg_server)
            await promote(failover_pair)
            async with await connect(failover_pair.dsn()) as promoted:
                await promoted.execute(f"INSERT INTO t VALUES ({last + 1})".encode())
            await reader.commits_reach(last + 1)
            assert reader.source.timeline == 2
    assert reader.keys == [b"%d" % number for number in range(1, last + 2)]


async def test_rows_that_are_withheld_for_a_standby_are_an_alarm(
    own_pg_server: EmbeddedPostgres, failover_pair: EmbeddedPostgres
) -> None:
    """A standby of synchronized_standby_slots that is down holds rows back: that is said, and mended by its return."""
    async with await connect(own_pg_server.dsn()) as connection:
        db = await set_up(own_pg_server.dsn(), connection)
        async with reading(db) as reader:
            await db.execute("INSERT INTO t VALUES (1)")
            await reader.commits_reach(1)
            await asyncio.to_thread(failover_pair.stop)
            await db.execute("INSERT INTO t VALUES (2)")
            await eventually_async(lambda: reader.source.last_error, what="nothing is said of withheld rows")
            assert "synchronized_standby_slots" in str(reader.source.last_error)
            assert len(reader.commits) == 1
            notes = diagnose(await examine(connection, db.slot), 1 << 30)
            assert "withheld" in notes[0].text
            await asyncio.to_thread(failover_pair.start)
            await reader.commits_reach(2)
            assert reader.source.last_error is None


async def test_a_failover_that_lost_what_was_received_is_final(
    own_pg_server: EmbeddedPostgres, failover_pair: EmbeddedPostgres
) -> None:
    """Rows that were taken, durable or not, and that the promoted standby never had: the history has to hold them all.

    Were it only asked for what is durable, other rows at the same positions would be taken for those, and be lost.
    """
    both = either(own_pg_server, failover_pair, target_session_attrs="read-write")
    async with await connect(own_pg_server.dsn()) as connection:
        db = await set_up(own_pg_server.dsn(), connection)
        async with reading(db):
            await eventually_async(lambda: _persistent(db, failover_pair), timeout=60, what="the slot is not copied")
        own_pg_server.settings["synchronized_standby_slots"] = ""
        await asyncio.to_thread(own_pg_server.reload)
        await asyncio.to_thread(failover_pair.stop)
        reader = Reader(both, db.slot, confirms=False)
        task = asyncio.ensure_future(reader.source.run(await db.confirmed(), db.identity))
        await eventually_async(lambda: reader.source.connected)
        seen = len(reader.commits)
        await db.execute("INSERT INTO t VALUES (0)")
        await reader.commits_reach(seen + 1)
        await asyncio.to_thread(kill, own_pg_server)
    await asyncio.to_thread(failover_pair.start)
    await promote(failover_pair)
    with pytest.raises(SourceError, match="does not contain ours"):
        await asyncio.wait_for(task, 60)


async def _persistent(db: Setup, standby: EmbeddedPostgres) -> bool:
    """Write something, and say whether the slot's copy would survive."""
    await db.execute("INSERT INTO t VALUES ((SELECT coalesce(max(id), 0) + 1 FROM t))")
    return (await examine(db.connection, db.slot, [standby.dsn()])).copies[0].ready


async def test_a_standbys_snapshot_is_sure_of_its_bounds_only(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """A standby's snapshot lists no running transaction: one that runs is not taken for a part of what was read."""
    async with await psycopg.AsyncConnection.connect(own_pg_server.dsn()) as running:
        ((xid,),) = await (await running.execute("INSERT INTO t VALUES (1) RETURNING xmin::text::int8")).fetchall()
        async with await connect(own_pg_server.dsn()) as primary, await connect(standby.dsn()) as copying:
            await primary.execute("INSERT INTO t VALUES (2)")
            caught_up(own_pg_server, standby)
            relation = await load_relation(copying, "public", "t")
            reader = await ChunkReader.open(copying, relation)
            chunk = await reader.read(relation, ["id"], None, 100)
            assert len(chunk.rows) == 1
            assert not chunk.snapshot.sees(xid)
            await running.commit()
            caught_up(own_pg_server, standby)
            chunk = await reader.read(relation, ["id"], None, 100)
            assert len(chunk.rows) == 2
            assert chunk.snapshot.sees(xid)


async def test_a_copy_from_a_standby_waits_for_the_primarys_writers(
    own_pg_server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """Who wrote before the copy began, and is open on the primary, is waited for: the stream may leave its rows out."""
    rows: list[bytes] = []

    async def at_once(_: int = 0) -> None:
        """Wait for nothing."""

    def emit(some: list[bytes], _: Cursor) -> None:
        rows.extend(some)

    async with await psycopg.AsyncConnection.connect(own_pg_server.dsn()) as running:
        await running.execute("INSERT INTO t VALUES (1)")
        async with await connect(own_pg_server.dsn()) as primary, await connect(standby.dsn()) as connection:
            await primary.execute("INSERT INTO t VALUES (2)")
            caught_up(own_pg_server, standby)
            relation = await load_relation(connection, "public", "t")
        backfill = Backfill("m", relation, ["id"], log=structlog.get_logger())
        copying = asyncio.ensure_future(
            backfill.run(
                lambda: connect(standby.dsn()),
                received=lambda: 0,
                reached=at_once,
                room=at_once,
                emit=emit,
                key_of=repr,
            )
        )
        await eventually_async(lambda: "the primary's" in (backfill.waiting or ""))
        assert not rows
        await running.commit()
        await asyncio.wait_for(copying, 30)
    assert len(rows) == 2
