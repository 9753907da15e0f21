"""The source on a real server: what is delivered, what comes again, what is confirmed."""

from __future__ import annotations

import asyncio
import time

import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.model import ABSENT, Begin, Change, ChangeKind, Commit, LogicalMessage, Progress, Text, Truncate
from cdcsync.wal.catalog import load_relation, rows, server_version
from cdcsync.wal.connect import connect
from cdcsync.wal.session import Event
from cdcsync.wal.tuples import split_tuple
from tests.pg.reading import Reader, Setup, reading, set_up
from tests.polling import eventually_async
from tests.proxy import Proxy

INSERT, UPDATE, DELETE = ChangeKind.INSERT, ChangeKind.UPDATE, ChangeKind.DELETE


def values(raw: bytes | None) -> list[Text] | None:
    """Return a tuple's columns."""
    return None if raw is None else split_tuple(raw)


def shape(changes: list[Change]) -> list[tuple[ChangeKind, list[Text] | None, list[Text] | None, bool]]:
    """Return changes as kind, new columns, old columns and whether those are the key's alone."""
    return [(c.kind, values(c.new), values(c.old), c.old_is_key) for c in changes]


async def test_row_changes_under_the_default_identity(db: Setup) -> None:
    """All kinds of changes, with an old key where the key changed, in one whole transaction."""
    async with reading(db) as reader:
        await db.execute("""
            BEGIN;
            INSERT INTO t VALUES (1, 'a', NULL);
            UPDATE t SET v = '' WHERE id = 1;
            UPDATE t SET id = 2 WHERE id = 1;
            DELETE FROM t WHERE id = 2;
            TRUNCATE t;
            COMMIT;
        """)
        await reader.commits_reach(1)
    assert shape(reader.changes) == [
        (INSERT, [b"1", b"a", None], None, False),
        (UPDATE, [b"1", b"", None], None, False),
        (UPDATE, [b"2", b"", None], [b"1", None, None], True),
        (DELETE, None, [b"2", None, None], True),
    ]
    events = [event for event in reader.events if not isinstance(event, Progress)]
    begin, commit = events[0], events[-1]
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert isinstance(events[-2], Truncate)
    assert db.start <= begin.commit_lsn == commit.commit_lsn < commit.end_lsn
    assert begin.commit_time == commit.commit_time
    ((seconds,),) = await rows(db.connection, "SELECT extract(epoch FROM now())::float8")
    assert 0 <= seconds - commit.commit_time.timestamp() < 60
    assert reader.changes[0].relation == await load_relation(db.connection, "public", "t")


async def test_row_changes_under_the_full_identity(db: Setup) -> None:
    """Old tuples are whole."""
    await db.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    async with reading(db) as reader:
        await db.execute("INSERT INTO t VALUES (1, 'a', 'b'); UPDATE t SET v = 'x'; DELETE FROM t")
        await reader.commits_reach(1)
    assert shape(reader.changes) == [
        (INSERT, [b"1", b"a", b"b"], None, False),
        (UPDATE, [b"1", b"x", b"b"], [b"1", b"a", b"b"], False),
        (DELETE, None, [b"1", b"x", b"b"], False),
    ]


async def test_unchanged_toast_is_absent(db: Setup) -> None:
    """A long value that an update leaves alone is not sent, which is not NULL; a full identity's old row has it."""
    async with reading(db) as reader:
        await db.execute("INSERT INTO t SELECT 1, string_agg(md5(i::text), '') FROM generate_series(1, 1000) i")
        await db.execute("UPDATE t SET w = 'x'")
        await db.execute("ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET w = 'y'")
        await reader.commits_reach(3)
    first, update, full = shape(reader.changes)
    assert first[1] is not None
    assert full[2] is not None
    sent = first[1][1]
    assert isinstance(sent, bytes)
    assert len(sent) == 32_000
    assert update[1] == [b"1", ABSENT, b"x"]
    assert full[1] == [b"1", ABSENT, b"y"]
    assert full[2][1] == sent


async def test_what_is_rolled_back_does_not_come(db: Setup) -> None:
    """Neither a whole transaction nor a savepoint's part."""
    async with reading(db) as reader:
        await db.execute("BEGIN; INSERT INTO t VALUES (1); ROLLBACK")
        await db.execute("""
            BEGIN; INSERT INTO t VALUES (2); SAVEPOINT s; INSERT INTO t VALUES (3); ROLLBACK TO s;
            INSERT INTO t VALUES (4); COMMIT
        """)
        await reader.commits_reach(1)
    assert reader.keys == [b"2", b"4"]


