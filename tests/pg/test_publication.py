"""The publication's life on a real server: what it covers, and which tables it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.errors import SourceError
from cdcsync.wal.catalog import rows, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.publication import ensure_publication
from cdcsync.wal.published import load_publication


@pytest.fixture
async def connection(pg: str) -> AsyncIterator[Connection]:
    """Give a connection to the test's database, with two tables in it."""
    async with await connect(pg) as it:
        await it.execute("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY)")
        yield it


def needs(connection: Connection, version: int) -> None:
    """Skip the test on servers before ``version``."""
    if server_version(connection) < version:
        pytest.skip(f"needs PostgreSQL {version // 10000}")


async def test_a_publication_is_made_and_kept_in_step(connection: Connection) -> None:
    """The list follows what is wanted, both ways, and all kinds of changes are published."""
    made = await ensure_publication(connection, "p", {"public.a": None}, create=True)
    assert (dict(made.tables), made.own_list, made.complete) == ({"public.a": None}, True, True)
    grown = await ensure_publication(connection, "p", {"public.a": None, "public.b": None}, create=True)
    assert set(grown.tables) == {"public.a", "public.b"}
    shrunk = await ensure_publication(connection, "p", {"public.b": None}, create=True)
    assert set(shrunk.tables) == {"public.b"}
    assert await load_publication(connection, "p") == shrunk


async def test_a_publication_in_step_is_left_alone(connection: Connection) -> None:
    """Nothing is written when nothing changes, also with row filters, which the server stores in its own words."""
    needs(connection, 150000)
    tables = {"public.a": "id>10 and id<>12", "public.b": None}
    await ensure_publication(connection, "p", tables, create=True)
    query = "SELECT oid, prrelid, xmin::text FROM pg_publication_rel ORDER BY 1"
    before = await rows(connection, query)
    again = await ensure_publication(connection, "p", tables, create=True)
    assert await rows(connection, query) == before
    assert again.tables["public.a"] == "((id > 10) AND (id <> 12))"
    assert (
        await ensure_publication(connection, "p", tables | {"public.b": "id > 1"}, create=True)
    ).tables != again.tables
    assert not any((await ensure_publication(connection, "p", dict.fromkeys(tables), create=True)).tables.values())


async def test_missing_kinds_of_changes_are_added(connection: Connection) -> None:
    """A publication of inserts alone would lose the rest silently."""
    await connection.execute("CREATE PUBLICATION p FOR TABLE a WITH (publish = 'insert')")
    with pytest.raises(SourceError, match="leaves out") as caught:
        await ensure_publication(connection, "p", {"public.a": None}, create=False)
    await connection.execute(caught.value.hint.encode())
    assert (await ensure_publication(connection, "p", {"public.a": None}, create=False)).complete
    await connection.execute("ALTER PUBLICATION p SET (publish = 'insert')")
    assert (await ensure_publication(connection, "p", {"public.a": None}, create=True)).complete


async def test_without_create_the_statement_is_told(connection: Connection) -> None:
    """Whoever may not change the database is given the SQL to run, and it does what is needed."""
    with pytest.raises(SourceError, match="no publication 'p'") as caught:
        await ensure_publication(connection, "p", {"public.a": None}, create=False)
    await connection.execute(caught.value.hint.partition(";")[0].encode())
    await ensure_publication(connection, "p", {"public.a": None}, create=False)
    with pytest.raises(SourceError, match=r"does not cover public\.b") as caught:
        await ensure_publication(connection, "p", {"public.a": None, "public.b": None}, create=False)
    await connection.execute(caught.value.hint.partition(";")[0].encode())
    covered = await ensure_publication(connection, "p", {"public.b": None}, create=False)
    assert set(covered.tables) == {"public.a", "public.b"}


async def test_a_publication_for_all_tables_is_only_read(connection: Connection) -> None:
    """Somebody's own publication is good when it covers the tables, and is not changed."""
    await connection.execute("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)")
    found = await ensure_publication(connection, "p", {"public.a": None}, create=True)
    assert not found.own_list
    assert set(found.tables) == {"public.a", "public.b"}


async def test_a_publication_for_a_schema_is_only_read(connection: Connection) -> None:
    """The same for whole schemas: tables elsewhere are asked for, not added."""
    needs(connection, 150000)
    await connection.execute("""
        CREATE SCHEMA s; CREATE TABLE s.c (id int PRIMARY KEY);
        CREATE PUBLICATION p FOR TABLES IN SCHEMA s WITH (publish_via_partition_root = true);
    """)
    assert not (await ensure_publication(connection, "p", {"s.c": None}, create=True)).own_list
    with pytest.raises(SourceError, match=r"does not cover public\.a"):
        await ensure_publication(connection, "p", {"public.a": None}, create=True)


async def test_unfit_tables_are_refused_before_they_are_published(connection: Connection) -> None:
    """All at once, each with its remedy, and nothing is changed: the applications go on working."""
    await connection.execute("""
        CREATE TABLE bare (id int);
        CREATE TABLE "Odd one" (id int NOT NULL, CONSTRAINT odd_id UNIQUE (id));
        CREATE TABLE lazy (id int PRIMARY KEY DEFERRABLE);
        CREATE TABLE nothing (id int PRIMARY KEY);
        ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE UNLOGGED TABLE light (id int PRIMARY KEY);
        CREATE VIEW seen AS SELECT 1 AS id;
        CREATE TABLE customers (id int PRIMARY KEY);
    """)
    names = ["bare", "Odd one", "lazy", "nothing", "light", "seen", "costumers", "a"]
    with pytest.raises(SourceError) as caught:
        await ensure_publication(connection, "p", {f"public.{name}": None for name in names}, create=True)
    text = caught.value.message
    for words in (
        "public.bare has no primary key",
        "ALTER TABLE public.bare ADD PRIMARY KEY",
        'ALTER TABLE public."Odd one" REPLICA IDENTITY USING INDEX odd_id;',
        "public.lazy has no primary key",
        "ALTER TABLE public.nothing REPLICA IDENTITY DEFAULT",
        "ALTER TABLE public.light SET LOGGED",
        "public.seen is a view",
        "no table public.costumers (did you mean public.customers?)",
    ):
        assert words in text
    assert "public.a " not in text
    assert await load_publication(connection, "p") is None


