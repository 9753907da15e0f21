"""Reading a table in chunks, in key order: each with the snapshot it was read under and the end of the WAL after it.

A chunk is one short read-only transaction. Rows are read as the texts that the stream would carry, in its tuple form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from psycopg import IsolationLevel, sql

from cdcsync.errors import SourceError
from cdcsync.model import Relation, parse_lsn
from cdcsync.wal.connect import RAW, Connection, holds_any_bytes
from cdcsync.wal.tuples import join_tuple, pick
from cdcsync.wal.visibility import Snapshot, flushed_position

_SESSION: Final = (
    "SET row_security = off;"
    "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0"
)
"""An error in place of rows that row security hides; no limits of the role's on the time a chunk may take."""

_PROBE: Final = """
SELECT c.relkind::text,
       coalesce((SELECT sum(greatest(leaf.reltuples, 0)) FROM pg_partition_tree(c.oid) t
                 JOIN pg_class leaf ON leaf.oid = t.relid WHERE t.isleaf), greatest(c.reltuples, 0))::bigint,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
       current_setting('wal_block_size')::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""


# Locks are read once: two looks would be of two moments. A prepared transaction's locks have no process. For an
# ACCESS EXCLUSIVE lock the chunk itself waits.
_WRITERS: Final = """
WITH held AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted),
     parts AS (SELECT %s::oid AS oid UNION SELECT relid FROM pg_partition_tree(%s::oid::regclass))
SELECT x.transactionid::text, coalesce('process ' || x.pid, 'prepared ' || quote_literal(p.gid), 'prepared')
FROM held x LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND EXISTS (
    SELECT FROM held l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
    WHERE l.locktype = 'relation' AND l.relation IN (SELECT oid FROM parts)
      AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
      AND l.virtualtransaction = x.virtualtransaction AND l.pid IS NOT DISTINCT FROM x.pid)
"""

# The oldest transaction that runs as far as is replayed here, and the next that may begin: age() counts from that one.
_RUNNING: Final = """
SELECT oldest, oldest + age(oldest::text::xid8::xid)
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest) s
"""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows in pgoutput's tuple form, in key order. ``last`` is the last one's key; ``done``: no row comes after it.

    Everything that ``snapshot`` sees was committed before ``upto_lsn``; on a standby, but for the one record that was
    being replayed at that moment: its transaction may be in the rows already, and comes once more from the stream.
    """

    rows: list[bytes]
    last: tuple[str, ...] | None
    done: bool
    snapshot: Snapshot
    upto_lsn: int


