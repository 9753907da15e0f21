"""Shapes of transactions through the source, and what is left of them after folding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cdcsync.coalesce import Event, Fold
from cdcsync.model import ABSENT, Begin, Change, Position, Truncate
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.tuples import split_tuple
from tests.pg.reading import Reader, Setup, reading, set_up

HEX = "(SELECT string_agg(md5(i::text || {0}), '') FROM generate_series(1, 300) AS i)"
"""A value that is stored outside its row, and cannot be compressed."""


@pytest.fixture
def pg(each_pg: str) -> str:
    """Run these tests on each server at hand."""
    return each_pg


def key_of(raw: bytes) -> str:
    """Return the first column, which is the key in these tables."""
    first = split_tuple(raw)[0]
    assert isinstance(first, bytes)
    return first.decode()


def net(changes: Sequence[Change]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Fold changes; returns by key what is to be done (delete, create, write) and the keys that the row had."""
    fold = Fold()
    for number, change in enumerate(changes):
        old = key_of(change.old) if change.old is not None else None
        key = key_of(change.new) if change.new is not None else old
        assert key is not None
        fold.feed(Event(change, key, old, Position(1, number), 0.0))
    return {
        key: ("delete" if row.deleted else "create" if row.base is None else "write", row.origins)
        for key, row in fold.waiting.items()
    }


async def transaction(db: Setup, statements: str) -> list[Change]:
    """Run statements as one transaction, and read it."""
    async with reading(db) as reader:
        await db.execute(statements)
        await reader.commits_reach(1)
        return reader.changes


async def test_one_key_in_one_transaction(db: Setup) -> None:
    """All arrive as written; of a row that came and went a delete is left, which the ledger turns into nothing."""
    changes = await transaction(
        db,
        """
        INSERT INTO t VALUES (1, 'a'), (2, 'a'), (3, 'a');
        UPDATE t SET v = 'b'; UPDATE t SET v = 'c' WHERE id < 3;
        DELETE FROM t WHERE id = 1;
        DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, 'd');
        """,
    )
    assert len(changes) == 11
    found = net(changes)
    assert found == {"1": ("delete", ()), "2": ("create", ()), "3": ("create", ())}


async def test_commits_opposite_to_their_beginnings(pg: str, db: Setup) -> None:
    """The session that begins last and commits first comes first; each row's last commit wins."""
    await db.execute("INSERT INTO t VALUES (1, 'a')")
    async with reading(db) as reader, await connect(pg) as early, await connect(pg) as late:
        await early.execute("BEGIN; INSERT INTO t VALUES (2, 'early')")
        await late.execute("BEGIN; INSERT INTO t VALUES (3, 'late'); UPDATE t SET v = 'late' WHERE id = 1; COMMIT")
        await early.execute("UPDATE t SET v = 'early' WHERE id = 1; COMMIT")
        await reader.commits_reach(3)
        assert reader.keys == [b"1", b"3", b"1", b"2", b"1"]
        last = reader.changes[-1].new
        assert last is not None
        assert split_tuple(last)[1] == b"early"
        begins = [event.commit_lsn for event in reader.events if isinstance(event, Begin)]
        assert begins == sorted(begins)


async def test_a_swap_of_keys_is_two_updates(db: Setup) -> None:
    """Through a temporary value: each record takes the other's key, and none is made or deleted."""
    await db.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    async with reading(db) as reader:
        await reader.commits_reach(1)
        await db.execute(
            "UPDATE t SET id = 0 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = 0"
        )
        await reader.commits_reach(2)
        assert net(reader.transaction(1)) == {"1": ("write", ("2",)), "2": ("write", ("1",))}


async def test_copy_with_shared_positions_cut_in_the_middle(db: Setup) -> None:
    """COPY gives many rows one LSN: after a connection is cut they come again as one whole transaction, each once."""
    async with reading(db, confirms=False) as reader:
        async with db.connection.cursor() as cursor, cursor.copy("COPY t (id, v) FROM STDIN") as copy:
            for number in range(3000):
                await copy.write_row((number, "x" * 200))
        await reader.commits_reach(1)
        await db.terminate()
        await reader.commits_reach(2)
        assert reader.connections == 2
        for number in (0, 1):
            assert [int(key_of(change.new or b"")) for change in reader.transaction(number)] == list(range(3000))


