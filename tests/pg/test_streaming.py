"""Transactions streamed while they are open, on a real server: exactly what the default protocol gives, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.errors import SourceError
from cdcsync.model import ABSENT, Begin, Change, Commit, LogicalMessage, Progress
from cdcsync.wal.catalog import rows, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.options import VERSION_14
from cdcsync.wal.session import Event
from cdcsync.wal.slot import create_slot
from cdcsync.wal.streamed import MEMORY
from cdcsync.wal.tuples import split_tuple
from tests.pg.reading import TABLE, Reader, Setup, reading, set_up
from tests.polling import eventually_async
from tests.servers import private_server

EAGER = "-c logical_decoding_work_mem=64kB"
"""The least there is: whatever is longer is streamed."""


@pytest.fixture(autouse=True)
async def can_stream(db: Setup) -> None:
    """Servers stream from 14 on."""
    if server_version(db.connection) < VERSION_14:
        pytest.skip("streaming came with PostgreSQL 14")


@asynccontextmanager
async def both(db: Setup, dsn: str | None = None) -> AsyncIterator[tuple[Reader, Reader]]:
    """Read the database in both modes at once, each by a slot of its own; the first reader streams."""
    other = replace(db, identity=await create_slot(db.dsn, f"{db.slot}_b"))
    eager = make_conninfo(dsn or db.dsn, options=EAGER)
    async with reading(db, dsn=eager, streaming=True) as streamed, reading(other, dsn=eager) as plain:
        yield streamed, plain


async def agree(db: Setup, streamed: Reader, plain: Reader) -> Sequence[Event]:
    """Wait until both have read everything; they must have got the same, which is returned."""
    await db.execute("INSERT INTO t VALUES (-1) ON CONFLICT (id) DO UPDATE SET v = t.v")
    tip = await db.tip()
    for reader in (streamed, plain):

        def there(reader: Reader = reader) -> bool:
            reader.source.request_progress()
            return reader.source.received_lsn >= tip

        await eventually_async(there, timeout=60)
    found = [told(reader) for reader in (streamed, plain)]
    assert found[0] == found[1]
    return found[0]


def told(reader: Reader) -> list[Event]:
    """Return what a reader got, without progress and without transactions that are empty: 13 and 14 send those too."""
    found: list[Event] = []
    for event in reader.events:
        if isinstance(event, Commit) and found and isinstance(found[-1], Begin):
            found.pop()
        elif not isinstance(event, Progress):
            found.append(event)
    return found


async def streamed_transactions(db: Setup) -> int:
    """Tell how many transactions the server has streamed to the slot."""
    ((count,),) = await rows(
        db.connection, "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = %s", [db.slot]
    )
    return int(count)


async def test_savepoints_that_are_rolled_back_alone(db: Setup) -> None:
    """Each part larger than the server's memory: what was rolled back is dropped, and nothing else is."""
    part = "INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series({}) i;"
    async with both(db) as (streamed, plain):
        await db.execute(
            f"""
            BEGIN;
            {part.format("1, 4000")}
            SAVEPOINT s;
            {part.format("4001, 8000")}
            ROLLBACK TO s;
            {part.format("8001, 12000")}
            COMMIT;
            BEGIN;
            {part.format("20001, 22000")}
            SAVEPOINT outer_one;
            {part.format("22001, 24000")}
            SAVEPOINT inner_one;
            {part.format("24001, 26000")}
            RELEASE inner_one;
            ROLLBACK TO outer_one;
            {part.format("26001, 28000")}
            COMMIT;
            """
        )
        await agree(db, streamed, plain)
        await eventually_async(lambda: at_least(db, 2))
    expected = [*range(1, 4001), *range(8001, 12001), *range(20001, 22001), *range(26001, 28001), -1]
    assert streamed.keys == [b"%d" % number for number in expected]


async def at_least(db: Setup, count: int) -> bool:
    """Tell whether the server has counted so many streamed transactions; it does so now and then."""
    return await streamed_transactions(db) >= count


TEN_THOUSAND = """
    DO $$ BEGIN
        FOR i IN 1..10000 LOOP
            BEGIN
                INSERT INTO t VALUES (i, repeat('x', 20));
                IF i % 2 = 0 THEN RAISE EXCEPTION 'undo'; END IF;
            EXCEPTION WHEN raise_exception THEN NULL;
            END;
        END LOOP;
    END $$
"""


async def test_ten_thousand_subtransactions_every_second_rolled_back(db: Setup) -> None:
    """EXCEPTION blocks of plpgsql are subtransactions."""
    async with both(db) as (streamed, plain):
        await db.execute(TEN_THOUSAND)
        await agree(db, streamed, plain)
        await eventually_async(lambda: at_least(db, 1))
    assert streamed.keys == [b"%d" % number for number in range(1, 10001, 2)] + [b"-1"]


