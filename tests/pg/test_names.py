"""Tables and columns of any name, width and kind, through publication, stream, catalogs, copy and mapper."""

from __future__ import annotations

import pytest
from psycopg import sql

from cdcsync.config import MapConfig
from cdcsync.errors import SourceError
from cdcsync.mappers.compile import compile_mapper
from cdcsync.model import Relation
from cdcsync.wal.catalog import copy_key, load_relation
from cdcsync.wal.connect import connect
from cdcsync.wal.publication import ensure_publication
from cdcsync.wal.tuples import split_tuple
from tests.pg.copying import copy_of
from tests.pg.reading import TABLE, reading, set_up

NAMES = [
    "Mixed Case",
    'with"quote',
    "it's",
    "a.b",
    ".a",
    "größe 💶",
    "é" * 31 + "x",
    "select",
    "{braces} %s",
    "two\nlines",
]


@pytest.mark.parametrize("name", NAMES)
async def test_any_name(pg: str, name: str) -> None:
    """A table and its column of that name are published, streamed, described, copied and mapped by it."""
    table = sql.Identifier(name).as_string(None)
    given = {"table": f"public.{table}", "to": "crm.Thing", "key": {"K": "id"}, "fields": {"F": name}}
    config = MapConfig.model_validate(given)
    async with await connect(pg) as connection:
        db = await set_up(pg, connection, f"CREATE TABLE {table} (id int PRIMARY KEY, {table} text)")
        publication = await ensure_publication(connection, "cdcsync", {config.table: None}, create=False)
        assert set(publication.tables) == {config.table}
        async with reading(db) as reader:
            await db.execute(f"INSERT INTO {table} VALUES (1, 'x')")
            await reader.commits_reach(1)
        described = await load_relation(connection, "public", name, "cdcsync")
        assert await copy_key(connection, described) == ("id",)
    (insert,) = reader.changes
    assert insert.relation == described
    assert insert.relation.table == config.table
    copy = await copy_of(pg, name, "id")
    await copy.run()
    assert copy.raw == [insert.new]
    assert compile_mapper(config, described, {}).map(copy.raw[0]).fields == {"F": "x"}


async def test_columns_that_differ_by_case_only(pg: str) -> None:
    """They are different columns, and the mapping's spelling decides."""
    async with await connect(pg) as connection:
        db = await set_up(pg, connection, 'CREATE TABLE t (id int PRIMARY KEY, "a" int, "A" int)')
        async with reading(db) as reader:
            await db.execute("INSERT INTO t VALUES (1, 2, 3)")
            await reader.commits_reach(1)
    given = {"table": "t", "to": "crm.Thing", "key": {"K": "id"}, "fields": {"X": "a", "Y": "A"}}
    mapper = compile_mapper(MapConfig.model_validate(given), reader.changes[0].relation, {})
    assert mapper.map(reader.changes[0].new or b"").fields == {"X": 2, "Y": 3}


BARE = "CREATE TABLE bare (); ALTER TABLE bare REPLICA IDENTITY FULL;"


async def test_the_most_columns_and_none(pg: str) -> None:
    """1,600 columns come whole; a row without columns is a row."""
    columns = ", ".join(f"c{number} int" for number in range(1599))
    async with await connect(pg) as connection:
        db = await set_up(pg, connection, BARE + f"CREATE TABLE wide (id int PRIMARY KEY, {columns})")
        async with reading(db) as reader:
            await db.execute("INSERT INTO wide SELECT 7")
            await db.execute("UPDATE wide SET c1598 = 9")
            await db.execute("INSERT INTO bare DEFAULT VALUES")
            await reader.commits_reach(3)
    wide, changed, bare = (split_tuple(change.new or b"") for change in reader.changes)
    assert (len(wide), wide[0], wide[-1], changed[-1], bare) == (1600, b"7", None, b"9", [])


async def test_what_is_not_in_the_wal_is_refused_and_never_seen(pg: str) -> None:
    """Unlogged tables are refused by name; temporary ones hide others of their name from nobody but their session."""
    async with await connect(pg) as connection:
        db = await set_up(pg, connection, TABLE)
        await db.execute("CREATE UNLOGGED TABLE u (id int PRIMARY KEY)")
        with pytest.raises(SourceError, match=r"public\.u is not in the WAL, for it is unlogged"):
            await ensure_publication(connection, "cdcsync", {"public.t": None, "public.u": None}, create=True)
        async with reading(db) as reader:
            await db.execute("INSERT INTO u VALUES (1)")
            await db.execute("CREATE TEMP TABLE t (LIKE public.t INCLUDING ALL); INSERT INTO t VALUES (2)")
            with pytest.raises(SourceError, match=r"no table pg_temp\.t"):
                await ensure_publication(connection, "cdcsync", {"pg_temp.t": None}, create=True)
            await db.execute("INSERT INTO public.t VALUES (3)")
            await reader.commits_reach(1)
        assert reader.keys == [b"3"]


async def test_a_schema_with_a_dot_is_not_mistaken_for_another(pg: str) -> None:
    """``"a.b".c`` and ``a."b.c"`` are two tables: rows of the first never reach a mapping of the second."""
    async with await connect(pg) as connection:
        db = await set_up(pg, connection, TABLE)
        await db.execute('CREATE SCHEMA a; CREATE SCHEMA "a.b"; CREATE TABLE a."b.c" (id int PRIMARY KEY)')
        await db.execute(
            'CREATE TABLE "a.b".c (id int PRIMARY KEY); ALTER PUBLICATION cdcsync SET TABLE a."b.c", "a.b".c'
        )
        async with reading(db) as reader:
            await db.execute('INSERT INTO "a.b".c VALUES (1); INSERT INTO a."b.c" VALUES (2)')
            await reader.commits_reach(1)
    relations: list[Relation] = [change.relation for change in reader.changes]
    mapped = MapConfig.model_validate({"table": 'a."b.c"', "to": "crm.Thing", "key": {"K": "id"}}).table
    assert [relation.table == mapped for relation in relations] == [False, True]
