"""What a start leaves alone when the source turns out not to be its own."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import structlog

from cdcsync.config import Config
from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.entries import Identity
from cdcsync.errors import SourceError, StateError
from cdcsync.sandbox.server import SandboxThread
from cdcsync.service import prepare
from cdcsync.state import State
from cdcsync.wal.connect import connect
from cdcsync.wal.coverage import gaps
from cdcsync.wal.published import load_publication
from tests.pg.piping import Pipe, execute, mapping
from tests.pg.standby import caught_up, standby_of
from tests.servers import needs, server_home

PUBLISHED = "SELECT tablename FROM pg_publication_tables WHERE pubname = 'cdcsync'"


@pytest.mark.parametrize("bound", [False, True], ids=["new", "bound"])
async def test_another_daemons_publication_is_left_alone(pg: str, tmp_path: Path, *, bound: bool) -> None:
    """A start with a new state file, or with that of another cluster, ends before it alters anything."""
    database = psycopg.conninfo.conninfo_to_dict(pg)["dbname"]
    config = Config.model_validate(
        {
            "postgres": {"dsn": pg, "slot": database},
            "state": {"path": str(tmp_path / "state.db")},
            "crm": {"hubspot": {"token": {"env": "TOKEN"}}},
            "map": [{"table": "mine", "to": "hubspot.companies", "key": {"k": "id"}, "fields": {"name": "id"}}],
        },
        context={"environ": {"TOKEN": "pat-na1-tests"}},
    )
    with psycopg.connect(pg, autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (id text PRIMARY KEY)")
        connection.execute("CREATE TABLE mine (id text PRIMARY KEY)")
        connection.execute("CREATE PUBLICATION cdcsync FOR TABLE theirs")
        connection.execute("SELECT pg_create_logical_replication_slot(current_database()::text, 'pgoutput')")
        state = State.open(config.state.path)
        try:
            if bound:
                state.bind(Identity("another cluster", str(database), str(database), 1), 1, 1)
            with pytest.raises(StateError):
                await prepare(config, state, structlog.get_logger(), {})
        finally:
            state.close()
            connection.execute("SELECT pg_drop_replication_slot(current_database()::text)")
        assert connection.execute(PUBLISHED).fetchall() == [("theirs",)]


async def test_two_daemons_do_not_set_one_publication_in_turns(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path
) -> None:
    """The second is told to take a publication of its own; once the first one's slot is gone it may have it."""
    await execute(
        pg, "CREATE TABLE t (id text PRIMARY KEY, name text)", "CREATE TABLE u (id text PRIMARY KEY, name text)"
    )
    first = Pipe(pg, hubspot_sandbox, tmp_path / "first.db", [mapping("t")])
    second = Pipe(pg, hubspot_sandbox, tmp_path / "second.db", [mapping("u")])
    await first.once()
    with pytest.raises(SourceError, match=f"belongs to the daemon that reads slot '{first.slot}'"):
        await second.once()
    second.postgres = {"publication": "another"}
    await second.once()
    await execute(pg, f"SELECT pg_drop_replication_slot('{first.slot}')")
    third = Pipe(pg, hubspot_sandbox, tmp_path / "third.db", [mapping("u")])
    await third.once()


@pytest.mark.parametrize(
    ("where", "fits"), [("NOT gone AND id > 'a'", True), ("NOT gone", False)], ids=["same", "other"]
)
@pytest.mark.parametrize("parted", ["", "PARTITION BY LIST (id)"], ids=["plain", "partitioned"])
async def test_a_standby_tells_whether_a_filter_is_the_mappings(
    own_pg_server: EmbeddedPostgres, where: str, parted: str, *, fits: bool
) -> None:
    """The server stores the condition in words of its own; nothing can be made on a standby to compare them with."""
    needs(own_pg_server.dsn(), 15)
    with psycopg.connect(own_pg_server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE TABLE t (id text PRIMARY KEY, gone bool) {parted}".encode())
        connection.execute("ALTER TABLE t REPLICA IDENTITY FULL")
        publication = "CREATE PUBLICATION p FOR TABLE t WHERE (NOT gone AND id > 'a')"
        connection.execute(f"{publication} WITH (publish_via_partition_root = true)".encode())
    with server_home() as directory, standby_of(own_pg_server, directory) as standby:
        caught_up(own_pg_server, standby)
        async with await connect(standby.dsn()) as reader:
            current = await load_publication(reader, "p")
            assert current is not None
            assert (await gaps(reader, current, {"public.t": where}, {}) == []) is fits
