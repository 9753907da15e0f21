"""Row filters and generated columns, from the table to the CRM's record."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg
import pytest

from cdcsync.errors import SourceError
from cdcsync.sandbox.server import SandboxThread
from cdcsync.state import State
from cdcsync.wal import catalog, coverage
from tests.pg.piping import Pipe, execute, mapping
from tests.servers import needs

LARGE = "(SELECT string_agg(md5(i::text || id), '') FROM generate_series(1, 300) AS i)"
"""More than fits in a row, and not compressible."""


@pytest.fixture(params=["the publication's", "applied here"])
def filters(request: pytest.FixtureRequest, pg: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the publication filter rows, or let the daemon take the server for one that cannot."""
    way = str(request.param)
    if way == "the publication's":
        needs(pg, 15)
    else:
        monkeypatch.setattr(catalog, "VERSION_15", 990000)
        monkeypatch.setattr(coverage, "VERSION_15", 990000)
    return way


@pytest.mark.usefixtures("filters")
async def test_rows_enter_and_leave_a_filter(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """A row that comes to meet the where is made, one that ceases to is deleted; large values come along.

    So it is on servers without row filters, too.
    """
    await execute(
        pg,
        "CREATE TABLE t (id int PRIMARY KEY, live bool NOT NULL, name text, large text)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "INSERT INTO t SELECT id, id = 1, 'n' || id FROM generate_series(1, 4) AS id",
        f"UPDATE t SET large = {LARGE}",
    )
    it = Pipe(pg, hubspot_sandbox, tmp_path / "state.db", [mapping("t", where="live", fields={"name": "large"})])
    await it.make_slot()
    async with it.running():
        with psycopg.connect(pg, autocommit=True) as connection:
            large: dict[str, str] = dict(connection.execute("SELECT id::text, large FROM t").fetchall())
        await it.shows({"1": large["1"]})
        await execute(pg, "UPDATE t SET live = true WHERE id IN (2, 3)", "UPDATE t SET live = false WHERE id = 1")
        await it.shows({"2": large["2"], "3": large["3"]})
        await execute(
            pg,
            "UPDATE t SET live = false WHERE id = 3; UPDATE t SET live = true, large = NULL WHERE id = 4",
            "DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (5, false, 'x', 'x'), (6, true, 'y', 'y')",
            "BEGIN; UPDATE t SET live = false WHERE id = 6; UPDATE t SET live = true WHERE id = 6; COMMIT",
        )
        await it.shows({"4": None, "6": "y"})


@pytest.mark.usefixtures("filters")
async def test_large_values_that_do_not_come_are_read(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """A row enters the filter by an update that leaves a large value alone: it comes from the table, once, as it is."""
    await execute(
        pg,
        "CREATE TABLE t (id int PRIMARY KEY, live bool NOT NULL, name text, large text)",
        "CREATE UNIQUE INDEX t_live ON t (id, live); ALTER TABLE t REPLICA IDENTITY USING INDEX t_live",
        "INSERT INTO t SELECT id, false, 'n' || id FROM generate_series(1, 4) AS id",
        f"UPDATE t SET large = {LARGE}",
    )
    it = Pipe(pg, hubspot_sandbox, tmp_path / "state.db", [mapping("t", where="live", fields={"name": "large"})])
    await it.make_slot()
    async with it.running():
        await execute(pg, "INSERT INTO t VALUES (9, true, 'x', 'x')")
        await it.shows({"9": "x"})
        with psycopg.connect(pg, autocommit=True) as connection:
            large: dict[str, str] = dict(connection.execute("SELECT id::text, large FROM t").fetchall())
        await execute(pg, "UPDATE t SET live = true WHERE id IN (1, 2)", "UPDATE t SET live = true WHERE id = 3")
        await it.shows({"9": "x", "1": large["1"], "2": large["2"], "3": large["3"]})
    books = it.books()
    assert (books["double_creates"], books["steps_back"]) == (0, 0)
    with contextlib.closing(State.read(tmp_path / "state.db")) as state:
        assert not list(state.parked.all("t:hubspot.companies"))


async def test_what_where_leaves_out_costs_the_crm_nothing(
    pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path, filters: str
) -> None:
    """Rows outside the condition are neither sent nor looked up; one about which nothing can be said is parked."""
    await execute(pg, "CREATE TABLE t (id int PRIMARY KEY, part int NOT NULL, name text)")
    if filters == "the publication's":
        await execute(pg, "ALTER TABLE t REPLICA IDENTITY FULL")
    it = Pipe(pg, hubspot_sandbox, tmp_path / "state.db", [mapping("t", where="100 / part >= 20", backfill=False)])
    await it.make_slot()
    async with it.running():
        await it.shows({})
        await execute(
            pg, "INSERT INTO t SELECT i, 50, 'n' || i FROM generate_series(1, 500) i", "UPDATE t SET name = 'm'"
        )
        if filters == "applied here":
            await execute(pg, "INSERT INTO t VALUES (998, 0, 'none')")  # the server's own filter would end the stream
        await execute(pg, "INSERT INTO t VALUES (999, 2, 'in')")
        await it.shows({"999": "in"})
    assert it.books()["requests"] == 2, "one at the start, and one that writes"
    with contextlib.closing(State.read(tmp_path / "state.db")) as state:
        rejects = [(one.row.key, one.code) for one in state.parked.all("t:hubspot.companies")]
    assert rejects == ([("998", "where-failed")] if filters == "applied here" else [])


async def test_stored_generated_columns_reach_the_crm(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """Copy and stream agree on them, on 18; before, the start says that they are not sent."""
    await execute(
        pg,
        "CREATE TABLE t (id int PRIMARY KEY, part text, name text GENERATED ALWAYS AS (part || '!') STORED)",
        "INSERT INTO t VALUES (1, 'a')",
    )
    it = Pipe(pg, hubspot_sandbox, tmp_path / "state.db", [mapping("t", fields={"domain": "part"})])
    await it.once()
    it.maps = [mapping("t", fields={"name": "name", "domain": "part"})]
    with psycopg.connect(pg) as connection:
        sent = connection.info.server_version >= 180000
    if not sent:
        with pytest.raises(SourceError, match="column name is generated, which is sent from PostgreSQL 18 on"):
            await it.once()
        return
    await it.once()  # publishes the column; a row written before that comes without it
    async with it.running():
        await execute(pg, "INSERT INTO t VALUES (2, 'b')", "UPDATE t SET part = 'c' WHERE id = 1")
        await it.shows({"1": "c!", "2": "b!"})
