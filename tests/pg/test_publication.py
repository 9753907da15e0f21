"""The publication's life on a real server: what it covers, and which tables it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.errors import SourceError
from cdcsync.wal.catalog import load_relation, rows, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.publication import ensure_publication
from cdcsync.wal.published import load_publication
from tests.servers import needs


@pytest.fixture
async def connection(pg: str) -> AsyncIterator[Connection]:
    """Give a connection to the test's database, with two tables in it."""
    async with await connect(pg) as it:
        await it.execute("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY)")
        yield it


async def test_a_publication_is_made_and_kept_in_step(connection: Connection) -> None:
    """The list follows what is wanted, both ways, and all kinds of changes are published."""
    made = await ensure_publication(connection, "p", {"public.a": None}, create=True)
    assert (dict(made.tables), made.own_list, made.complete) == ({"public.a": None}, True, True)
    grown = await ensure_publication(connection, "p", {"public.a": None, "public.b": None}, create=True)
    assert set(grown.tables) == {"public.a", "public.b"}
    shrunk = await ensure_publication(connection, "p", {"public.b": None}, create=True)
    assert set(shrunk.tables) == {"public.b"}
    assert await load_publication(connection, "p") == shrunk


async def test_a_publication_in_step_is_left_alone(pg: str, connection: Connection) -> None:
    """Nothing is written when nothing changes, also with row filters, which the server stores in its own words."""
    needs(pg, 15)
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


async def test_a_publication_for_a_schema_is_only_read(pg: str, connection: Connection) -> None:
    """The same for whole schemas: tables elsewhere are asked for, not added."""
    needs(pg, 15)
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


async def test_row_filters_outside_the_identity_are_refused(pg: str, connection: Connection) -> None:
    """PostgreSQL takes such a filter and then fails the applications' updates; here it is refused before."""
    needs(pg, 15)
    await connection.execute("INSERT INTO a VALUES (1, 'x')")
    tables = {"public.a": "v <> 'secret'"}
    with pytest.raises(SourceError, match=r"row filter of public\.a uses v") as caught:
        await ensure_publication(connection, "p", tables, create=True)
    assert await load_publication(connection, "p") is None
    await connection.execute("UPDATE a SET v = 'y'")
    await connection.execute(caught.value.hint.partition(";")[0].encode())
    await ensure_publication(connection, "p", tables, create=True)
    await connection.execute("UPDATE a SET v = 'z'")


async def test_broken_row_filters_are_refused(pg: str, connection: Connection) -> None:
    """What the server says of a filter is passed on, with the filter."""
    needs(pg, 15)
    with pytest.raises(SourceError, match="refuses") as caught:
        await ensure_publication(connection, "p", {"public.a": "nonsense ="}, create=True)
    assert "public.a: nonsense =" in caught.value.hint


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


async def test_column_lists_stay(pg: str, connection: Connection) -> None:
    """A column list that somebody gave to a table of ours survives changes of ours, and has to hold what is read."""
    needs(pg, 15)
    await connection.execute("CREATE PUBLICATION p FOR TABLE a (id)")
    wanted = {"public.a": "id > 5", "public.b": None}
    found = await ensure_publication(connection, "p", wanted, {"public.a": frozenset(["id"])}, create=True)
    assert (found.lists, found.tables) == ({"public.a": ("id",)}, {"public.a": "(id > 5)", "public.b": None})
    with pytest.raises(SourceError, match=r"leaves out column v of public\.a") as caught:
        await ensure_publication(connection, "p", wanted, {"public.a": frozenset(["id", "v"])}, create=True)
    for statement in caught.value.hint.split(";")[:-1]:
        await connection.execute(statement.encode())
    mended = await ensure_publication(connection, "p", wanted, {"public.a": frozenset(["id", "v"])}, create=False)
    assert (mended.lists, mended.tables) == ({"public.a": ("id", "v")}, found.tables)


async def test_a_list_without_the_identity_is_refused(pg: str, connection: Connection) -> None:
    """PostgreSQL would fail the applications' updates, and deletes would not carry the key."""
    needs(pg, 15)
    await connection.execute("CREATE PUBLICATION p FOR TABLE a (v)")
    with pytest.raises(SourceError, match=r"leaves out column id of public\.a"):
        await ensure_publication(connection, "p", {"public.a": None}, {"public.a": frozenset(["v"])}, create=False)


