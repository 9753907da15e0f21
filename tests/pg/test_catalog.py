"""Tables and types read from the catalogs, compared with what the stream itself says of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.config import MapConfig
from cdcsync.errors import ConfigError, SourceError, SourceUnavailableError
from cdcsync.foreign_keys import follow, in_order
from cdcsync.model import Column, Relation
from cdcsync.route import Route
from cdcsync.wal.catalog import copy_key, load_relation, load_types, rows, server_version
from cdcsync.wal.connect import Connection, connect, until_closed
from cdcsync.wal.decode import Decoder

TEXT, INT8, NUMERIC, INT4_ARRAY, TEXT_ARRAY = 25, 20, 1700, 1007, 1009


@pytest.fixture
async def connection(pg: str) -> AsyncIterator[Connection]:
    """Give a connection to the test's database."""
    async with await connect(pg) as it:
        yield it


async def streamed_relations(connection: Connection, publication: str) -> dict[str, Relation]:
    """Return the relations that the stream tells, by table, from a slot made before the changes."""
    decoder = Decoder()
    query = "SELECT data FROM pg_logical_slot_get_binary_changes('s_' || pg_backend_pid(), NULL, NULL, VARIADIC %s)"
    options = ["proto_version", "1", "publication_names", publication]
    messages = [decoder.decode(bytes(data)) for (data,) in await rows(connection, query, [options])]
    return {message.table: message for message in messages if isinstance(message, Relation)}


async def make_slot(connection: Connection) -> None:
    """Make this connection's slot; the ``pg`` fixture drops it."""
    await connection.execute("SELECT pg_create_logical_replication_slot('s_' || pg_backend_pid(), 'pgoutput')")


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL", "USING INDEX odd_code", "NOTHING"])
async def test_relations_read_as_the_stream_tells_them(connection: Connection, identity: str) -> None:
    """Names, types, modifiers and identity flags agree with the relation message, whatever happened to the table."""
    await connection.execute("""
        CREATE TABLE "Odd ""name" (
            gone int, b numeric(10, 2) NOT NULL, "a.c" varchar(7) NOT NULL, id bigint,
            twice numeric GENERATED ALWAYS AS (b * 2) STORED, code text NOT NULL,
            PRIMARY KEY (id, "a.c") INCLUDE (b)
        );
        CREATE UNIQUE INDEX odd_code ON "Odd ""name" (code) INCLUDE (b);
        ALTER TABLE "Odd ""name" DROP COLUMN gone, ADD COLUMN late timestamptz(3);
        CREATE PUBLICATION p FOR TABLE "Odd ""name" WITH (publish = 'insert');
    """)
    await connection.execute(f'ALTER TABLE "Odd ""name" REPLICA IDENTITY {identity}'.encode())
    await make_slot(connection)
    await connection.execute("""INSERT INTO "Odd ""name" (b, "a.c", id, code) VALUES (1, 'x', 1, 'c')""")
    told = await streamed_relations(connection, "p")
    assert await load_relation(connection, "public", 'Odd "name') == told['public.Odd "name']


async def test_column_lists_count(connection: Connection) -> None:
    """With a publication's column list only its columns are the relation's."""
    if server_version(connection) < 150000:
        pytest.skip("column lists came with PostgreSQL 15")
    await connection.execute("""
        CREATE TABLE t (id int PRIMARY KEY, secret text, name text);
        CREATE PUBLICATION p FOR TABLE t (id, name);
    """)
    await make_slot(connection)
    await connection.execute("INSERT INTO t VALUES (1, 'x', 'y')")
    relation = await load_relation(connection, "public", "t", "p")
    assert [column.name for column in relation.columns] == ["id", "name"]
    assert relation == (await streamed_relations(connection, "p"))["public.t"]
    assert len((await load_relation(connection, "public", "t", "another")).columns) == 3


async def test_partitioned_tables_have_their_roots_shape(connection: Connection) -> None:
    """A partitioned table published through its root reads as the root."""
    await connection.execute("""
        CREATE TABLE root (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE leaf (day date NOT NULL, id int NOT NULL);
        ALTER TABLE root ATTACH PARTITION leaf FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
        CREATE PUBLICATION p FOR TABLE root WITH (publish_via_partition_root = true);
    """)
    await make_slot(connection)
    await connection.execute("INSERT INTO root VALUES (1, '2026-05-05')")
    told = await streamed_relations(connection, "p")
    assert await load_relation(connection, "public", "root") == told["public.root"]


async def test_a_deferrable_key_is_no_identity(connection: Connection) -> None:
    """A deferrable primary key cannot identify rows, so its columns are not flagged."""
    await connection.execute("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)")
    relation = await load_relation(connection, "public", "t")
    assert relation.columns == (Column("id", 23, -1, in_identity=False),)


async def test_missing_tables_and_views_are_refused(connection: Connection) -> None:
    """What is no table is SourceError."""
    await connection.execute("CREATE VIEW v AS SELECT 1")
    for name in ("nothing", "v"):
        with pytest.raises(SourceError, match=f"no table public.{name}"):
            await load_relation(connection, "public", name)


