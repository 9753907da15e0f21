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
    """The question is asked anew on another connection; where there is none, that is said."""
    row_filter, relation = await filtering(each_pg, "id > 1")
    row = {"2": join_tuple([b"2", None, None, None, ABSENT])}
    assert await row_filter.judge(relation, row) == {"2": True}
    with psycopg.connect(each_pg, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await row_filter.judge(relation, row) == {"2": True}
    await row_filter.close()
    nowhere = PostgresConfig.model_validate({"dsn": "host=127.0.0.1 port=9"})
    with pytest.raises(SourceUnavailableError, match="cannot connect"):
        await RowFilter(nowhere, "public.t", "id > 1").judge(relation, row)


async def test_errors_of_any_class_are_the_row_s(each_pg: str) -> None:
    """A limit of the program, a check of a domain and an exception of a function park the row, and no other."""
    async with await connect(each_pg) as connection:
        await connection.execute(b"CREATE TABLE f (id int PRIMARY KEY, word text, n int)")
        await connection.execute(
            b"CREATE FUNCTION picky(int) RETURNS bool LANGUAGE plpgsql AS"
            b" $$ BEGIN IF $1 = 0 THEN RAISE 'not this one'; END IF; RETURN true; END $$"
        )
        await connection.execute(b"CREATE DOMAIN odd AS int CHECK (VALUE % 2 = 1)")
        relation = await load_relation(connection, "public", "f")
    settings = PostgresConfig.model_validate({"dsn": each_pg})
    good = join_tuple([b"1", b"a b", b"1"])
    long = " ".join(f"w{number}" for number in range(200_000)).encode()
    for condition, bad in (
        ("picky(n)", join_tuple([b"2", b"a", b"0"])),
        ("n::odd = 1", join_tuple([b"2", b"a", b"2"])),
        ("to_tsvector('simple', word) IS NOT NULL", join_tuple([b"2", long, b"1"])),
    ):
        row_filter = RowFilter(settings, "public.f", condition)
        verdicts = await row_filter.judge(relation, {"1": good, "2": bad, "3": good})
        assert (verdicts["1"], verdicts["3"]) == (True, True), condition
        refused = verdicts["2"]
        assert isinstance(refused, Rejected)
        assert refused.code == "where-failed"
        await row_filter.close()


async def test_only_what_the_condition_may_mean_has_to_be_there(each_pg: str) -> None:
    """A column whose name is part of another one's may be absent; the row as a whole is all of its columns."""
    async with await connect(each_pg) as connection:
        await connection.execute(b"CREATE TABLE w (id int PRIMARY KEY, body text, body_type text)")
        relation = await load_relation(connection, "public", "w")
    settings = PostgresConfig.model_validate({"dsn": each_pg})
    rows = {"1": join_tuple([b"1", ABSENT, b"x"]), "2": join_tuple([b"2", None, b"x"])}
    row_filter = RowFilter(settings, "public.w", "w.body_type = 'x'")
    assert await row_filter.judge(relation, rows) == {"1": True, "2": True}
    await row_filter.close()
    row_filter = RowFilter(settings, "public.w", "w IS NOT NULL")
    verdicts = await row_filter.judge(relation, rows)
    assert verdicts["2"] is False
    assert isinstance(verdicts["1"], Rejected)
    await row_filter.close()
