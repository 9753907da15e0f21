"""A ``where`` that is evaluated on rows of the stream, for servers without row filters."""

from __future__ import annotations

import psycopg
import pytest

from cdcsync.config import PostgresConfig
from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.model import ABSENT, Rejected, Relation, Text
from cdcsync.wal.catalog import load_relation
from cdcsync.wal.connect import connect
from cdcsync.wal.decode import join_tuple
from cdcsync.wal.row_filter import AT_ONCE, RowFilter

TABLE = (
    """CREATE TABLE "Odd ""t" (id int PRIMARY KEY, "100% ""sure" bool, word varchar(5), amounts int[], large text)"""
)


async def judged(dsn: str, condition: str, *rows: tuple[Text, ...]) -> list[bool | Rejected]:
    """Make the table, and judge rows of it."""
    row_filter, relation = await filtering(dsn, condition)
    verdicts = await row_filter.judge(relation, {str(number): join_tuple(list(row)) for number, row in enumerate(rows)})
    await row_filter.close()
    return [verdicts[str(number)] for number in range(len(rows))]


async def filtering(dsn: str, condition: str) -> tuple[RowFilter, Relation]:
    """Make the table, and a filter on it."""
    async with await connect(dsn) as connection:
        await connection.execute(TABLE.encode())
        relation = await load_relation(connection, "public", 'Odd "t')
    return RowFilter(PostgresConfig.model_validate({"dsn": dsn}), 'public.Odd "t', condition), relation


async def test_it_says_what_the_server_would(each_pg: str) -> None:
    """True and false; NULL is not true, as in a WHERE; odd names; a comment at the end."""
    condition = """"Odd ""t"."100% ""sure" AND word LIKE 'a%' AND 3 = ANY (amounts) -- and so on"""
    assert await judged(
        each_pg,
        condition,
        (b"1", b"t", b"abc", b"{1,3}", ABSENT),
        (b"2", b"f", b"abc", b"{1,3}", ABSENT),
        (b"3", None, b"abc", b"{1,3}", ABSENT),
        (b"4", b"t", b"xbc", b"{1,3}", ABSENT),
        (b"5", b"t", b"abc", b"{}", ABSENT),
    ) == [True, False, False, False, False]


async def test_names_that_the_query_could_have_itself(each_pg: str) -> None:
    """The condition's names are the table's columns, whatever the query around it is made of."""
    async with await connect(each_pg) as connection:
        await connection.execute(b"CREATE TABLE u (id int PRIMARY KEY, n int, u int)")
        relation = await load_relation(connection, "public", "u")
    settings = PostgresConfig.model_validate({"dsn": each_pg})
    images = {"a": join_tuple([b"1", b"7", b"8"]), "b": join_tuple([b"2", b"8", b"8"])}
    row_filter = RowFilter(settings, "public.u", "n < u.u AND u.n = 7")
    assert await row_filter.judge(relation, images) == {"a": True, "b": False}
    await row_filter.close()
    with pytest.raises(SourceError, match='column "ordinality" does not exist'):
        await RowFilter(settings, "public.u", "ordinality = 1").check(relation)


async def test_a_condition_that_names_no_column(each_pg: str) -> None:
    """It is the same for all rows."""
    assert await judged(each_pg, "1 > 2", (b"1", None, None, None, ABSENT)) == [False]


async def test_what_cannot_be_said_is_said_of_that_row_alone(each_pg: str) -> None:
    """A division by zero, a value that the column cannot have any more, a large one that did not come."""
    zero, absent, fine, broken = await judged(
        each_pg,
        "10 / id > 1 AND length(large) > 2",
        (b"0", None, None, None, b"xxx"),
        (b"1", None, None, None, ABSENT),
        (b"1", None, None, None, b"xxx"),
        (b"one", None, None, None, b"xxx"),
    )
    assert zero == Rejected("where-failed", "PostgreSQL cannot evaluate where on the row: division by zero")
    assert isinstance(absent, Rejected)
    assert (absent.code, absent.field) == ("incomplete-row", "large")
    assert fine is True
    assert isinstance(broken, Rejected)
    assert "invalid input syntax" in broken.message


async def test_more_rows_than_one_query_is_asked_about(each_pg: str) -> None:
    """Each has its own verdict."""
    rows = [(str(number).encode(), None, None, None, ABSENT) for number in range(2 * AT_ONCE + 7)]
    assert await judged(each_pg, "id % 3 = 0", *rows) == [number % 3 == 0 for number in range(2 * AT_ONCE + 7)]


async def test_a_condition_that_the_server_does_not_understand(each_pg: str) -> None:
    """It is refused before anything is read."""
    row_filter, relation = await filtering(each_pg, "no_such = 1")
    with pytest.raises(SourceError, match='where, no_such = 1: column "no_such" does not exist'):
        await row_filter.check(relation)


async def test_a_lost_connection(each_pg: str) -> None:
    """The question fails for a while, and is asked anew on another connection."""
    row_filter, relation = await filtering(each_pg, "id > 1")
    row = {"2": join_tuple([b"2", None, None, None, ABSENT])}
    assert await row_filter.judge(relation, row) == {"2": True}
    with psycopg.connect(each_pg, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(SourceUnavailableError, match="cannot be asked which rows meet 'id > 1'"):
        await row_filter.judge(relation, row)
    assert await row_filter.judge(relation, row) == {"2": True}
    await row_filter.close()