async def test_types(connection: Connection) -> None:
    """Domains lead to their builtin base through any number of domains, arrays to text[]; everything else is text."""
    await connection.execute("""
        CREATE TYPE mood AS ENUM ('fine');
        CREATE DOMAIN amount AS numeric(10, 2);
        CREATE DOMAIN price AS amount CHECK (VALUE > 0);
        CREATE DOMAIN feeling AS mood;
        CREATE DOMAIN numbers AS int[];
        CREATE DOMAIN feelings AS mood[];
        CREATE TYPE pair AS (a int, b text);
    """)
    types = await load_types(connection)
    names = (
        "mood",
        "amount",
        "price",
        "feeling",
        "numbers",
        "feelings",
        "pair",
        "mood[]",
        "price[]",
        "information_schema.cardinal_number",
    )
    found = await rows(connection, "SELECT n, n::regtype::oid FROM unnest(%s::text[]) AS n", [list(names)])
    assert {name: types[oid] for name, oid in found} == {
        "mood": TEXT,
        "amount": NUMERIC,
        "price": NUMERIC,
        "feeling": TEXT,
        "numbers": INT4_ARRAY,
        "pair": TEXT,
        "feelings": TEXT_ARRAY,
        "mood[]": TEXT_ARRAY,
        "price[]": TEXT_ARRAY,
        "information_schema.cardinal_number": 23,
    }
    assert INT8 not in types


async def test_a_copy_reads_in_the_order_of_the_best_unique_index(connection: Connection) -> None:
    """Primary key, else replica identity, else any unique index that gives each row a place; no other will do."""
    await connection.execute(
        """
        CREATE TABLE primary_one (a int, b int, c int, PRIMARY KEY (c, a) INCLUDE (b));
        CREATE TABLE identity_one (a int NOT NULL UNIQUE, b int NOT NULL, c int NOT NULL, UNIQUE (c, b));
        ALTER TABLE identity_one REPLICA IDENTITY USING INDEX identity_one_c_b_key;
        CREATE TABLE any_one (a int UNIQUE, b int NOT NULL, c int NOT NULL, UNIQUE (c, b) INCLUDE (a));
        CREATE TABLE parted (a int NOT NULL, b int NOT NULL, UNIQUE (a, b)) PARTITION BY RANGE (a);
        CREATE TABLE none (a int UNIQUE, b int NOT NULL, c int NOT NULL, d int NOT NULL UNIQUE DEFERRABLE);
        CREATE UNIQUE INDEX ON none (b) WHERE c > 0;
        CREATE UNIQUE INDEX ON none (abs(c));
        CREATE INDEX ON none (b);
        """
    )
    for table, key in (
        ("primary_one", ("c", "a")),
        ("identity_one", ("c", "b")),
        ("any_one", ("c", "b")),
        ("parted", ("a", "b")),
    ):
        assert await copy_key(connection, await load_relation(connection, "public", table)) == key
    with pytest.raises(
        SourceError, match=r'(?s)neither a primary key nor.*ALTER TABLE "public"."none" ADD PRIMARY KEY'
    ):
        await copy_key(connection, await load_relation(connection, "public", "none"))
    hidden = await load_relation(connection, "public", "primary_one")
    with pytest.raises(SourceError, match="published columns"):
        await copy_key(connection, replace(hidden, columns=hidden.columns[:2]))


async def test_formats_are_pinned_against_role_settings(pg: str) -> None:
    """Whatever a role or database sets, what is printed stays the same; other options of the user are kept."""
    async with await connect(pg) as first:
        ((database,),) = await rows(first, "SELECT current_database()")
        for setting in ("datestyle = 'German'", "extra_float_digits = -5", "bytea_output = 'escape'"):
            await first.execute(f'ALTER DATABASE "{database}" SET {setting}'.encode())
    async with await connect(make_conninfo(pg, options="-c work_mem=77kB")) as second:
        query = "SELECT '2026-02-01'::date::text, 0.1::float8::text, '\\x00'::bytea::text, current_setting('work_mem')"
        assert await rows(second, query) == [("2026-02-01", "0.1", "\\x00", "77kB")]


async def test_unreachable_servers_and_bad_strings(tmp_path: object) -> None:
    """No server is SourceUnavailableError, no connection string is ConfigError."""
    with pytest.raises(SourceUnavailableError, match="cannot connect"):
        await connect(f"host={tmp_path}")
    with pytest.raises(ConfigError):
        await connect("no connection string")


async def test_the_end_of_an_idle_connection_is_noticed(pg: str, connection: Connection) -> None:
    """Waiting for a connection's end returns when the server ends it."""
    async with await connect(pg) as other:
        await connection.execute(b"SELECT pg_terminate_backend(%d)" % other.info.backend_pid)
        await until_closed(other)


async def test_foreign_keys_give_an_order_that_the_config_leaves_open(connection: Connection) -> None:
    """A mapping follows the one that its table refers to by that one's key; what the config says counts more."""
    await connection.execute("CREATE TABLE company (id int PRIMARY KEY, code text UNIQUE)")
    await connection.execute(
        "CREATE TABLE person (id int PRIMARY KEY, company int REFERENCES company, code text REFERENCES company (code),"
        " boss int REFERENCES person)"
    )
    plain = {"key": {"Key": "id"}, "fields": {"Name": "code"}}
    referring = {"Name": "code", "Company": {"column": "company", "ref": "a.Account.Key"}}
    given = [
        {"table": "person", "to": "a.Contact", **plain},
        {"table": "company", "to": "a.Account", **plain},
        {"table": "person", "to": "a.Lead", **plain, "fields": referring},
        {"table": "company", "to": "b.companies", **plain},
    ]
    routes = [Route(MapConfig.model_validate(one), {}) for one in given]
    oids = {route.name: (await load_relation(connection, "public", route.config.table[7:])).oid for route in routes}
    await follow(connection, routes, oids)
    person, company, lead, _ = routes
    assert [(one.column, one.parent) for one in person.follows] == [("boss", person), ("company", company)]
    assert [(one.column, one.parent) for one in lead.follows] == [("boss", lead)]
    assert in_order(routes)[0] is company