async def test_transactions_come_in_commit_order(db: Setup) -> None:
    """The order of commits counts, not that of the first changes."""
    async with await connect(db.dsn) as other, reading(db) as reader:
        await db.execute("BEGIN; INSERT INTO t VALUES (1, 'began first')")
        await other.execute("INSERT INTO t VALUES (2, 'committed first')")
        await db.execute("COMMIT")
        await reader.commits_reach(2)
    assert reader.keys == [b"2", b"1"]
    first, second = reader.commits
    assert first.end_lsn <= second.commit_lsn


async def test_logical_messages(db: Setup) -> None:
    """A transactional message comes with its transaction or not at all; the other kind comes by itself."""
    if server_version(db.connection) < 140000:
        pytest.skip("messages came with PostgreSQL 14")
    async with reading(db, messages=["p"]) as reader:
        await db.execute("""
            BEGIN;
            SELECT pg_logical_emit_message(false, 'p', 'alone');
            SELECT pg_logical_emit_message(true, 'p', 'never');
            ROLLBACK;
            BEGIN;
            INSERT INTO t VALUES (1);
            SELECT pg_logical_emit_message(true, 'p', 'within');
            COMMIT;
        """)
        await reader.commits_reach(1)
    kinds = [type(event) for event in reader.events if not isinstance(event, Progress)]
    assert kinds == [LogicalMessage, Begin, Change, LogicalMessage, Commit]
    messages = [(m.transactional, m.prefix, m.content) for m in reader.events if isinstance(m, LogicalMessage)]
    assert messages == [(False, "p", b"alone"), (True, "p", b"within")]


async def test_messages_come_only_on_request(db: Setup) -> None:
    """Without a prefix in the config the server is not asked for any."""
    async with reading(db) as reader:
        await db.execute("SELECT pg_logical_emit_message(false, 'p', 'alone')")
        await db.execute("INSERT INTO t VALUES (1)")
        await reader.commits_reach(1)
    assert not any(isinstance(event, LogicalMessage) for event in reader.events)


async def test_relations_follow_the_table(db: Setup) -> None:
    """Each row has the shape of its moment; the same shape is the same object, also after it was sent again."""
    async with reading(db) as reader:
        await db.execute("INSERT INTO t VALUES (1)")
        await db.execute("VACUUM t")
        await db.execute("INSERT INTO t VALUES (2)")
        await db.execute(
            """
            BEGIN;
            INSERT INTO t VALUES (3);
            ALTER TABLE t DROP v, ADD n int DEFAULT 7;
            INSERT INTO t VALUES (4);
            COMMIT
            """
        )
        await reader.commits_reach(3)
    relations = [change.relation for change in reader.changes]
    assert relations[0] is relations[1] is relations[2]
    assert [column.name for column in relations[3].columns] == ["id", "w", "n"]
    assert values(reader.changes[3].new) == [b"4", None, b"7"]


async def test_types_made_later_are_known_before_their_rows(db: Setup) -> None:
    """When a relation names a new type, the source learns of it before it delivers the rows."""
    known: list[dict[int, int]] = []
    async with reading(db) as reader:
        take = reader.take

        def look(events: list[Event]) -> None:
            known.append(dict(reader.source.types))
            take(events)

        reader.source._sink = look
        await db.execute("""
            CREATE DOMAIN cents AS bigint;
            CREATE TYPE mood AS ENUM ('fine');
            ALTER TABLE t ADD c cents, ADD m mood, ADD ms mood[];
        """)
        await db.execute("INSERT INTO t VALUES (1, 'a', 'b', 5, 'fine', '{fine}')")
        await db.execute("INSERT INTO t VALUES (2)")
        await reader.commits_reach(2)
    oids = [column.type_oid for column in reader.changes[0].relation.columns[3:]]
    assert [reader.source.types[oid] for oid in oids] == [20, 25, 1009]
    assert all(oid in known[-1] for oid in oids)
    assert reader.keys == [b"1", b"2"]