class ChunkReader:
    """Reads chunks of one table over a connection of its own (``connect.connect``). Make it with ``open``."""

    def __init__(self, connection: Connection, where: str | None) -> None:
        self._connection = connection
        self._where = where
        self._only = sql.SQL("ONLY ")
        self._wal = (16 << 20, 8192)
        self.standby = False
        """Whether the server is a standby: whether it was, when it was asked last."""
        self.estimate = 0

    @classmethod
    async def open(cls, connection: Connection, relation: Relation, where: str | None = None) -> Self:
        """Prepare the connection and look at the table.

        ``where`` is a condition in SQL. Raises SourceError when there is no such table, and psycopg's errors.
        """
        reader = cls(connection, where)
        await connection.execute(_SESSION)
        await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        await connection.set_read_only(True)
        found = await (await connection.execute(_PROBE, [relation.namespace, relation.name])).fetchone()
        if found is None:
            raise SourceError(f"there is no table {relation.table}", hint="correct the mapping's table")
        kind, reader.estimate, *wal = found
        reader._wal = (wal[0], wal[1])
        await reader._look_for_promotion()
        if kind == "p":
            reader._only = sql.SQL("")  # a partitioned table holds its rows in its partitions; other heirs are not it
        return reader

    async def read(
        self, relation: Relation, key_columns: Sequence[str], after: tuple[str, ...] | None, limit: int
    ) -> Chunk:
        """Read up to ``limit`` rows that come after the key ``after``, with ``relation``'s columns in their order.

        ``key_columns`` must be unique and not null; they decide the order, by the server's own comparison. Raises
        psycopg's errors.
        """
        standby = self.standby and await self._look_for_promotion()  # before the snapshot is taken
        async with self._connection.transaction():
            # The lock before the snapshot: a table rewritten between the two would look empty to this transaction.
            await self._connection.execute(
                sql.SQL("LOCK TABLE {}{} IN ACCESS SHARE MODE").format(*self._table(relation))
            )
            query = self._query(relation, key_columns, after, limit).as_bytes(self._connection)
            if raw := holds_any_bytes(self._connection):
                await self._connection.execute(RAW)
            result = (await self._connection.execute(query)).pgresult
            assert result is not None  # noqa: S101 - for the type checker; a SELECT has one
            columns = range(len(relation.columns))
            rows = [join_tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]
            if raw:
                await self._connection.execute("SET client_encoding = 'UTF8'")
            snapshot, upto_lsn = await self._position()
            if standby:
                snapshot = snapshot.bounded()
        last = key_texts(rows[-1], relation, key_columns) if rows else None
        return Chunk(rows, last, len(rows) < limit, snapshot, upto_lsn)

    async def writers(self, relation: Relation, among: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the transactions that have written something and may still write, or have written, to the table.

        By id, with the process (or the prepared transaction's name) in words; of ``among``, an earlier answer, those
        that have not ended. They hold their lock on the table until after they have become visible, however long a
        standby keeps them waiting.

        A standby does not know its primary's locks: there, all transactions that run count as one, under the id of the
        first that does not belong to them.
        """
        if self.standby:
            return await self._running(among)
        found: dict[str, str] = dict(
            await (await self._connection.execute(_WRITERS, [relation.oid, relation.oid])).fetchall()
        )
        return found if among is None else {xid: who for xid, who in among.items() if xid in found}

    async def snapshot(self) -> Snapshot:
        """Return what is visible now, as far as that is sure."""
        standby = self.standby and await self._look_for_promotion()
        row = await (await self._connection.execute("SELECT pg_current_snapshot()::text")).fetchone()
        assert row is not None  # noqa: S101 - for the type checker; such a SELECT has one
        snapshot = Snapshot.parse(row[0])
        return snapshot.bounded() if standby else snapshot

    async def _running(self, among: Mapping[str, str] | None) -> dict[str, str]:
        row = await (await self._connection.execute(_RUNNING)).fetchone()
        assert row is not None  # noqa: S101 - for the type checker; such a SELECT has one
        oldest, following = row
        limit = following if among is None else max(map(int, among), default=0)
        return {str(limit): f"the primary's, from {oldest} on"} if oldest < limit else {}

    async def _look_for_promotion(self) -> bool:
        """Return whether the server is a standby (still)."""
        row = await (await self._connection.execute("SELECT pg_is_in_recovery()")).fetchone()
        self.standby = row == (True,)
        return self.standby

    async def _position(self) -> tuple[Snapshot, int]:
        """Return the transaction's snapshot, and the end of the WAL after it.

        A primary's insert position lies behind every commit that is visible. A standby makes a commit visible while it
        replays its record, and counts the record as replayed after that: its replay position lies behind every visible
        commit but possibly that last one. The reader decodes only what is replayed, so there, nothing is streamed
        before it is visible.
        """
        query = """
            SELECT pg_current_snapshot()::text,
                   CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                        ELSE pg_current_wal_insert_lsn() END::text
        """
        row = await (await self._connection.execute(query)).fetchone()
        assert row is not None  # noqa: S101 - for the type checker; such a SELECT has one
        return Snapshot.parse(row[0]), flushed_position(parse_lsn(row[1]), *self._wal)

    def _table(self, relation: Relation) -> tuple[sql.SQL, sql.Identifier]:
        return self._only, sql.Identifier(relation.namespace, relation.name)

    def _query(
        self, relation: Relation, key_columns: Sequence[str], after: tuple[str, ...] | None, limit: int
    ) -> sql.Composed:
        keys = sql.SQL(", ").join(map(sql.Identifier, key_columns))
        conditions: list[sql.Composable] = []
        if after is not None:
            # A literal of unknown type takes the type of the column that it is compared with.
            texts = sql.SQL(", ").join(map(sql.Literal, after))
            conditions.append(sql.SQL("({}) > ({})").format(keys, texts))
        if self._where:
            conditions.append(sql.SQL("({}\n)").format(sql.SQL(self._where)))
        return sql.SQL("SELECT {} FROM {}{}{} ORDER BY {} LIMIT {}").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.columns),
            *self._table(relation),
            sql.SQL(" WHERE " if conditions else "") + sql.SQL(" AND ").join(conditions),
            keys,
            sql.Literal(limit),
        )


def key_texts(row: bytes, relation: Relation, key_columns: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of a row's key columns, none of which is NULL. Raises SourceError if one is not UTF-8."""
    names = [column.name for column in relation.columns]
    values = pick(row, [names.index(name) for name in key_columns])
    try:
        return tuple(value.decode() if isinstance(value, bytes) else "" for value in values)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{relation.table} cannot be copied in key order: a key in it is not UTF-8",
            hint=f"mend the key's text, or set backfill = false; the key is {', '.join(key_columns)}",
        ) from error
