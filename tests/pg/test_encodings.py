"""Databases in other encodings than UTF-8: what comes is UTF-8, and what cannot be harms its own row alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cdcsync.config import MapConfig
from cdcsync.errors import DecodeError, RowRejectedError, SourceError
from cdcsync.mappers.compile import compile_mapper
from cdcsync.wal.catalog import load_relation
from cdcsync.wal.connect import connect
from cdcsync.wal.decode import Decoder
from cdcsync.wal.tuples import split_tuple
from tests.pg.copying import copy_of, execute
from tests.pg.reading import reading, set_up
from tests.servers import Server, fresh_database

NAMES = {
    "LATIN1": ("Größe", "Straße", "Zürich £"),
    "WIN1252": ("Größe", "Preis €", "„Zürich“ €"),
    "EUC_JP": ("東京", "名前", "日本語"),
    "SQL_ASCII": ("Größe", "Straße", "Zürich 💶"),
}
"""Per encoding, names of a table and a column, and a text that it has."""

NOT_UTF8 = "convert_from('\\xff41'::bytea, 'SQL_ASCII')"


@pytest.fixture
def encoded(pg_server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a fresh database in the test's encoding."""
    options = f"TEMPLATE template0 ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with fresh_database(pg_server, options) as dsn:
        yield dsn


@pytest.mark.parametrize(("encoded", "encoding"), [(one, one) for one in NAMES], indirect=["encoded"])
async def test_names_and_texts_come_in_utf8(encoded: str, encoding: str) -> None:
    """Names of tables and columns, new and old values: in the stream, in the catalogs and in the copy."""
    table, column, text = NAMES[encoding]
    async with await connect(encoded) as connection:
        db = await set_up(encoded, connection, f'CREATE TABLE "{table}" (id int PRIMARY KEY, "{column}" text)')
        await db.execute(f'ALTER TABLE "{table}" REPLICA IDENTITY FULL')
        async with reading(db) as reader:
            await db.execute(f"""INSERT INTO "{table}" VALUES (1, '{text}'); UPDATE "{table}" SET id = 2""")
            await reader.commits_reach(1)
        relation = await load_relation(connection, "public", table)
    insert, update = reader.changes
    assert insert.relation == relation
    assert relation.columns[1].name == column
    assert split_tuple(insert.new or b"") == split_tuple(update.old or b"") == [b"1", text.encode()]
    copy = await copy_of(encoded, table, "id")
    await copy.run()
    assert copy.raw == [update.new]


@pytest.mark.parametrize("encoded", ["SQL_ASCII"], indirect=True)
async def test_a_row_that_is_not_utf8_is_alone(encoded: str) -> None:
    """A database in SQL_ASCII holds any bytes: stream and copy go on, and the mapper parks that row alone."""
    async with await connect(encoded) as connection:
        db = await set_up(encoded, connection, "CREATE TABLE t (id int PRIMARY KEY, v text)")
        async with reading(db) as reader:
            await db.execute(f"INSERT INTO t VALUES (1, 'gut'), (2, {NOT_UTF8}), (3, 'größer')")
            await reader.commits_reach(1)
            assert reader.connections == 1
    streamed = [change.new or b"" for change in reader.changes]
    assert [split_tuple(raw)[1] for raw in streamed] == [b"gut", b"\xffA", "größer".encode()]
    copy = await copy_of(encoded, "t", "id", chunk_rows=2)
    await copy.run()
    assert copy.raw == streamed
    given = {"table": "t", "to": "crm.Thing", "key": {"K": "id"}, "fields": {"F": "v"}}
    by_text = await copy_of(encoded, "t", "v", chunk_rows=1)
    with pytest.raises(SourceError, match="not UTF-8"):
        await by_text.run()
    mapper = compile_mapper(MapConfig.model_validate(given), reader.changes[0].relation, {})
    assert [mapper.map(raw).fields["F"] for raw in (streamed[0], streamed[2])] == ["gut", "größer"]
    with pytest.raises(RowRejectedError) as caught:
        mapper.map(streamed[1])
    assert (caught.value.code, caught.value.field) == ("not-utf8", "F")


@pytest.mark.parametrize("encoded", ["SQL_ASCII"], indirect=True)
async def test_a_name_that_is_not_utf8_is_refused_with_a_remedy(encoded: str) -> None:
    """Nobody could write such a name into the config; catalogs and stream say what to do about it."""
    async with await connect(encoded) as connection:
        make = f"EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY)', {NOT_UTF8})"
        await connection.execute(f"DO $$ BEGIN {make}; END $$".encode())
        with pytest.raises(SourceError, match="not UTF-8") as caught:
            await set_up(encoded, connection, "CREATE TABLE t (id int PRIMARY KEY)")
        assert "rename" in caught.value.hint
    with pytest.raises(DecodeError, match="not UTF-8") as told:
        Decoder().decode(b"R\0\0\0\1public\0\xffA\0d\0\0")
    assert "rename" in told.value.hint


@pytest.mark.parametrize("encoded", ["WIN1252"], indirect=True)
async def test_a_character_without_utf8_stops_with_a_remedy(encoded: str) -> None:
    """WIN1252 takes bytes that it gives no meaning to; the server cannot send them, and the sentence holds no value."""
    async with await connect(encoded) as connection:
        db = await set_up(encoded, connection, "CREATE TABLE t (id int PRIMARY KEY, v text)")
        await db.execute("INSERT INTO t VALUES (1, chr(129))")
        with pytest.raises(SourceError, match="UTF-8 has not") as caught:
            async with reading(db):
                pass
    assert "0x81" not in str(caught.value)


def test_the_fixture_is_in_the_encoding(pg_server: Server) -> None:
    """The tests above do not run on UTF-8 by accident."""
    with fresh_database(pg_server, "TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'") as dsn:
        assert execute(dsn, "SHOW server_encoding") == [("LATIN1",)]
