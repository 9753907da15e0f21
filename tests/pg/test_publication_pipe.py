"""Row filters and generated columns, from the table to the CRM's record."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from cdcsync.errors import SourceError
from cdcsync.sandbox.server import SandboxThread
from tests.pg.piping import Pipe, execute, mapping
from tests.servers import needs

LARGE = "(SELECT string_agg(md5(i::text || id), '') FROM generate_series(1, 300) AS i)"
"""More than fits in a row, and not compressible."""


async def test_rows_enter_and_leave_a_filter(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """A row that comes to meet the where is made, one that ceases to is deleted; large values come along."""
    needs(pg, 15)
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
