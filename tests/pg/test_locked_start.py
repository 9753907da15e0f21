"""Starting while somebody holds a mapped table's lock, as a migration does."""

from __future__ import annotations

from pathlib import Path

import psycopg
from structlog.testing import capture_logs

from cdcsync.sandbox.server import SandboxThread
from tests.pg.piping import Pipe, execute, mapping
from tests.polling import eventually_async
from tests.servers import needs


async def test_a_start_says_whose_lock_it_waits_for(pg: str, hubspot_sandbox: SandboxThread, tmp_path: Path) -> None:
    """The server does not tell what it publishes of a locked table: the log says why nothing happens."""
    needs(pg, 15)
    await execute(pg, "CREATE TABLE t (id int PRIMARY KEY, name text)", "INSERT INTO t VALUES (1, 'one')")
    it = Pipe(pg, hubspot_sandbox, tmp_path / "state.db", [mapping("t")])
    await it.once()
    with psycopg.connect(pg, application_name="the migration") as migration:
        holder = migration.info.backend_pid
        migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with capture_logs() as log:
            async with it.running():
                await eventually_async(lambda: any(line["event"] == "waiting for a lock" for line in log))
                migration.execute("UPDATE t SET name = 'two'")
                migration.commit()
                await it.shows({"1": "two"})
    (line,) = [line for line in log if line["event"] == "waiting for a lock"]
    assert (line["on"], line["held_by"], line["application"]) == ("t", holder, "the migration")