async def test_formats_do_not_follow_the_role(db: Setup) -> None:
    """Settings of the role or database do not reach into the stream."""
    ((name,),) = await rows(db.connection, "SELECT current_database()")
    await db.execute(f"ALTER DATABASE \"{name}\" SET datestyle = 'German, DMY'; ALTER TABLE t ADD d date, ADD f float8")
    await db.execute(f'ALTER DATABASE "{name}" SET extra_float_digits = -10')
    async with reading(db) as reader:
        await db.execute("INSERT INTO t (id, d, f) VALUES (1, '2026-02-01', 0.1)")
        await reader.commits_reach(1)
    assert values(reader.changes[0].new) == [b"1", None, None, b"2026-02-01", b"0.1"]


async def test_odd_names(pg: str) -> None:
    """Table, column, publication and slot need no special names."""
    async with await connect(pg) as connection:
        db = await set_up(pg, connection, 'CREATE TABLE "a.b ""c" ("Größe ""x" int PRIMARY KEY)')
        await db.execute('ALTER PUBLICATION cdcsync RENAME TO "My ""own"", pub\'s"')
        reader = Reader(db.dsn, db.slot)
        reader.source._settings = reader.source._settings.model_copy(update={"publication": 'My "own", pub\'s'})
        task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
        await db.execute('INSERT INTO "a.b ""c" VALUES (1)')
        await reader.commits_reach(1)
        await reader.source.stop()
        await task
    assert reader.changes[0].relation.table == 'public.a.b "c'
    assert reader.changes[0].relation.columns[0].name == 'Größe "x'


async def test_a_large_transaction_arrives_whole(db: Setup) -> None:
    """More than a drain takes at once, in order."""
    async with reading(db) as reader:
        await db.execute("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 30000) i")
        await reader.commits_reach(1)
    assert reader.keys == [b"%d" % number for number in range(1, 30001)]


async def test_a_restart_goes_on_after_what_is_durable(db: Setup) -> None:
    """A new source starts after the confirmed position; nothing confirmed comes again."""
    async with reading(db) as reader:
        await db.execute("INSERT INTO t VALUES (1)")
        await reader.commits_reach(1)
        durable = reader.commits[0].end_lsn
    assert await db.confirmed() == durable
    await db.execute("INSERT INTO t VALUES (2)")
    async with reading(db, start=durable) as again:
        await again.commits_reach(1)
    assert again.keys == [b"2"]


async def test_a_start_behind_what_was_confirmed_drops_nothing_new(db: Setup) -> None:
    """With the acknowledgement lost, what is durable here is not delivered again."""
    async with reading(db, confirms=False) as reader:
        await db.execute("INSERT INTO t VALUES (1)")
        await db.execute("INSERT INTO t VALUES (2)")
        await reader.commits_reach(2)
    assert await db.confirmed() == db.start
    async with reading(db, start=reader.commits[0].end_lsn) as again:
        await again.commits_reach(1)
    assert again.keys == [b"2"]


async def test_a_terminated_walsender_is_replaced(db: Setup) -> None:
    """After a lost connection the unconfirmed comes again, the confirmed does not, and the consumer is told first."""
    async with reading(db, confirms=False) as reader:
        await db.execute("INSERT INTO t VALUES (1)")
        await reader.commits_reach(1)
        reader.source.confirm(reader.commits[0].end_lsn)
        await eventually_async(lambda: confirmed_at_least(db, reader.commits[0].end_lsn))
        await db.execute("INSERT INTO t VALUES (2)")
        await reader.commits_reach(2)
        await db.terminate()
        await eventually_async(lambda: reader.connections == 2)
        await reader.commits_reach(3)
        await db.execute("INSERT INTO t VALUES (3)")
        await reader.commits_reach(4)
    assert reader.keys == [b"1", b"2", b"2", b"3"]


async def confirmed_at_least(db: Setup, lsn: int) -> bool:
    """Tell whether the server holds ``lsn`` as confirmed."""
    return await db.confirmed() >= lsn


async def test_a_cut_network_is_survived(db: Setup) -> None:
    """A connection that is cut in the middle of a large transaction is opened again; the transaction comes whole."""
    with Proxy(db.dsn) as proxy:
        async with reading(db, dsn=proxy.dsn) as reader:
            await db.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i")
            await eventually_async(lambda: len(reader.changes) > 10)
            proxy.cut()
            await eventually_async(lambda: reader.connections == 2)
            await reader.commits_reach(1)
            proxy.half_close()
            await eventually_async(lambda: reader.connections == 3)
            await db.execute("INSERT INTO t VALUES (0)")
            await reader.commits_reach(2)
    assert len(reader.transaction(0)) == 20000
    assert shape(reader.transaction(1)) == [(INSERT, [b"0", None, None], None, False)]