async def test_nested_savepoints(db: Setup) -> None:
    """Savepoints in savepoints, rolled back at every level, beside those that are kept."""
    depth = 60
    down = "".join(
        f"SAVEPOINT s{level}; INSERT INTO t SELECT {level} * 1000 + i, repeat('x', 30) FROM generate_series(1, 50) i;"
        for level in range(depth)
    )
    async with both(db) as (streamed, plain):
        await db.execute(
            f"BEGIN; {down} ROLLBACK TO s40; INSERT INTO t VALUES (999001); RELEASE s30; ROLLBACK TO s20;"
            " INSERT INTO t SELECT 999100 + i, repeat('y', 30) FROM generate_series(1, 500) i; COMMIT"
        )
        await agree(db, streamed, plain)
    kept = [level * 1000 + number for level in range(20) for number in range(1, 51)]
    assert streamed.keys == [b"%d" % number for number in [*kept, *range(999101, 999601), -1]]


async def test_transactions_interleave(db: Setup) -> None:
    """Two large open transactions, ordinary ones between their parts, and commits in the other order."""
    async with await connect(db.dsn) as other, both(db) as (streamed, plain):
        await db.execute("BEGIN")
        await other.execute("BEGIN")
        for part in range(5):
            await insert(db.connection, 10_000 + part * 1000)
            await insert(other, 20_000 + part * 1000)
            async with await connect(db.dsn) as third:
                await third.execute(b"INSERT INTO t VALUES (%d)" % part)
        await other.execute("COMMIT")
        await db.execute("COMMIT")
        await agree(db, streamed, plain)
        await eventually_async(lambda: at_least(db, 2))
    large = [key for key in streamed.keys if isinstance(key, bytes) and int(key) >= 10_000]
    assert [int(key) // 10_000 for key in large] == [2] * 5000 + [1] * 5000


async def insert(connection: Connection, start: int) -> None:
    """Insert a thousand rows."""
    await connection.execute(b"INSERT INTO t SELECT %d + i, repeat('x', 60) FROM generate_series(0, 999) i" % start)


async def test_all_shapes_of_changes(db: Setup) -> None:
    """Updates, deletes, key changes, unchanged TOAST values, DDL, TRUNCATE and empty transactions."""
    await db.execute("CREATE TABLE unpublished (n int)")
    async with both(db) as (streamed, plain):
        await db.execute(
            """
            BEGIN;
            INSERT INTO t SELECT i, repeat('x', 50) FROM generate_series(1, 2000) i;
            INSERT INTO t SELECT 5000 + i, (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 400) j)
                FROM generate_series(1, 20) i;
            UPDATE t SET w = 'y' WHERE id > 5000;
            UPDATE t SET id = id + 10000 WHERE id <= 1000;
            ALTER TABLE t ADD n int DEFAULT 7;
            INSERT INTO t SELECT 30000 + i, repeat('x', 50) FROM generate_series(1, 2000) i;
            SAVEPOINT s;
            ALTER TABLE t DROP n;
            DELETE FROM t WHERE id <= 2000;
            INSERT INTO t SELECT 40000 + i, repeat('x', 50) FROM generate_series(1, 2000) i;
            ROLLBACK TO s;
            UPDATE t SET n = 8;
            TRUNCATE t;
            INSERT INTO t VALUES (1);
            COMMIT;
            BEGIN; INSERT INTO unpublished SELECT generate_series(1, 5000); COMMIT;
            BEGIN; SAVEPOINT s; INSERT INTO t SELECT 100 + i FROM generate_series(1, 5000) i; ROLLBACK TO s; COMMIT;
            """
        )
        events = await agree(db, streamed, plain)
        await eventually_async(lambda: at_least(db, 2))
    changes = [event for event in events if isinstance(event, Change)]
    toast = [change for change in changes if change.new is not None and ABSENT in split_tuple(change.new)]
    assert len(toast) == 20 * 2
    assert {len(change.relation.columns) for change in changes} == {3, 4}


async def test_a_full_rollback_gives_nothing_and_lets_the_slot_move(db: Setup) -> None:
    """100,000 rows that are rolled back: no event, no file left, and the position goes beyond them."""
    async with both(db) as (streamed, plain):
        await db.execute("BEGIN; INSERT INTO t SELECT i FROM generate_series(1, 100000) i")
        await eventually_async(lambda: open_transactions(streamed) == 1)
        await db.execute("ROLLBACK")
        events = await agree(db, streamed, plain)
        assert open_transactions(streamed) == 0
        tip = await db.tip()
        streamed.source.request_progress()
        await eventually_async(lambda: confirmed_beyond(db, tip - 1000))
    assert sum(isinstance(event, Change) for event in events) == 1


def open_transactions(reader: Reader) -> int:
    """Tell how many streamed transactions are open."""
    session = reader.source._session
    return len(session._streamed or ()) if session is not None else 0


async def confirmed_beyond(db: Setup, lsn: int) -> bool:
    """Tell whether the server holds ``lsn`` as confirmed."""
    return await db.confirmed() >= lsn


async def test_positions_confirmed_beyond_an_open_transaction_lose_nothing(db: Setup) -> None:
    """After a reconnection in the middle of it, a transaction comes again from its beginning, and comes whole."""
    async with await connect(db.dsn) as other, both(db) as (streamed, plain):
        await db.execute("BEGIN")
        await insert(db.connection, 10_000)
        await eventually_async(lambda: open_transactions(streamed) == 1)
        await other.execute("INSERT INTO t VALUES (1)")
        await other.execute("CHECKPOINT")
        await streamed.commits_reach(1)
        confirmed = streamed.commits[0].end_lsn
        await eventually_async(lambda: confirmed_beyond(db, confirmed))
        await insert(db.connection, 11_000)
        tip = await db.tip()
        streamed.source.request_progress()
        await eventually_async(lambda: confirmed_beyond(db, tip - 100_000))
        await db_terminate(other, db.slot)
        await eventually_async(lambda: streamed.connections == 2)
        await insert(db.connection, 12_000)
        await db.execute("COMMIT")
        await agree(db, streamed, plain)
    assert streamed.keys == [b"1", *(b"%d" % number for number in range(10_000, 13_000)), b"-1"]


async def db_terminate(connection: Connection, slot: str) -> None:
    """End the walsender of a slot, from a connection that is not in a transaction."""
    await rows(
        connection, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [slot]
    )


async def test_modes_may_change_between_starts(db: Setup) -> None:
    """A source that starts in the other mode goes on where the first one stopped, in the middle of a transaction."""
    eager = make_conninfo(db.dsn, options=EAGER)
    async with reading(db, dsn=eager, streaming=True, confirms=False) as first:
        await insert(db.connection, 1000)
        await insert(db.connection, 3000)
        await first.commits_reach(2)
    async with reading(db, dsn=eager, start=first.commits[0].end_lsn, confirms=False) as second:
        await second.commits_reach(1)
    assert second.commits == first.commits[1:]
    assert second.changes == first.changes[1000:]
    async with reading(db, dsn=eager, start=second.commits[0].commit_lsn, streaming=True) as third:
        await third.commits_reach(1)
    assert third.changes == second.changes


async def test_logical_messages_within_streamed_transactions(db: Setup) -> None:
    """A transactional one comes with its transaction, in order; the other kind at once."""
    eager = make_conninfo(db.dsn, options=EAGER)
    async with reading(db, dsn=eager, streaming=True, messages=["p"]) as reader:
        await db.execute("BEGIN")
        await insert(db.connection, 1000)
        await db.execute(
            "SELECT pg_logical_emit_message(true, 'p', 'within'), pg_logical_emit_message(false, 'p', 'alone')"
        )
        await insert(db.connection, 2000)
        await eventually_async(lambda: any(isinstance(event, LogicalMessage) for event in reader.events))
        assert reader.changes == []
        await db.execute("COMMIT")
        await reader.commits_reach(1)
    found = [event for event in reader.events if isinstance(event, LogicalMessage | Change)]
    places = [number for number, event in enumerate(found) if isinstance(event, LogicalMessage)]
    assert places == [0, 1001]
    assert [(m.content, m.transactional) for m in found if isinstance(m, LogicalMessage)] == [
        (b"alone", False),
        (b"within", True),
    ]


async def test_a_pause_holds_a_replay(db: Setup) -> None:
    """A consumer that pauses itself gets a large streamed transaction in pieces, each when it asks for it."""
    pieces: list[int] = []
    eager = make_conninfo(db.dsn, options=EAGER + " -c wal_sender_timeout=1s")
    async with reading(db, dsn=eager, streaming=True) as reader:
        take = reader.take

        def take_and_pause(events: list[Event]) -> None:
            take(events)
            pieces.append(len(events))
            reader.source.pause()

        reader.source._sink = take_and_pause
        await db.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 10000) i")

        async def nudged() -> bool:
            await asyncio.sleep(0.25)  # slower than the server's patience with a client that says nothing
            reader.source.resume()
            return len(reader.commits) == 1

        await eventually_async(nudged)
        assert reader.connections == 1
    assert len(reader.changes) == 10000
    assert max(pieces) <= 2000


