"""The copy of a table: chunks in key order, reconciled with the stream (``visibility`` says how), resumable.

Each chunk is a short transaction, so that a copy of days holds back no vacuum; after an interruption the copy goes on
behind its cursor.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import psycopg
from structlog.typing import FilteringBoundLogger

from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.model import Relation
from cdcsync.wal.chunks import Chunk, ChunkReader, key_texts
from cdcsync.wal.connect import Connection
from cdcsync.wal.visibility import Merged, Window

Connect: TypeAlias = Callable[[], Awaitable[Connection]]
"""Opens a connection to the source database for the backfill alone, as ``connect.connect`` does."""

CHUNK_BYTES: Final = 8 << 20
"""What a chunk of rows should weigh at most; how many rows that is, is learned from the chunk before."""

FIRST_ROWS: Final = 100
RETRY_DELAY: Final = (0.5, 30.0)
AGAIN_DELAY: Final = (0.02, 1.0)
SETTLE_DELAY: Final = 0.25
SETTLE_TOLD: Final = 5.0
"""Seconds of waiting for other transactions until it is worth a line in the log."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a copy is: texts of the key columns of the last row done with, rows read so far, rows expected."""

    after: tuple[str, ...] | None = None
    rows: int = 0
    estimate: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Ports:
    received: Callable[[], int]
    reached: Callable[[int], Awaitable[None]]
    room: Callable[[], Awaitable[None]]
    emit: Callable[[list[bytes], Cursor], None]
    key_of: Callable[[bytes], str | None]


