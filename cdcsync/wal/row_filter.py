"""A mapping's ``where`` on PostgreSQL 13 and 14, whose publications have no row filters.

The stream brings all rows of the table, and the server is asked about those that are to be sent: it evaluates the
condition on the values that came with the stream, not on the table's row of today. Unlike the row filter of a later
server it does not see the row before a change: whether the CRM has the row is for the ledger to say.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg
from psycopg import sql

from cdcsync.config import PostgresConfig
from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.model import ABSENT, INCOMPLETE_ROW, Rejected, Relation, Text
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import Connection, connect_again
from cdcsync.wal.decode import split_tuple

AT_ONCE: Final = 1_000
"""Rows that one query is asked about."""

_NUMBER: Final = '"cdcsync: number of the row"'
"""No column's name, so that a condition cannot mean it."""

_TYPES = "SELECT format_type(t.oid, t.mod) FROM unnest(%s::oid[], %s::int4[]) WITH ORDINALITY t(oid, mod, n) ORDER BY n"


class RowFilter:
    """The condition of one table, as the server understands it."""

    def __init__(self, settings: PostgresConfig, table: str, condition: str) -> None:
        self._settings = settings
        self._table = table.partition(".")[2]
        self._condition = condition
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._queries: dict[Relation, str] = {}

    async def judge(self, relation: Relation, images: Mapping[str, bytes]) -> dict[str, bool | Rejected]:
        """Say of each row, a tuple of ``relation`` by its key, whether it meets the condition.

        A row about which that cannot be said is to be rejected. Raises SourceUnavailableError.
        """
        async with self._turn:
            try:
                return await self._judge(relation, images)
            except (psycopg.Error, SourceUnavailableError) as error:
                # A connection that nobody has used for a while may have been ended; nothing is known of another one.
                await self.close()
                if not isinstance(error, psycopg.Error):
                    raise
            try:
                return await self._judge(relation, images)
            except psycopg.Error as error:
                await self.close()
                raise self._unavailable(error) from error

    def _unavailable(self, error: psycopg.Error) -> SourceUnavailableError:
        return SourceUnavailableError(
            f"PostgreSQL cannot be asked which rows meet {self._condition!r}: {str(error).strip()}"
        )

    async def _judge(self, relation: Relation, images: Mapping[str, bytes]) -> dict[str, bool | Rejected]:
        verdicts: dict[str, bool | Rejected] = {}
        pending: dict[str, list[str | None]] = {}
        places = _named(self._condition, self._table, relation)
        for key, image in images.items():
            values = split_tuple(image)
            given = {relation.columns[place].name: values[place] for place in places}
            refused = _unfit(given)
            if refused is not None:
                verdicts[key] = refused
            else:
                pending[key] = [_decoded(value) for value in given.values()]
        keys = list(pending)
        for start in range(0, len(keys), AT_ONCE):
            verdicts |= await self._ask(relation, {key: pending[key] for key in keys[start : start + AT_ONCE]})
        return verdicts

    async def check(self, relation: Relation) -> None:
        """See that the server understands the condition, and keep no connection.

        Raises SourceError or SourceUnavailableError.
        """
        try:
            query = await self._query(relation)
            await rows(await self._open(), query, [[] for _ in _named(self._condition, self._table, relation)])
        except psycopg.Error as error:
            if _passing(error):
                raise self._unavailable(error) from error
            raise SourceError(
                f"PostgreSQL does not understand the mapping's where, {self._condition}: {error.diag.message_primary}",
                hint="it is a condition in SQL on the table's columns",
            ) from error
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection; the next question opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect_again(self._settings)
        return self._connection

    async def _query(self, relation: Relation) -> str:
        """Return the query that takes the values of the columns that the condition may name, as arrays of texts."""
        connection = await self._open()
        if relation not in self._queries:
            columns = [relation.columns[place] for place in _named(self._condition, self._table, relation)]
            parameters = [[column.type_oid for column in columns], [column.typmod for column in columns]]
            types = [name for (name,) in await rows(connection, _TYPES, parameters)]
            names = [sql.Identifier(column.name).as_string(connection) for column in columns]
            cast = ", ".join(f"u.{name}::{kind} AS {name}" for name, kind in zip(names, types, strict=True))
            alias = sql.Identifier(self._table).as_string(connection)
            before = f"SELECT ({self._condition}\n) IS TRUE FROM (SELECT {_NUMBER}, {cast} FROM unnest("  # noqa: S608 - the config's own SQL
            after = f") WITH ORDINALITY AS u({', '.join(names)}, {_NUMBER})) AS {alias} ORDER BY {_NUMBER}"
            arrays = ", ".join(["%s::text[]"] * len(names))
            self._queries[relation] = before.replace("%", "%%") + arrays + after.replace("%", "%%")
        return self._queries[relation]

    async def _ask(self, relation: Relation, values: Mapping[str, Sequence[str | None]]) -> dict[str, bool | Rejected]:
        """Ask about some rows; where the server cannot answer, about fewer, until it is clear which one is to blame."""
        arrays = [list(column) for column in zip(*values.values(), strict=True)]
        try:
            answers = await rows(await self._open(), await self._query(relation), arrays)
        except psycopg.Error as error:
            if _passing(error):
                raise
            # A type may have another name by now.
            self._queries.pop(relation, None)
            if len(values) == 1:
                return dict.fromkeys(values, _refused(error))
            keys, half = list(values), len(values) // 2
            verdicts = await self._ask(relation, {key: values[key] for key in keys[:half]})
            return verdicts | await self._ask(relation, {key: values[key] for key in keys[half:]})
        return {key: meets for key, (meets,) in zip(values, answers, strict=True)}


def _passing(error: psycopg.Error) -> bool:
    """Whether it is the connection or the server that fails, and not the evaluation (SQLSTATE classes)."""
    return error.sqlstate is None or error.sqlstate[:2] in {"08", "40", "53", "55", "57", "58"}


def _named(condition: str, table: str, relation: Relation) -> list[int]:
    """Return the columns whose names occur in a condition, which may be more than those that it means."""
    text = condition.replace('""', '"').lower()
    everything = list(range(len(relation.columns)))
    # Names with escapes, and the row as a whole.
    if 'u&"' in text or re.search(rf"{_word(table)}(?!\"?\s*\.)", text):
        return everything
    return [place for place in everything if re.search(_word(relation.columns[place].name), text)] or [0]


def _word(name: str) -> str:
    return rf"(?<![\w$]){re.escape(name.lower())}(?![\w$])"


def _unfit(given: Mapping[str, Text]) -> Rejected | None:
    for column, value in given.items():
        if value is ABSENT:
            return Rejected(
                INCOMPLETE_ROW,
                f"the stream did not carry the unchanged large value of {column}, by which where decides whether the"
                " row is sent; with backfill = true it is read from the table, else any write to that column sends it",
                column,
            )
        try:
            _decoded(value)
        except UnicodeDecodeError:
            return Rejected("where-failed", f"{column} is not UTF-8, and where cannot be evaluated on it", column)
    return None


def _decoded(value: Text) -> str | None:
    assert value is not ABSENT  # noqa: S101 — for the type checker; rows with absent values were left out
    return None if value is None else str(value, "utf-8")


def _refused(error: psycopg.Error) -> Rejected:
    return Rejected("where-failed", f"PostgreSQL cannot evaluate where on the row: {error.diag.message_primary}")
