"""A copy on a real server: exact bytes, keys of all kinds, interruptions, refusals."""

from __future__ import annotations

import asyncio
import contextlib

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdcsync.errors import SourceError
from cdcsync.model import Change, parse_lsn
from cdcsync.wal import snapshot as snapshot_module
from cdcsync.wal.chunks import ChunkReader
from cdcsync.wal.connect import connect
from cdcsync.wal.snapshot import Cursor
from cdcsync.wal.tuples import split_tuple
from tests.pg.copying import Copy, SlotStream, copy_of, describe, execute
from tests.polling import eventually_async
from tests.proxy import Proxy

TYPES = {
    "numeric": ["'NaN'", "1.10", "1e-400", "123456789012345678901234567890.5"],
    "float8": ["'-Infinity'", "'-0'", "5e-324", "1.7976931348623157e308", "0.1"],
    "float4": ["0.1", "'NaN'", "16777216"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "money": ["1234.5", "-0.01"],
    "bool": ["true", "false"],
    "char(5)": ["'ab'", "''"],
    "text": ["''", "E'a\\r\\n\\t\\\\'", "'ü💶'"],
    "bytea": [r"'\x00ff'", "''"],
    "date": ["'infinity'", "'4713-01-01 BC'", "'5874897-12-31'"],
    "timestamp": ["'-infinity'", "'294276-12-31 23:59:59.999999'", "'0044-03-15 12:00 BC'"],
    "timestamptz": ["'infinity'", "'0044-03-15 12:00+01 BC'", "'1890-01-01 00:00:00.5+00:19:32'", "'2024-02-29'"],
    "time": ["'24:00'", "'00:00:00.000001'"],
    "timetz": ["'12:00+05:30'", "'01:02:03+15:59:59'"],
    "interval": ["'1 year 2 mons -3 days 04:05:06.789'", "'-1 mon'", "'0'"],
    "json": ["""'{"a": 1, "a": 12345678901234567890, "b":"\\u0000"}'"""],
    "jsonb": ["""'{"bb": 1, "a": 1.50}'"""],
    "int[]": ["'{}'", "'[2:3]={1,2}'", "'{{1,2},{3,4}}'"],
    "text[]": ["""'{NULL,"NULL","","a,b","c\\"d","\\\\"}'"""],
    "mood": ["'so so'"],
    "price": ["1.50"],
    "pair": ["""ROW('x, "y"', 3)"""],
    "numrange": ["'empty'", "'(,)'", "'[1.5,2.5)'"],
    "tstzrange": ["'[2024-01-01,infinity]'"],
    "uuid": ["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"],
    "inet": ["'10.0.0.1/8'", "'::1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "bit(3)": ["'101'"],
    "varbit": ["''"],
    "tsvector": ["'a fat cat'"],
    "point": ["'(0.1,-2e-300)'"],
    "box[]": ["'{(2,2),(1,1);(4,4),(3,3)}'"],
}
TYPES_14 = {
    "numeric": [*TYPES["numeric"], "'-Infinity'"],
    "datemultirange": ["'{}'", "'{[2024-01-01,2024-01-05),[2024-02-01,2024-02-03)}'"],
}
"""What came with PostgreSQL 14."""


def version(dsn: str) -> int:
    """Return the server's major version."""
    ((number,),) = execute(dsn, "SELECT current_setting('server_version_num')::int / 10000")
    return int(number)


async def test_rows_are_byte_for_byte_what_the_stream_sends(pg: str) -> None:
    """For each type the copied tuple equals the streamed one, whatever formats the database has as its defaults."""
    name = conninfo_to_dict(pg)["dbname"]
    types = TYPES | TYPES_14 if version(pg) >= 14 else TYPES
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(types))
    execute(
        pg,
        "CREATE TYPE mood AS ENUM ('so so')",
        "CREATE DOMAIN price AS numeric(10,2)",
        "CREATE TYPE pair AS (a text, b int)",
        f"CREATE TABLE t (id int PRIMARY KEY, {columns})",
        *(
            f"ALTER DATABASE {name} SET {setting}"
            for setting in (
                "datestyle = 'SQL, DMY'",
                "intervalstyle = iso_8601",
                "bytea_output = escape",
                "extra_float_digits = -5",
                "timezone = 'Asia/Kolkata'",
            )
        ),
    )
    stream = await SlotStream.open(pg)
    rows = max(map(len, types.values()))
    for number in range(rows + 1):
        values = ", ".join(samples[number] if number < len(samples) else "NULL" for samples in types.values())
        execute(pg, f"INSERT INTO t VALUES ({number}, {values})")
    streamed = [change.new for _, change in await stream.poll() if isinstance(change, Change)]
    await stream.close()
    copy = await copy_of(pg, "t", "id", chunk_rows=2)
    await copy.run()
    assert copy.raw == streamed


async def test_position_is_reached_when_the_wal_ends_with_a_page(pg: str) -> None:
    """When the last record ends exactly at a page's end, the position is still one that the flushed WAL reaches."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)")
    relation = await describe(pg, "t")
    async with await connect(pg) as writer, await connect(pg) as own:
        reader = await ChunkReader.open(own, relation)

        async def inserted(size: int) -> int:
            await writer.execute(f"SELECT pg_logical_emit_message(false, '', repeat('x', {size}))")
            row = await (await writer.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
            assert row is not None
            return parse_lsn(row[0])

        async def exactly_filled() -> bool:
            before = await inserted(400)
            after = await inserted(400)
            room = 8192 - after % 8192
            return room > 600 and (await inserted(400 + room - (after - before))) % 8192 == 24

        # Other sessions of the server write too: try until nothing came between.
        await eventually_async(exactly_filled)
        chunk = await reader.read(relation, ["id"], None, 10)

        async def flushed() -> bool:
            row = await (await writer.execute("SELECT pg_current_wal_flush_lsn()::text")).fetchone()
            assert row is not None
            return parse_lsn(row[0]) >= chunk.upto_lsn

        await eventually_async(flushed)


@pytest.mark.parametrize(
    ("columns", "key", "rows"),
    [
        ("id int PRIMARY KEY", ["id"], [f"({n})" for n in range(-5, 6)]),
        ("id uuid PRIMARY KEY DEFAULT gen_random_uuid()", ["id"], ["(DEFAULT)"] * 8),
        (
            "name text PRIMARY KEY",
            ["name"],
            ["('')", "('a')", "('A')", "('ä')", "('it''s')", r"('back\slash')", "('100%')", "('%s')", "('💶')"],
        ),
        (
            "n text, a int, b timestamptz, PRIMARY KEY (b, a)",
            ["b", "a"],
            [f"('{b}{a}', {a}, '{b}')" for b in ("infinity", "0044-03-15 BC", "2024-01-01 0:00:00.1") for a in (1, -2)],
        ),
        (
            '"with""quote" char(3) PRIMARY KEY, "Mixed Case" int',
            ['with"quote'],
            ["('a', 1)", "('b', 2)", "('ab', 3)", "('c', 4)"],
        ),
        ("id numeric PRIMARY KEY", ["id"], ["('NaN')", "(1.10)", "(-1e30)", "('Infinity')", "(1.1000001)"]),
    ],
    ids=["negative", "uuid", "text", "composite", "quoted", "numeric"],
)
async def test_all_kinds_of_keys(pg: str, columns: str, key: list[str], rows: list[str]) -> None:
    """Keys of any type, order and content page through the table: each row once, in the server's order."""
    if version(pg) < 14:
        rows = [row for row in rows if row != "('Infinity')"]  # numeric has it since 14
    execute(pg, f"CREATE TABLE t ({columns})", f"INSERT INTO t VALUES {', '.join(rows)}")
    copy = await copy_of(pg, "t", *key, chunk_rows=2)
    await copy.run()
    first, *_ = (column.name for column in copy.backfill.relation.columns)
    query = sql.SQL("SELECT format('%s', {}) FROM t ORDER BY {}").format(
        sql.Identifier(first), sql.SQL(", ").join(sql.Identifier("t", name) for name in key)
    )
    with psycopg.connect(pg) as connection:
        expected = [text for (text,) in connection.execute(query)]
    assert copy.emitted == expected
    assert len(rows) == copy.backfill.rows
    assert copy.cursors[-1].done


async def test_empty_table_is_done_at_once(pg: str) -> None:
    """A table without rows gives one empty emission that says so."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)")
    copy = await copy_of(pg, "t", "id")
    await copy.run()
    assert (copy.emitted, copy.cursors) == ([], [Cursor(None, 0, 0, done=True)])


async def test_condition_partitions_and_heirs(pg: str) -> None:
    """A condition is applied as it is written; partitions belong to their root, inheriting tables do not."""
    execute(
        pg,
        "CREATE TABLE t (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        "INSERT INTO t SELECT n, CASE WHEN n % 2 = 0 THEN '100%' END FROM generate_series(0, 19) n",
        "ANALYZE t",
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (parent)",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO heir VALUES (2)",
    )
    copy = await copy_of(pg, "t", "id", where="note LIKE '%0\\%' OR id = 1 -- and so on")
    await copy.run()
    assert sorted(map(int, copy.emitted)) == sorted([1, *range(0, 20, 2)])
    assert copy.backfill.estimate == 20
    copy = await copy_of(pg, "parent", "id")
    await copy.run()
    assert copy.emitted == ["1"]


async def test_copy_goes_on_behind_its_cursor(pg: str) -> None:
    """A copy that was stopped anywhere is taken up by another one: together they give each row once."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 40)")
    first = await copy_of(pg, "t", "id")
    stuck = asyncio.Event()
    first.before_chunk = lambda number: stuck.wait() if number == 4 else None
    task = asyncio.create_task(first.run())
    await eventually_async(lambda: first.chunks == 4)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert 0 < len(first.emitted) < 40
    second = await copy_of(pg, "t", "id")
    await second.run(first.cursors[-1])
    assert [int(key) for key in first.emitted + second.emitted] == list(range(1, 41))
    assert second.backfill.rows == 40


