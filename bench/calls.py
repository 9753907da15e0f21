"""How many API calls changes cost, against one call for each change, by the kind of work that the database does.

    python bench/calls.py [SCALE]

The whole of cdcsync on this machine: an embedded PostgreSQL, both sandbox CRMs and the daemon with its default settings
and the demo's six mappings, each in a process of its own. SCALE (0.1 unless said otherwise) times these figures:

* inserts: 20,000 rows that refer to nothing;
* hot rows: 1,000,000 updates of 10,000 rows, a hundred rows in a transaction, as fast as the server takes them;
* hot rows, paced: the same 50 rows, 200 updates a second, for 20 s at any scale;
* updates: 20,000 rows, each changed once;
* touch: 100,000 updates that change nothing;
* parent and child: 5,000 companies, each with a new customer, in one transaction;
* deletes: 20,000 rows.

"calls" are all requests that the CRM was sent, those for jobs, lookups and associations included; "records" is what it
wrote. "fewer" is how much less than one call for each change that is.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.demo.processes import Children, Daemon, SandboxProcess, get_json, start_sandbox
from cdcsync.demo.shop import Inventor, create
from cdcsync.demo.shop_config import VERSION_FIELDS, Places, write

PATIENCE = 3600.0
POLL = 0.1
PIECE = 100
"""Rows that a transaction changes."""
INSERTS, HOT_UPDATES, HOT_ROWS, TOUCHES, PAIRS = 20_000, 1_000_000, 10_000, 100_000, 5_000
INSERT = (
    "INSERT INTO companies (id, name, domain) "
    "SELECT 100000 + i, 'Bench ' || i, i || '.bench.example' FROM generate_series(%s::int, %s::int) i"
)
RENAME = "UPDATE companies SET name = %s WHERE id BETWEEN %s AND %s"
APPEND = "UPDATE companies SET name = name || %s WHERE id BETWEEN %s AND %s"
PACED_ROWS, PACE, PACED_SECONDS = 50, 200, 20


@dataclass(slots=True)
class Bench:
    """The parts that a workload touches."""

    connection: psycopg.Connection
    sandboxes: Sequence[SandboxProcess]
    daemon: Daemon
    scale: float

    def count(self, figure: int) -> int:
        """Scale a figure to whole transactions."""
        return max(1, round(figure * self.scale / PIECE)) * PIECE

    def execute(self, query: str, *parameters: object) -> int:
        """Run a statement that commits by itself; returns the rows that it changed."""
        return self.connection.execute(query.encode(), parameters).rowcount

    def books(self) -> dict[str, tuple[int, int]]:
        """Count the requests and the writes that each CRM has had."""
        found = {sandbox.name: get_json(f"{sandbox.admin_url}/books") for sandbox in self.sandboxes}
        return {name: (books["requests"], books["writes"]) for name, books in found.items()}

    def settled(self) -> int | None:
        """Tell how many changes each lane has been fed, None while any is not settled."""
        snapshot = self.daemon.snapshot()
        if snapshot is None or not snapshot.lanes or any(lane.pending for lane in snapshot.lanes):
            return None
        if any(lane.rejected for lane in snapshot.lanes):
            raise RuntimeError("a CRM has refused rows: the figures would mean nothing")
        if any(entry.backfill.state != "done" for entry in snapshot.maps):
            return None
        return min(lane.counters.changes_in for lane in snapshot.lanes)

    def await_changes(self, fed: int) -> None:
        """Wait until so many changes have been fed and are settled."""
        deadline = time.monotonic() + PATIENCE
        while (self.settled() or 0) < fed:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not settled within {PATIENCE:.0f} s")
            time.sleep(POLL)


def inserts(bench: Bench) -> int:
    """Add companies."""
    count = bench.count(INSERTS)
    for first in range(1, count + 1, PIECE):
        bench.execute(INSERT, first, first + PIECE - 1)
    return count


def hot(bench: Bench) -> int:
    """Change few rows very often."""
    rows, changes = bench.count(HOT_ROWS), bench.count(HOT_UPDATES)
    for number, done in enumerate(range(0, changes, PIECE)):
        first = 100_001 + done % rows
        bench.execute(RENAME, f"Hot {number}", first, first + PIECE - 1)
    return changes


def paced(bench: Bench) -> int:
    """Change very few rows at a steady pace, one in a transaction."""
    begin = time.monotonic()
    for number in range(PACE * PACED_SECONDS):
        time.sleep(max(0.0, begin + number / PACE - time.monotonic()))
        row = 100_001 + number % PACED_ROWS
        bench.execute(RENAME, f"Paced {number}", row, row)
    return PACE * PACED_SECONDS


def updates(bench: Bench) -> int:
    """Change each of many rows once."""
    count = bench.count(INSERTS)
    for first in range(100_001, 100_001 + count, PIECE):
        bench.execute(APPEND, " Ltd", first, first + PIECE - 1)
    return count


def touch(bench: Bench) -> int:
    """Write rows as they are."""
    count, rows = bench.count(TOUCHES), bench.count(HOT_ROWS)
    for done in range(0, count, PIECE):
        first = 100_001 + done % rows
        bench.execute(APPEND, "", first, first + PIECE - 1)
    return count


def pairs(bench: Bench) -> int:
    """Add companies, each with a customer, in one transaction for each."""
    count = bench.count(PAIRS)
    for number in range(count):
        bench.execute(
            "WITH company AS (INSERT INTO companies (name, domain) VALUES ('Pair', %s) RETURNING id) "
            "INSERT INTO customers (id, email, last_name, company_id) "
            "SELECT gen_random_uuid(), %s, 'Pair', id FROM company",
            f"{number}.pair.example.com",
            f"{number}@pair.example.com",
        )
    return 2 * count


def deletes(bench: Bench) -> int:
    """Delete rows."""
    count = bench.count(INSERTS)
    for first in range(100_001, 100_001 + count, PIECE):
        bench.execute("DELETE FROM companies WHERE id BETWEEN %s AND %s", first, first + PIECE - 1)
    return count


WORKLOADS: dict[str, Callable[[Bench], int]] = {
    "inserts": inserts,
    "hot rows": hot,
    "hot rows, paced": paced,
    "updates": updates,
    "touch": touch,
    "parent and child": pairs,
    "deletes": deletes,
}


@contextlib.contextmanager
def stage(scale: float) -> Iterator[Bench]:
    """Set everything up, with the first copy done. Row versions do not rise, so that a touch changes nothing."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-bench-"))
    children = Children(directory)
    try:
        with EmbeddedPostgres(directory / "postgres") as postgres:
            dsn = postgres.dsn()
            sandboxes = [start_sandbox(children, name) for name in VERSION_FIELDS]
            with psycopg.connect(dsn, autocommit=True) as connection:
                create(connection, Inventor(1))
                for table in ("companies", "customers", "orders"):
                    connection.execute(f"DROP TRIGGER raise_row_version ON {table}".encode())
                listen = f"127.0.0.1:{_free_port()}"
                config = directory / "cdcsync.toml"
                write(config, Places(dsn, sandboxes[0].url, sandboxes[1].url, listen, directory / "state.db"))
                bench = Bench(connection, sandboxes, Daemon(children, config, f"http://{listen}/"), scale)
                bench.await_changes(1)
                yield bench
            children.stop()
    finally:
        children.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def measure(bench: Bench, name: str) -> None:
    """Run a workload, and print a line per CRM."""
    fed, before, begin = bench.settled() or 0, bench.books(), time.monotonic()
    changes = WORKLOADS[name](bench)
    took = time.monotonic() - begin
    bench.await_changes(fed + changes)
    for crm, (requests, writes) in bench.books().items():
        calls, records = requests - before[crm][0], writes - before[crm][1]
        figures = f"{changes:>10,}{took:>8.0f}{records:>10,}{calls:>8,}{calls / changes * 1000:>10.1f}"
        print(f"{name:<18}{crm:<12}{figures}{1 - calls / changes:>9.1%}", flush=True)


def main() -> None:
    """Print the table."""
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 0.1
    titles = f"{'changes':>10}{'seconds':>8}{'records':>10}{'calls':>8}{'per 1,000':>10}{'fewer':>9}"
    print(f"{'workload':<18}{'CRM':<12}{titles}")
    with stage(scale) as bench:
        for name in WORKLOADS:
            measure(bench, name)


if __name__ == "__main__":
    main()
