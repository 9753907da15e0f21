"""A backfill's surroundings for tests: a stream whose delivery is the test's decision, and a copy of the rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import psycopg
import structlog

from cdcsync.model import ABSENT, Begin, Change, Relation, Truncate, parse_lsn
from cdcsync.wal.catalog import load_relation
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.decode import Decoder
from cdcsync.wal.snapshot import Backfill, Cursor
from cdcsync.wal.tuples import split_tuple
from tests.polling import eventually_async

LOG = structlog.get_logger()


def execute(dsn: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each in a transaction of its own; return the rows of the last one."""
    rows: list[tuple[Any, ...]] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
    return rows


class SlotStream:
    """A slot ``s`` and a publication ``p``; ``poll`` delivers what is committed and not delivered yet."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._decoder = Decoder()
        self._xid = 0
        self.position = 0

    @classmethod
    async def open(cls, dsn: str, published: str = "FOR ALL TABLES") -> Self:
        """Create publication and slot."""
        connection = await connect(dsn)
        await connection.execute(f"CREATE PUBLICATION p {published}".encode())
        await connection.execute("SELECT pg_create_logical_replication_slot(current_database() || '_s', 'pgoutput')")
        return cls(connection)

    async def close(self) -> None:
        """Close the connection; the database's end drops the slot."""
        await self._connection.close()

    async def poll(self) -> list[tuple[int, Change | Truncate]]:
        """Return the changes committed since the last call, each with its transaction's id, in the stream's order."""
        row = await (await self._connection.execute("SELECT pg_current_wal_flush_lsn()::text")).fetchone()
        assert row is not None
        found = await self._connection.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes(current_database() || '_s', NULL, NULL, "
            "'proto_version', '1', 'publication_names', 'p')"
        )
        delivered: list[tuple[int, Change | Truncate]] = []
        for (data,) in await found.fetchall():
            message = self._decoder.decode(data)
            if isinstance(message, Begin):
                self._xid = message.xid
            elif isinstance(message, Change | Truncate):
                delivered.append((self._xid, message))
        self.position = parse_lsn(row[0])
        return delivered


class Copy:
    """What a CRM would hold: rows by their first column, from a backfill and (if given) from a stream.

    With a ``version`` column it asserts at each write that no row goes back to an older version.
    """

    def __init__(
        self, dsn: str, backfill: Backfill, stream: SlotStream | None = None, version: int | None = None
    ) -> None:
        self.dsn = dsn
        self.backfill = backfill
        self.stream = stream
        self.version = version
        self.rows: dict[str, list[bytes | None]] = {}
        self.newest: dict[str, int] = {}
        self.emitted: list[str] = []
        self.raw: list[bytes] = []
        self.cursors: list[Cursor] = []
        self.before_chunk: Callable[[int], Any] = lambda _: None
        self.chunks = 0

    def key_of(self, raw: bytes) -> str | None:
        """Return the external key: the first column."""
        key = split_tuple(raw)[0]
        return key.decode() if isinstance(key, bytes) else None

    def emit(self, rows: list[bytes], cursor: Cursor) -> None:
        """Take rows of the backfill."""
        for row in rows:
            self.emitted.append(self.write(row))
            self.raw.append(row)
        self.cursors.append(cursor)

    def write(self, raw: bytes) -> str:
        """Take a row's state."""
        values = split_tuple(raw)
        key = str(self.key_of(raw))
        if self.version is not None:
            version = int(values[self.version] or b"")  # type: ignore[arg-type] # a number column is never absent
            assert version >= self.newest.get(key, 0), f"row {key} went back"
            self.newest[key] = version
        held = self.rows.get(key, [b"missing"] * len(values))
        self.rows[key] = [old if new is ABSENT else new for old, new in zip(held, values, strict=True)]
        return key

    async def deliver(self) -> None:
        """Take what the stream has."""
        assert self.stream is not None
        for xid, change in await self.stream.poll():
            if isinstance(change, Truncate):
                self.backfill.note_truncate(xid)
                self.rows.clear()
                continue
            self.take(xid, change)

    def take(self, xid: int, change: Change) -> None:
        """Take one change of the stream."""
        if change.old is not None:
            old = str(self.key_of(change.old))
            self.backfill.note(old, xid)
            self.rows.pop(old, None)
        if change.new is not None:
            key = str(self.key_of(change.new))
            self.backfill.note(key, xid, partial=ABSENT in split_tuple(change.new))
            self.write(change.new)

    async def reached(self, lsn: int) -> None:
        """Wait until the stream is at a position; without a stream all is there."""
        if self.stream is not None:
            await eventually_async(lambda: self.stream is not None and self.stream.position >= lsn)

    async def room(self) -> None:
        """Run the test's hook before each chunk."""
        self.chunks += 1
        result = self.before_chunk(self.chunks)
        if asyncio.iscoroutine(result):
            await result

    async def connect(self) -> Connection:
        """Open the backfill's connection."""
        return await connect(self.dsn)

    async def run(self, cursor: Cursor | None = None) -> None:
        """Run the backfill to its end."""
        await self.backfill.run(
            self.connect,
            received=lambda: self.stream.position if self.stream is not None else 0,
            reached=self.reached,
            room=self.room,
            emit=self.emit,
            key_of=self.key_of,
            cursor=cursor,
        )

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """Deliver the stream in the background, all of it at the end."""
        ending = False

        async def deliver() -> None:
            while not ending:  # cancelled in mid-poll, what the slot has given would be lost
                await self.deliver()
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            yield
            ending = True
        await self.deliver()


async def describe(dsn: str, table: str) -> Relation:
    """Return the shape of a table of schema public."""
    connection = await connect(dsn)
    try:
        return await load_relation(connection, "public", table)
    finally:
        await connection.close()


async def copy_of(dsn: str, table: str, *key: str, chunk_rows: int = 3, where: str | None = None) -> Copy:
    """Return a copy without a stream."""
    return Copy(dsn, Backfill(table, await describe(dsn, table), key, where, chunk_rows=chunk_rows, log=LOG))
