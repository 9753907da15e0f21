"""Values of every type through a real server: the stream's texts, SELECT's texts and the golden ones are the same."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import sql

from cdcsync.config import MapConfig, PostgresConfig
from cdcsync.errors import ConfigError, RowRejectedError
from cdcsync.mappers.compile import compile_mapper
from cdcsync.model import Change, Rejected, Relation, Text, Value
from cdcsync.wal.catalog import load_relation, load_types, server_version
from cdcsync.wal.connect import Connection, connect
from cdcsync.wal.row_filter import RowFilter
from cdcsync.wal.tuples import split_tuple
from tests.pg.golden import CASES, DEFINITIONS, Case, Refused
from tests.pg.reading import reading, set_up
from tests.servers import Server, fresh_database

EXTENSIONS = sorted({case.extension for case in CASES if case.extension})


@dataclass(slots=True)
class Told:
    """What became of a case: the texts of ``v`` in the tuples of its row's life, and what the CRM gets."""

    streamed: list[Text] = field(default_factory=list)
    selected: bytes | None = None
    value: Value | Refused = None
    relation: Relation | None = None
    catalogued: Relation | None = None
    filtered: bool | Rejected = False
    """Whether the value is what it is, to a ``where`` that the server evaluates on what came with the stream."""
    missing: str | None = None
    """Why this server does not have the type."""


@pytest.fixture(scope="session")
def told_by() -> dict[int, list[Told]]:
    """Keep what each server told, by the server's identity: all cases go through one stream."""
    return {}


@pytest.fixture
def told(each_server: Server, told_by: dict[int, list[Told]]) -> list[Told]:
    """Give what the server tells of each of ``CASES``, at its place."""
    key = id(each_server)
    if key not in told_by:
        with fresh_database(each_server) as dsn:
            told_by[key] = asyncio.run(_tell(dsn))
    return told_by[key]


@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{case.type} {case.text[:20]}" for case in CASES])
def test_a_value_of_each_type(told: list[Told], place: int) -> None:
    """Inserted, updated and deleted: new and old tuples print it as SELECT does; the CRM's value is the golden one."""
    case, found = CASES[place], told[place]
    if found.missing:
        pytest.skip(found.missing)
    golden = case.text.encode()
    assert found.streamed == [golden] * 4
    assert found.selected == golden
    assert found.value == case.value
    assert type(found.value) is type(case.value)
    assert found.relation == found.catalogued
    assert found.filtered is True


async def _tell(dsn: str) -> list[Told]:
    async with await connect(dsn) as connection:
        told = [Told() for _ in CASES]
        absent = await _extend(connection)
        await connection.execute(DEFINITIONS.encode())
        for place, case in enumerate(CASES):
            told[place].missing = await _make_table(connection, place, case, absent)
        here = [place for place, one in enumerate(told) if not one.missing]
        db = await set_up(dsn, connection, "SELECT 1")
        async with reading(db) as reader:
            await db.execute(
                "BEGIN;" + ";".join(f"INSERT INTO c{n} VALUES (1, {CASES[n].sql})" for n in here) + ";COMMIT"
            )
            for place in here:
                told[place].selected = await _printed(connection, f"SELECT v FROM c{place}")
            await db.execute("BEGIN;" + ";".join(f"UPDATE c{n} SET w = 1" for n in here) + ";COMMIT")
            await db.execute("BEGIN;" + ";".join(f"DELETE FROM c{n}" for n in here) + ";COMMIT")
            await reader.commits_reach(3)
        types = await load_types(connection)
        assert {oid: reader.source.types[oid] for oid in types} == types
        lives = _lives(reader.changes)
        for place in here:
            one = told[place]
            one.relation = lives[place][0].relation
            one.catalogued = await load_relation(connection, "public", f"c{place}", "cdcsync")
            one.streamed = [split_tuple(raw)[1] for change in lives[place] for raw in (change.old, change.new) if raw]
            one.value = _mapped(lives[place][0], types)
            one.filtered = await _filtered(dsn, place, lives[place][0])
    return told


async def _filtered(dsn: str, place: int, insert: Change) -> bool | Rejected:
    """Let the server say whether the value, as it came, prints as the golden text."""
    golden = sql.Literal(CASES[place].text).as_string()
    settings = PostgresConfig.model_validate({"dsn": dsn})
    row_filter = RowFilter(settings, f"public.c{place}", f"format('%s', c{place}.v) = {golden}")
    try:
        return (await row_filter.judge(insert.relation, {"1": insert.new or b""}))["1"]
    finally:
        await row_filter.close()


