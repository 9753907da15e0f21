"""What a start leaves alone when the source turns out not to be its own."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import structlog

from cdcsync.config import Config
from cdcsync.entries import Identity
from cdcsync.errors import StateError
from cdcsync.service import prepare
from cdcsync.state import State

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