async def test_truncates(pg: str) -> None:
    """Several tables at once by CASCADE, and one in the middle of its transaction, before new rows."""
    async with await connect(pg) as connection:
        tables = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)"
        db = await set_up(pg, connection, tables)
        async with reading(db) as reader:
            await db.execute("INSERT INTO a VALUES (1); TRUNCATE a RESTART IDENTITY CASCADE; INSERT INTO a VALUES (2)")
            await reader.commits_reach(1)
        kinds = [type(event) for event in reader.events if isinstance(event, Change | Truncate)]
        assert kinds[:3] == [Change, Truncate, Change]
        (truncate,) = [event for event in reader.events if isinstance(event, Truncate)]
        assert {relation.table for relation in truncate.relations} == {"public.a", "public.b"}
        assert (truncate.cascade, truncate.restart_identity) == (True, True)


async def large_rows(pg: str, connection: Connection, identity: str) -> tuple[Setup, Reader, list[Change]]:
    """Change rows with large values in all ways that leave the value alone, or do not."""
    table = f"CREATE TABLE t (id text PRIMARY KEY, v text, w text); ALTER TABLE t REPLICA IDENTITY {identity}"
    db = await set_up(pg, connection, table)
    large = HEX.format("1")
    await db.execute(f"INSERT INTO t VALUES ('1', 'a', {large}), ('2', 'a', {large}), ('3', 'a', {large})")
    async with reading(db) as reader:
        await reader.commits_reach(1)
        await db.execute(f"""
            UPDATE t SET v = 'b' WHERE id = '1';
            UPDATE t SET w = {HEX.format("2")} WHERE id = '1'; UPDATE t SET v = 'c' WHERE id = '1';
            UPDATE t SET id = '4' WHERE id = '2';
            UPDATE t SET w = NULL WHERE id = '3';
        """)
        await reader.commits_reach(2)
    return db, reader, reader.transaction(1)


async def test_large_values_under_the_default_identity(pg: str) -> None:
    """What was not sent is absent, not NULL; a value set before in the transaction is kept by the fold."""
    async with await connect(pg) as connection:
        _, _, changes = await large_rows(pg, connection, "DEFAULT")
    sent = [split_tuple(change.new or b"")[2] for change in changes]
    assert [value is ABSENT for value in sent] == [True, False, True, True, False]
    assert sent[4] is None
    fold = Fold()
    for number, change in enumerate(changes[:3]):
        fold.feed(Event(change, "1", None, Position(1, number), 0.0))
    assert split_tuple(fold.waiting["1"].image) == [b"1", b"c", sent[1]]


async def test_large_values_under_the_full_identity(pg: str) -> None:
    """The old row has them, and the fold takes them from there."""
    async with await connect(pg) as connection:
        _, _, changes = await large_rows(pg, connection, "FULL")
    for change in changes:
        fold = Fold()
        fold.feed(Event(change, key_of(change.new or b""), None, Position(1, 1), 0.0))
        (row,) = fold.waiting.values()
        assert ABSENT not in split_tuple(row.image)


async def test_a_large_key(pg: str) -> None:
    """A key that is stored outside its row is taken from the old key where the new tuple leaves it out."""
    async with await connect(pg) as connection:
        db = await set_up(
            pg, connection, "CREATE TABLE t (id text PRIMARY KEY, v text); ALTER TABLE t ALTER id SET STORAGE EXTERNAL"
        )
        await db.execute("INSERT INTO t VALUES (repeat('k', 2500), 'a')")
        async with reading(db) as reader:
            await reader.commits_reach(1)
            await db.execute("UPDATE t SET v = 'b'")
            await reader.commits_reach(2)
        (change,) = reader.transaction(1)
        fold = Fold()
        fold.feed(Event(change, "k", None, Position(1, 1), 0.0))
        assert split_tuple(fold.waiting["k"].image) == [b"k" * 2500, b"b"]