async def test_filters_made_by_hand_have_to_be_the_mappings(pg: str, connection: Connection) -> None:
    """With create = false the filter is compared with the where, in the server's words; each difference is said."""
    needs(pg, 15)
    await connection.execute("CREATE PUBLICATION p FOR TABLE a WHERE (id>10 AND id IN (1, 12))")
    await ensure_publication(connection, "p", {"public.a": "id > 10 and id in (1,12)"}, create=False)
    with pytest.raises(SourceError, match="which the mapping does not say") as caught:
        await ensure_publication(connection, "p", {"public.a": None}, create=False)
    assert "(id > 10)" in caught.value.hint
    with pytest.raises(SourceError, match="and the mapping's where is id > 11"):
        await ensure_publication(connection, "p", {"public.a": "id > 11"}, create=False)
    await connection.execute("ALTER PUBLICATION p SET TABLE a")
    with pytest.raises(SourceError, match="and not only those of the mapping's where") as caught:
        await ensure_publication(connection, "p", {"public.a": "id > 11"}, create=False)
    for statement in caught.value.hint.split(";")[:-1]:
        await connection.execute(statement.encode())
    await ensure_publication(connection, "p", {"public.a": "id > 11"}, create=False)


GENERATED = "CREATE TABLE g (id int PRIMARY KEY, price int, total int GENERATED ALWAYS AS (price * 2) STORED)"


async def test_generated_columns_are_published_when_one_is_read(connection: Connection) -> None:
    """From 18 on the option is set when it becomes needed; before, and for virtual ones, a sentence says what to do."""
    await connection.execute(GENERATED.encode())
    read = {"public.g": frozenset(["id", "price"])}
    made = await ensure_publication(connection, "p", {"public.g": None}, read, create=True)
    assert not made.generated
    read = {"public.g": frozenset(["id", "total"])}
    if server_version(connection) < 180000:
        with pytest.raises(SourceError, match="column total is generated, which is sent from PostgreSQL 18 on"):
            await ensure_publication(connection, "p", {"public.g": None}, read, create=True)
        return
    with pytest.raises(SourceError, match=r"leaves out column total of public\.g") as caught:
        await ensure_publication(connection, "p", {"public.g": None}, read, create=False)
    assert caught.value.hint == 'ALTER PUBLICATION "p" SET (publish_generated_columns = stored);'
    assert (await ensure_publication(connection, "p", {"public.g": None}, read, create=True)).generated
    relation = await load_relation(connection, "public", "g", "p")
    assert [column.name for column in relation.columns] == ["id", "price", "total"]
    await connection.execute("ALTER TABLE g REPLICA IDENTITY FULL; INSERT INTO g VALUES (1, 1); UPDATE g SET price = 2")
    await ensure_publication(connection, "p", {"public.g": None}, read, create=True)
    await connection.execute("ALTER TABLE g ADD COLUMN seen int GENERATED ALWAYS AS (price) VIRTUAL")
    with pytest.raises(SourceError, match="column seen is VIRTUAL"):
        await ensure_publication(connection, "p", {"public.g": None}, {"public.g": frozenset(["seen"])}, create=True)


async def test_a_table_that_lost_its_identity_is_taken_out(connection: Connection) -> None:
    """As long as it is published, its applications' UPDATE fails: the start refuses it and lets them go on."""
    await ensure_publication(connection, "p", {"public.a": None, "public.b": None}, create=True)
    await connection.execute("INSERT INTO a VALUES (1, 'x'); ALTER TABLE a DROP CONSTRAINT a_pkey")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        await connection.execute("UPDATE a SET v = 'y'")
    with pytest.raises(SourceError, match=r"public\.a has no primary key") as caught:
        await ensure_publication(connection, "p", {"public.a": None, "public.b": None}, create=True)
    assert "public.a was taken out of publication 'p'" in caught.value.hint
    await connection.execute("UPDATE a SET v = 'y'")
    published = await load_publication(connection, "p")
    assert published is not None
    assert set(published.tables) == {"public.b"}