class Backfill:
    """One mapping's copy. It knows no lane: rows and cursors leave through the callbacks of ``run``.

    Call ``note`` for each streamed change of its mapping from the moment it is made until ``run`` is over. That may be
    while the stream runs: ``run`` first waits for the transactions that were writing to the table before it.
    ``relation`` may be replaced at any moment by a newer shape of the table: rows read in the old one are read again.
    """

    def __init__(
        self,
        mapping: str,
        relation: Relation,
        key_columns: Sequence[str],
        where: str | None = None,
        *,
        chunk_rows: int = 2000,
        log: FilteringBoundLogger,
    ) -> None:
        names = {column.name for column in relation.columns}
        if not key_columns or not names.issuperset(key_columns):
            raise SourceError(
                f"{relation.table} cannot be copied in key order: its key is {', '.join(key_columns) or 'missing'}",
                hint="give the table a primary key (or a unique index over NOT NULL columns), and publish its columns",
            )
        self.mapping = mapping
        self.relation = relation
        self.key_columns = tuple(key_columns)
        self.where = where
        self.cursor = Cursor()
        self._chunk_rows = chunk_rows
        self._limit = min(FIRST_ROWS, chunk_rows)
        self._window = Window()
        self._log = log.bind(mapping=mapping)
        self.waiting: str | None = None
        """What the copy waits for, in words."""
        self._settled = False
        self._failures = 0
        self._again = 0

    @property
    def rows(self) -> int:
        """Rows done with so far."""
        return self.cursor.rows

    @property
    def estimate(self) -> int:
        """Rows that the table has, as PostgreSQL's statistics say; 0 is unknown."""
        return max(self.cursor.estimate, self.cursor.rows)

    def note(self, key: str, xid: int, *, partial: bool = False) -> None:
        """Note a streamed change of the mapping by its external key, for a key change once with each of the two keys.

        ``partial``: the change's new tuple, completed from its old one, still lacks columns (unchanged TOAST).
        """
        self._window.note(key, xid, partial=partial)

    def note_truncate(self, xid: int) -> None:
        """Note a streamed TRUNCATE of the mapping's table."""
        self._window.note_truncate(xid)

    async def run(
        self,
        connect: Connect,
        *,
        received: Callable[[], int],
        reached: Callable[[int], Awaitable[None]],
        room: Callable[[], Awaitable[None]],
        emit: Callable[[list[bytes], Cursor], None],
        key_of: Callable[[bytes], str | None],
        cursor: Cursor | None = None,
    ) -> None:
        """Copy what comes after ``cursor``, until the end of the table; lost connections are opened again.

        ``received`` says up to which LSN all has been delivered (and noted), and ``reached`` waits for one; ``room``
        waits until more rows are welcome; ``emit`` takes rows to apply and the cursor to keep with them, and is called
        on the event loop without a pause between the reconciliation and it; ``key_of`` gives a row's external key. The
        rows that these two get have the shape that ``relation`` has at that moment.
        Raises SourceError when PostgreSQL refuses the table's rows for good.
        """
        self.cursor = cursor or Cursor()
        ports = _Ports(received, reached, room, emit, key_of)
        while not self.cursor.done:
            try:
                await self._copy(connect, ports)
            except (psycopg.OperationalError, psycopg.InterfaceError, SourceUnavailableError) as error:
                delay = _backoff(self._failures, RETRY_DELAY)
                self._failures += 1
                self._log.warning("backfill interrupted", reason=str(error).strip(), again_in=round(delay, 1))
                await asyncio.sleep(delay)
            except psycopg.Error as error:
                raise self._refused(error) from error

    async def _copy(self, connect: Connect, ports: _Ports) -> None:
        connection = await connect()
        try:
            reader = await ChunkReader.open(connection, self.relation, self.where)
            if not self.cursor.estimate:
                self.cursor = replace(self.cursor, estimate=reader.estimate)
            await self._settle(reader)
            while not self.cursor.done:
                await ports.room()
                await self._copy_chunk(reader, ports)
                self._failures = 0
        finally:
            await connection.close()

    async def _settle(self, reader: ChunkReader) -> None:
        """Before the first chunk, let the transactions end that have written to the table so far.

        Two kinds of them would be missed for good. One was delivered by the stream before this object existed, so it
        was not noted, and is not visible yet: a moment long, or as long as a synchronous standby is away. The other
        wrote before the table was published, so that the stream leaves those rows out, and commits after the first
        chunks were read. Both hold their locks on the table until after they are visible, so none is overlooked; a
        transaction that begins to write later is streamed whole, and noted. A standby does not know who writes to the
        table on its primary: there, all transactions that run are waited for.
        """
        if self._settled:
            return
        clock = asyncio.get_running_loop().time
        told = clock() + SETTLE_TOLD
        earlier = await reader.writers(self.relation)
        while earlier:
            self.waiting = "transactions that wrote to the table before: " + ", ".join(sorted(set(earlier.values())))
            if clock() > told:
                self._log.warning("copy waits", reason=self.waiting)
                told = float("inf")
            await asyncio.sleep(SETTLE_DELAY)
            earlier = await reader.writers(self.relation, earlier)
        self.waiting = None
        self._settled = True

    async def _copy_chunk(self, reader: ChunkReader, ports: _Ports) -> None:
        relation, limit = self.relation, self._limit
        self._window.open()
        received = ports.received()
        try:
            await self._until_visible(reader)
            chunk = await reader.read(relation, self.key_columns, self.cursor.after, limit)
            # A connection string may lead to a standby that is behind the server of the stream: its rows are older
            # than what was delivered long ago.
            if relation == self.relation and chunk.upto_lsn >= received:
                rows = [(ports.key_of(row), row) for row in chunk.rows]
                self._window.narrow(key for key, _ in rows if key is not None)
                await ports.reached(chunk.upto_lsn)
                merged = self._window.merge(rows, chunk.snapshot)
                if relation == self.relation and (merged.settled or not rows):
                    self._advance(chunk, merged, relation, ports)
                    return
        finally:
            self._window.close()
        await self._before_again()

    async def _until_visible(self, reader: ChunkReader) -> None:
        """On a standby, wait until all that was streamed before the window is visible beyond doubt.

        It is, but the snapshot there tells so only when all older transactions of the primary have ended too. To look
        after the chunk was read, as on a primary, would find a later one in the way each time.
        """
        while reader.standby and not self._window.follows(await reader.snapshot()):
            self.waiting = "older transactions that run on the primary"
            await asyncio.sleep(AGAIN_DELAY[0])
        self.waiting = None

    def _advance(self, chunk: Chunk, merged: Merged, relation: Relation, ports: _Ports) -> None:
        whole = merged.settled == len(chunk.rows)
        after = self.cursor.after
        if merged.settled:
            after = key_texts(chunk.rows[merged.settled - 1], relation, self.key_columns)
        self.cursor = Cursor(after, self.cursor.rows + merged.settled, self.cursor.estimate, chunk.done and whole)
        self._again = 0
        self._limit = self._next_limit(chunk)
        ports.emit(merged.rows, self.cursor)

    def _next_limit(self, chunk: Chunk) -> int:
        size = sum(map(len, chunk.rows)) or 1
        return max(1, min(self._chunk_rows, 2 * self._limit, CHUNK_BYTES * len(chunk.rows) // size))

    async def _before_again(self) -> None:
        """Wait a little before reading a chunk again, and make it smaller: it is then open for a shorter time."""
        self._limit = max(1, self._limit // 2)
        self._again += 1
        if self._again in (10, 100, 1000):
            self._log.warning(
                "backfill waits for commits that are streamed but not visible yet",
                tries=self._again,
                hint="is a standby named in synchronous_standby_names away?",
            )
        await asyncio.sleep(_backoff(self._again, AGAIN_DELAY))

    def _refused(self, error: psycopg.Error) -> SourceError:
        table = self.relation.table
        hint = "correct the mapping's table, key or where"
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = (
                f"GRANT SELECT ON {table} to cdcsync's role; where the table has row-level security, "
                "also ALTER ROLE … BYPASSRLS, since the stream carries all rows"
            )
        elif isinstance(error, (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable)):
            hint = (
                "if the table has changed its shape, start again; if the mapping (its where, say) is wrong, correct it"
            )
        return SourceError(f"{table} cannot be copied: {str(error).strip()}", hint=hint)


def _backoff(attempt: int, limits: tuple[float, float]) -> float:
    """Return seconds to wait: doubling from the first limit to the second, with jitter."""
    return float(min(limits[0] * 2 ** min(attempt, 16), limits[1]) * random.uniform(0.5, 1))  # noqa: S311 - jitter