async def test_the_remedy_works(connection: Connection) -> None:
    """The suggested unique index makes the table fit, and its UPDATE goes on working."""
    await connection.execute("CREATE TABLE t (id int NOT NULL UNIQUE, v int); INSERT INTO t VALUES (1, 1)")
    with pytest.raises(SourceError) as caught:
        await ensure_publication(connection, "p", {"public.t": None}, create=True)
    await connection.execute(caught.value.message[caught.value.message.index("ALTER TABLE") :].encode())
    await ensure_publication(connection, "p", {"public.t": None}, create=True)
    await connection.execute("UPDATE t SET v = 2")


async def test_partitions_are_judged_each(connection: Connection) -> None:
    """A partition's own identity counts; the table is published as its root."""
    await connection.execute("""
        CREATE TABLE root (id int, day int) PARTITION BY LIST (day);
        CREATE TABLE good PARTITION OF root FOR VALUES IN (1);
        CREATE TABLE bad PARTITION OF root FOR VALUES IN (2);
        ALTER TABLE good ADD PRIMARY KEY (id);
    """)
    with pytest.raises(SourceError, match=r"public\.bad has no primary key") as caught:
        await ensure_publication(connection, "p", {"public.root": None}, create=True)
    assert "public.good" not in caught.value.message
    await connection.execute("ALTER TABLE bad ADD PRIMARY KEY (id)")
    assert set((await ensure_publication(connection, "p", {"public.root": None}, create=True)).tables) == {
        "public.root"
    }


async def test_children_by_inheritance_do_not_come_along(connection: Connection) -> None:
    """A child table of old-style inheritance has an identity of its own, and is not published with its parent."""
    await connection.execute("CREATE TABLE child () INHERITS (a); INSERT INTO child VALUES (1, 'x')")
    assert set((await ensure_publication(connection, "p", {"public.a": None}, create=True)).tables) == {"public.a"}
    await connection.execute("UPDATE child SET v = 'y'")


async def test_row_filters_outside_the_identity_are_refused(connection: Connection) -> None:
    """PostgreSQL takes such a filter and then fails the applications' updates; here it is refused before."""
    needs(connection, 150000)
    await connection.execute("INSERT INTO a VALUES (1, 'x')")
    tables = {"public.a": "v <> 'secret'"}
    with pytest.raises(SourceError, match=r"row filter of public\.a uses v") as caught:
        await ensure_publication(connection, "p", tables, create=True)
    assert await load_publication(connection, "p") is None
    await connection.execute("UPDATE a SET v = 'y'")
    await connection.execute(caught.value.hint.partition(";")[0].encode())
    await ensure_publication(connection, "p", tables, create=True)
    await connection.execute("UPDATE a SET v = 'z'")


async def test_broken_row_filters_are_refused(connection: Connection) -> None:
    """What the server says of a filter is passed on, with the filter."""
    needs(connection, 150000)
    with pytest.raises(SourceError, match="refuses") as caught:
        await ensure_publication(connection, "p", {"public.a": "nonsense ="}, create=True)
    assert "public.a: nonsense =" in caught.value.hint


async def test_row_filters_before_15_are_left_to_the_caller(connection: Connection) -> None:
    """Where the server has no row filters the table is published whole, and the answer says so."""
    if server_version(connection) >= 150000:
        pytest.skip("row filters came with PostgreSQL 15")
    found = await ensure_publication(connection, "p", {"public.a": "id > 1"}, create=True)
    assert found.tables == {"public.a": None}


async def test_generated_columns_in_a_full_identity(connection: Connection) -> None:
    """From 18 on, publishing such a table breaks its updates, so it is refused; before, it works."""
    await connection.execute("""
        CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
        ALTER TABLE t REPLICA IDENTITY FULL;
        INSERT INTO t VALUES (1);
    """)
    if server_version(connection) >= 180000:
        with pytest.raises(SourceError, match="generated column"):
            await ensure_publication(connection, "p", {"public.t": None}, create=True)
    else:
        await ensure_publication(connection, "p", {"public.t": None}, create=True)
    await connection.execute("UPDATE t SET id = 2")


async def test_foreign_owners_get_the_statement(pg: str, connection: Connection) -> None:
    """A role that does not own the tables is told what their owner has to run."""
    ((role,),) = await rows(connection, "SELECT 'r_' || md5(current_database())")
    await connection.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        async with await connect(make_conninfo(pg, user=role)) as stranger:
            with pytest.raises(SourceError, match="cannot be changed by this role") as caught:
                await ensure_publication(stranger, "p", {"public.a": None}, create=True)
    finally:
        await connection.execute(f"DROP ROLE {role}".encode())
    statement = caught.value.hint.partition(": ")[2]
    await connection.execute(statement.encode())
    await ensure_publication(connection, "p", {"public.a": None}, create=False)


async def test_the_danger_is_real(connection: Connection) -> None:
    """What is refused here is what breaks an application: its own UPDATE fails."""
    await connection.execute(
        "CREATE TABLE bare (id int); INSERT INTO bare VALUES (1); CREATE PUBLICATION p FOR TABLE bare"
    )
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        await connection.execute("UPDATE bare SET id = 2")