async def test_large_transactions_go_to_a_file_without_a_name(db: Setup, tmp_path: Path) -> None:
    """Beyond the bound for memory the rows are on disk, in the given directory, and a crash would leave nothing."""
    reader = Reader(make_conninfo(db.dsn, options=EAGER), db.slot, options={"streaming": True})
    reader.source._spill_directory = tmp_path
    task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
    size = MEMORY // 200_000
    await db.execute("BEGIN")
    await db.execute(f"INSERT INTO t SELECT i, repeat('x', 100000) FROM generate_series(1, {size * 3}) i")
    ours = Path("/proc/self/fd")

    await eventually_async(lambda: any(str(tmp_path) in target for target in targets(ours)))
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    await db.execute("COMMIT")
    await reader.commits_reach(1)
    assert not any(str(tmp_path) in target for target in targets(ours))
    await reader.source.stop()
    await task
    assert reader.keys == [b"%d" % number for number in range(1, size * 3 + 1)]


def targets(descriptors: Path) -> list[str]:
    """List what this process has open."""
    found = []
    for path in descriptors.iterdir():
        try:
            found.append(str(path.readlink()))
        except OSError:
            continue
    return found


async def test_a_server_that_streams_everything_at_once(db: Setup) -> None:
    """With each change in a segment of its own, nothing is lost in between."""
    if server_version(db.connection) < 160000:
        pytest.skip("the setting came with PostgreSQL 16")
    other = replace(db, identity=await create_slot(db.dsn, f"{db.slot}_b"))
    immediate = make_conninfo(db.dsn, options="-c debug_logical_replication_streaming=immediate")
    async with reading(db, dsn=immediate, streaming=True) as streamed, reading(other) as plain:
        await db.execute(
            """
            BEGIN;
            INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2); SAVEPOINT b; INSERT INTO t VALUES (3);
            ROLLBACK TO b; INSERT INTO t VALUES (4); RELEASE a; SAVEPOINT c; UPDATE t SET id = id + 10; ROLLBACK TO c;
            DELETE FROM t WHERE id = 1; COMMIT;
            BEGIN; INSERT INTO t VALUES (5); ROLLBACK;
            INSERT INTO t VALUES (6);
            """
        )
        await agree(db, streamed, plain)
    assert streamed.keys == [b"1", b"2", b"4", b"6", b"-1"]