async def test_lost_connections_are_opened_again(pg: str, pg_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut between chunks, while reading, while the server is away: in the end each row has come once."""
    monkeypatch.setattr(snapshot_module, "RETRY_DELAY", (0.01, 0.05))
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 60)")
    copy = await copy_of(pg_proxy.dsn, "t", "id")

    async def disturb(number: int) -> None:
        if number in (2, 9):
            pg_proxy.cut()
        if number == 5:
            pg_proxy.refuse()
            pg_proxy.cut()
            asyncio.get_running_loop().call_later(0.2, pg_proxy.accept)
        if number == 7:
            asyncio.get_running_loop().call_soon(pg_proxy.cut)

    copy.before_chunk = disturb
    await copy.run()
    assert [int(key) for key in copy.emitted] == list(range(1, 61))


async def test_refusals_say_what_to_do(pg: str) -> None:
    """Row-level security, missing rights, a missing table or key, a wrong condition: an error with the remedy."""
    execute(
        pg,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE hidden (id int PRIMARY KEY)",
        "INSERT INTO hidden VALUES (1)",
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
        "DO $$ BEGIN CREATE ROLE cdcsync_reader LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$",
        "GRANT SELECT ON hidden TO cdcsync_reader",
    )
    reader = make_conninfo(pg, user="cdcsync_reader")
    try:
        with pytest.raises(SourceError, match=r"(?s)row-level security.*BYPASSRLS"):
            await (await copy_of(reader, "hidden", "id")).run()
        with pytest.raises(SourceError, match=r"(?s)permission denied.*GRANT SELECT ON public\.t"):
            await (await copy_of(reader, "t", "id")).run()
    finally:
        execute(pg, "DROP OWNED BY cdcsync_reader")
    with pytest.raises(SourceError, match="where"):
        await (await copy_of(pg, "t", "id", where="no_such_column = 1")).run()
    gone = await copy_of(pg, "t", "id")
    execute(pg, "DROP TABLE t")
    with pytest.raises(SourceError, match=r"no table public\.t"):
        await gone.run()
    with pytest.raises(SourceError, match="primary key"):
        await copy_of(pg, "hidden")


async def test_rewritten_table_is_not_taken_for_empty(pg: str) -> None:
    """A chunk that waits for an ALTER TABLE which rewrites the table reads all rows after it."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY, n int)", "INSERT INTO t SELECT n, n FROM generate_series(1, 9) n")
    copy = await copy_of(pg, "t", "id")
    with psycopg.connect(pg) as altering:
        altering.execute("ALTER TABLE t ALTER n TYPE bigint")
        task = asyncio.create_task(copy.run())
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
        await eventually_async(lambda: asyncio.to_thread(execute, pg, waiting))
        altering.commit()
        await task
    assert len(copy.emitted) == 9


@pytest.mark.parametrize("when", ["while reading", "while waiting"])
async def test_new_shape_of_the_table_replaces_the_old_one(pg: str, when: str) -> None:
    """Rows read in a shape that was replaced meanwhile are read again in the new one."""
    execute(pg, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t SELECT generate_series(1, 5)")
    copy = await copy_of(pg, "t", "id", chunk_rows=10)
    execute(pg, "ALTER TABLE t ADD n int DEFAULT 7")
    newer = await describe(pg, "t")

    def change() -> None:
        copy.backfill.relation = newer

    def key_of(raw: bytes) -> str | None:
        assert len(split_tuple(raw)) == len(copy.backfill.relation.columns)
        return Copy.key_of(copy, raw)

    async def reached(lsn: int) -> None:
        change()
        await Copy.reached(copy, lsn)

    copy.key_of = key_of  # type: ignore[method-assign] # the hooks of this test
    if when == "while reading":
        copy.before_chunk = lambda _: asyncio.get_running_loop().call_soon(change)
    else:
        copy.reached = reached  # type: ignore[method-assign]
    await copy.run()
    assert copy.rows["3"] == [b"3", b"7"]
    assert len(copy.emitted) == 5