async def test_a_frozen_network_is_noticed(db: Setup) -> None:
    """Something between us and the server keeps the connection open but passes nothing: another one is opened."""
    with Proxy(db.dsn) as proxy:
        async with reading(db, dsn=make_conninfo(proxy.dsn, options="-c wal_sender_timeout=200ms")) as reader:
            proxy.stall_both()
            await db.execute("INSERT INTO t VALUES (1)")
            await eventually_async(lambda: "not answered" in (reader.source.last_error or ""))
            proxy.flow()
            await reader.commits_reach(1)
    assert reader.keys == [b"1"]


async def test_progress_without_changes_for_us(db: Setup) -> None:
    """Traffic in another database alone moves the slot to the tip, by keepalives: nothing is written for it."""
    async with await connect(make_conninfo(db.dsn, dbname="postgres")) as other:
        async with reading(db) as reader:
            await other.execute("CREATE TEMP TABLE noise AS SELECT 1")
            await other.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 4000000))")
            before = await db.tip()
            reader.source.request_progress()
            await eventually_async(lambda: confirmed_at_least(db, before))
            assert reader.source.received_lsn >= before
            assert reader.source.server_lsn >= before
        assert reader.changes == []


async def test_pausing_keeps_the_connection(db: Setup) -> None:
    """A paused source reads nothing, stays connected over many server timeouts, and then delivers everything."""
    dsn = make_conninfo(db.dsn, options="-c wal_sender_timeout=600ms")
    async with reading(db, dsn=dsn) as reader:
        reader.source.pause()
        await db.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i")
        ended = time.monotonic() + 2.5
        await eventually_async(lambda: time.monotonic() > ended)
        assert reader.changes == []
        reader.source.resume()
        await reader.commits_reach(1)
        assert reader.connections == 1
    assert len(reader.changes) == 20000


async def test_a_consumer_may_pause_itself(db: Setup) -> None:
    """Pausing from within the sink takes effect at once, and loses nothing."""
    async with reading(db) as reader:
        take = reader.take

        def take_and_pause(events: list[Event]) -> None:
            take(events)
            reader.source.pause()

        reader.source._sink = take_and_pause
        await db.execute("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 10000) i")

        async def nudged() -> bool:
            reader.source.resume()
            return len(reader.commits) == 1

        await eventually_async(nudged)
    assert len(reader.changes) == 10000


async def test_an_error_of_the_consumer_ends_the_source(db: Setup) -> None:
    """What the sink raises comes out of run(): it is a bug, or a disk that is full."""
    reader = Reader(db.dsn, db.slot)

    def fail(events: list[Event]) -> None:
        raise ZeroDivisionError(len(events))

    reader.source._sink = fail
    await db.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(reader.source.run(db.start, db.identity), 20)
    assert not reader.source.connected


async def test_a_slot_in_use_is_waited_for(db: Setup) -> None:
    """Whoever holds the slot is named, and when it lets go, the source goes on."""
    async with reading(db) as first:
        second = Reader(db.dsn, db.slot)
        task = asyncio.ensure_future(second.source.run(db.start, db.identity))
        await eventually_async(lambda: "in use by pid" in (second.source.last_error or ""))
        assert not second.source.connected
        assert first.source.connected
    await eventually_async(lambda: second.source.connected)
    assert second.source.last_error is None
    await db.execute("INSERT INTO t VALUES (1)")
    await second.commits_reach(1)
    await second.source.stop()
    await task


async def test_an_unreachable_server_is_waited_for(db: Setup) -> None:
    """A refused connection is tried again, and the reason can be seen meanwhile."""
    with Proxy(db.dsn) as proxy:
        proxy.refuse()
        reader = Reader(proxy.dsn, db.slot)
        task = asyncio.ensure_future(reader.source.run(db.start, db.identity))
        await eventually_async(lambda: "cannot connect" in (reader.source.last_error or ""))
        proxy.accept()
        await eventually_async(lambda: reader.source.connected)
        await reader.source.stop()
        await task


async def test_stopping_while_waiting_ends_the_source(db: Setup) -> None:
    """A source that waits for its next try stops at once."""
    reader = Reader("host=/nonexistent", db.slot)
    task = asyncio.ensure_future(reader.source.run(db.start, None))
    await eventually_async(lambda: reader.source.last_error)
    await reader.source.stop()
    await asyncio.wait_for(task, 5)