async def test_prepared_transactions_arrive_at_their_commit(server_directory: Path) -> None:
    """With an ordinary slot a prepared transaction comes when it is committed, in both modes, or not at all."""
    server = private_server(server_directory)
    server.settings |= {"max_prepared_transactions": "5"}
    with server:
        async with await connect(server.dsn()) as connection:
            db = await set_up(server.dsn(), connection, TABLE)
            async with both(db) as (streamed, plain):
                for name, start, count in (("kept", 1000, 3000), ("small", 5000, 3), ("dropped", 6000, 3000)):
                    await db.execute(
                        f"BEGIN; INSERT INTO t SELECT {start} + i, repeat('x', 50) FROM generate_series(1, {count}) i;"
                        f" PREPARE TRANSACTION '{name}'"
                    )
                await db.execute("INSERT INTO t VALUES (1)")
                await streamed.commits_reach(1)
                assert streamed.keys == [b"1"]
                await db.execute("ROLLBACK PREPARED 'dropped'")
                await db.execute("COMMIT PREPARED 'small'")
                await db.execute("COMMIT PREPARED 'kept'")
                await agree(db, streamed, plain)
                assert open_transactions(streamed) == 0
    expected = [1, *range(5001, 5004), *range(1001, 4001), -1]
    assert streamed.keys == [b"%d" % number for number in expected]


async def test_the_stream_leaves_out_what_has_an_origin(db: Setup) -> None:
    """With origin = "none", rows that were replicated into this database from elsewhere do not come."""
    if server_version(db.connection) < 160000:
        reader = Reader(db.dsn, db.slot, options={"origin": "none"})
        with pytest.raises(SourceError, match="needs PostgreSQL 16"):
            await asyncio.wait_for(reader.source.run(db.start, db.identity), 20)
        return
    origin = f"o_{db.slot}"
    await rows(db.connection, "SELECT pg_replication_origin_create(%s)", [origin])
    try:
        async with reading(db, origin="none", confirms=False) as reader, await connect(db.dsn) as other:
            await rows(other, "SELECT pg_replication_origin_session_setup(%s)", [origin])
            await other.execute("INSERT INTO t VALUES (1)")
            await db.execute("INSERT INTO t VALUES (2)")
            await reader.commits_reach(1)
        assert reader.keys == [b"2"]
        async with reading(db) as reader:
            await reader.commits_reach(2)
        assert reader.keys == [b"1", b"2"]
    finally:
        await rows(db.connection, "SELECT pg_replication_origin_drop(%s)", [origin])