async def _printed(connection: Connection, query: str) -> bytes | None:
    """Return the text of a query's one value, as it came."""
    result = (await connection.execute(query.encode())).pgresult
    assert result is not None
    return result.get_value(0, 0)


async def _extend(connection: Connection) -> Mapping[str, str]:
    """Make the extensions; returns why, for those that this server does not have."""
    absent = {}
    for extension in EXTENSIONS:
        try:
            await connection.execute(f"CREATE EXTENSION {extension}".encode())
        except psycopg.Error as error:
            absent[extension] = str(error.diag.message_primary)
    return absent


async def _make_table(connection: Connection, place: int, case: Case, absent: Mapping[str, str]) -> str | None:
    """Make the case's table, and try the value; returns why this server does not have the type."""
    if case.extension is not None and case.extension in absent:
        return absent[case.extension]
    if server_version(connection) // 10000 < case.since:
        return f"{case.type} has {case.text} since PostgreSQL {case.since}"
    try:
        await connection.execute(f"SELECT ({case.sql})::{case.type}".encode())
    except psycopg.errors.FeatureNotSupported as error:
        return str(error.diag.message_primary)  # built without XML
    await connection.execute(f"CREATE TABLE c{place} (id int PRIMARY KEY, v {case.type}, w int)".encode())
    await connection.execute(f"ALTER TABLE c{place} REPLICA IDENTITY FULL".encode())
    return None


def _lives(changes: list[Change]) -> Mapping[int, list[Change]]:
    """Sort changes by the place of their table's case."""
    lives: dict[int, list[Change]] = defaultdict(list)
    for change in changes:
        lives[int(change.relation.name.removeprefix("c"))].append(change)
    return lives


def _mapped(insert: Change, types: Mapping[int, int]) -> Value | Refused:
    given = {"table": insert.relation.name, "to": "crm.Thing", "key": {"K": "id"}, "fields": {"F": "v"}}
    assert insert.new is not None
    try:
        return compile_mapper(MapConfig.model_validate(given), insert.relation, types).map(insert.new).fields["F"]
    except RowRejectedError as error:
        return Refused(error.code)
    except ConfigError:
        return Refused("config")


async def test_an_enum_that_grows_while_streaming(each_pg: str) -> None:
    """A value that is added or renamed meanwhile comes as its new name, and old rows have it in later changes."""
    async with await connect(each_pg) as connection:
        await connection.execute("CREATE TYPE mood AS ENUM ('sad')")
        db = await set_up(each_pg, connection, "CREATE TABLE t (id int PRIMARY KEY, v mood, w int)")
        await db.execute("ALTER TABLE t REPLICA IDENTITY FULL")
        async with reading(db) as reader:
            await db.execute("INSERT INTO t VALUES (1, 'sad')")
            await db.execute("ALTER TYPE mood ADD VALUE 'fröhlich' BEFORE 'sad'")
            await db.execute("INSERT INTO t VALUES (2, 'fröhlich')")
            await reader.commits_reach(2)
            await db.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
            await db.execute("UPDATE t SET w = 1 WHERE id = 1")
            await reader.commits_reach(3)
    texts = [
        (split_tuple(change.old)[1] if change.old else None, split_tuple(change.new or b"")[1])
        for change in reader.changes
    ]
    assert texts == [(None, b"sad"), (None, "fröhlich".encode()), (b"blue", b"blue")]


async def test_identity_and_generated_columns(each_pg: str) -> None:
    """Identity columns are ordinary ones; which generated ones come is said alike by the catalogs and the stream."""
    async with await connect(each_pg) as connection:
        db = await set_up(
            each_pg,
            connection,
            "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY (START 7) PRIMARY KEY, a int,"
            " n int GENERATED BY DEFAULT AS IDENTITY, twice int GENERATED ALWAYS AS (a * 2) STORED)",
        )
        described = await load_relation(connection, "public", "t", "cdcsync")
        async with reading(db) as reader:
            await db.execute("INSERT INTO t (a) VALUES (21)")
            await reader.commits_reach(1)
    (insert,) = reader.changes
    assert insert.relation == described
    assert split_tuple(insert.new or b"")[:3] == [b"7", b"21", b"1"]
