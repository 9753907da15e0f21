"""From commit to CRM: how long a committed change takes to be on its way, on an idle and on a moderately busy system.

    python bench/latency.py [COMMITS]

The whole of cdcsync on this machine: an embedded PostgreSQL, both sandbox CRMs and the daemon, each in a process of its
own, with the demo's six mappings. For a small and for the default ``batch.max_wait`` it prints, in milliseconds:

* idle: single-row commits, one after the other, each when the one before has been answered. From the moment at which
  the statement (which commits by itself) is given, to the arrival of the first request that carries records, by the
  sandbox's request ledger;
* n changes a second: commits of one row each at a steady pace, each to a row of its own. From the same moment to the
  one at which the CRM stored that row.

"requests" is how many the CRM was sent meanwhile.

All clocks are this machine's. Sandboxes answer at once; a real CRM adds its own time to what "stored" means here.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.demo.processes import Children, Daemon, SandboxProcess, get_json, start_sandbox
from cdcsync.demo.shop import Inventor, create
from cdcsync.demo.shop_config import Places, write

WAITS = ("1ms", "500ms")
RATES = (10, 100)
SECONDS = 10
"""How long each rate is kept up."""
PAUSES = (0.1, 0.2)
"""Between two single commits: longer than the spacing of a limiter, and of no rhythm that the daemon could share."""
POLL = 0.02
PATIENCE = 60.0
HELD_BY = {"salesforce": ("Account", "External_Id__c"), "hubspot": ("companies", "company_id")}
"""Where the companies are, and by which key."""
T = TypeVar("T")

INSERT = (
    "INSERT INTO companies (name, domain) SELECT 'Bench ' || i, i || '.bench.example' FROM generate_series(1, %s) i"
)


@dataclass(slots=True)
class Bench:
    """The parts that a measurement touches; ``connection`` is open all the time, as a pooled application's is."""

    connection: psycopg.Connection
    sandboxes: Sequence[SandboxProcess]
    daemon: Daemon
    changes: int = 0

    def touch(self, company: int) -> float:
        """Commit a change of one row; returns when that began (Unix time): cdcsync may hear of it before we do."""
        self.changes += 1
        begin = time.time()
        self.connection.execute("UPDATE companies SET phone = %s WHERE id = %s", [f"+1 {self.changes}", company])
        return begin

    def companies(self) -> list[int]:
        """List the rows that can be touched."""
        return [number for (number,) in self.connection.execute("SELECT id FROM companies ORDER BY id")]

    def requests(self) -> dict[str, int]:
        """Count the requests that each CRM has had."""
        return {sandbox.name: get_json(f"{sandbox.admin_url}/books")["requests"] for sandbox in self.sandboxes}

    def settled(self) -> bool:
        """Tell whether the daemon has nothing left to do, as far as it has read."""
        snapshot = self.daemon.snapshot()
        return (
            snapshot is not None
            and snapshot.source.connected
            and all(entry.backfill.state == "done" for entry in snapshot.maps)
            and all(lane.pending == 0 for lane in snapshot.lanes)
        )


def idle(bench: Bench, commits: int) -> dict[str, list[float]]:
    """Measure single commits; returns seconds until the first request, by CRM."""
    pauses = random.Random(1)
    found: dict[str, list[float]] = {sandbox.name: [] for sandbox in bench.sandboxes}
    seen = {sandbox.name: _ledger(sandbox, 0)[-1]["n"] for sandbox in bench.sandboxes}
    for company in (bench.companies() * commits)[:commits]:
        time.sleep(pauses.uniform(*PAUSES))
        committed = bench.touch(company)
        for sandbox in bench.sandboxes:
            carrier = _first_carrier(sandbox, seen[sandbox.name])
            found[sandbox.name].append(carrier["time"] - committed)
            seen[sandbox.name] = carrier["n"]
    return found


def paced(bench: Bench, rate: int) -> dict[str, list[float]]:
    """Measure commits at a steady pace; returns seconds until each row was stored, by CRM."""
    committed: dict[str, float] = {}
    begin = time.monotonic()
    for number, company in enumerate(bench.companies()[: rate * SECONDS]):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        committed[str(company)] = bench.touch(company)
    return {sandbox.name: _stored_after(sandbox, committed) for sandbox in bench.sandboxes}


def _stored_after(sandbox: SandboxProcess, committed: dict[str, float]) -> list[float]:
    name, key = HELD_BY[sandbox.name]

    def look() -> list[float] | None:
        records = get_json(f"{sandbox.admin_url}/records?object={name}")
        stored = {record["key"].get(key): record["modified"] for record in records}
        delays = [stored[company] - moment for company, moment in committed.items()]
        return delays if min(delays) > 0 else None  # below zero: stored last by an earlier change

    return _until(look, pause=0.5)


def _first_carrier(sandbox: SandboxProcess, since: int) -> dict[str, Any]:
    """Wait for an answered request that carried records."""

    def look() -> dict[str, Any] | None:
        carriers = (entry for entry in _ledger(sandbox, since) if entry["records"] and entry["duration"] is not None)
        return next(carriers, None)

    return _until(look)


def _ledger(sandbox: SandboxProcess, since: int) -> list[dict[str, Any]]:
    ledger: list[dict[str, Any]] = get_json(f"{sandbox.admin_url}/requests?since={since}")
    return ledger


def _until(look: Callable[[], T | None], pause: float = POLL) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (value := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came within {PATIENCE:.0f} s")
        time.sleep(pause)
    return value


@contextlib.contextmanager
def stage(max_wait: str) -> Iterator[Bench]:
    """Set everything up anew, with the first copy done."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-bench-"))
    children = Children(directory)
    try:
        with EmbeddedPostgres(directory / "postgres") as postgres:
            dsn = postgres.dsn()
            sandboxes = [start_sandbox(children, name) for name in HELD_BY]
            with psycopg.connect(dsn, autocommit=True) as connection:
                create(connection, Inventor(1))
                connection.execute(INSERT, [max(RATES) * SECONDS])
                listen = f"127.0.0.1:{_free_port()}"
                config = directory / "cdcsync.toml"
                write(config, Places(dsn, sandboxes[0].url, sandboxes[1].url, listen, directory / "state.db"))
                text = config.read_text(encoding="utf-8")
                config.write_text(text.replace('max_wait = "500ms"', f'max_wait = "{max_wait}"'), encoding="utf-8")
                bench = Bench(connection, sandboxes, Daemon(children, config, f"http://{listen}/"))
                _until(bench.settled)
                yield bench
            children.stop()
    finally:
        children.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def show(bench: Bench, max_wait: str, load: str, measure: Callable[[], dict[str, list[float]]]) -> None:
    """Measure, and print a line per CRM."""
    _until(bench.settled)
    before = bench.requests()
    found = measure()
    after = bench.requests()
    for name, delays in found.items():
        cuts = statistics.quantiles(delays, n=100, method="inclusive")
        figures = "".join(f"{cuts[share - 1] * 1000:>8.0f}" for share in (50, 95, 99))
        counts = f"{len(delays):>10}{after[name] - before[name]:>10}"
        print(f"{max_wait:<10}{load:<16}{name:<12}{figures}{max(delays) * 1000:>8.0f}{counts}", flush=True)


def main() -> None:
    """Print the table."""
    commits = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    titles = "".join(f"{title:>8}" for title in ("p50 ms", "p95", "p99", "most"))
    print(f"{'max_wait':<10}{'load':<16}{'CRM':<12}{titles}{'commits':>10}{'requests':>10}")
    for max_wait in WAITS:
        with stage(max_wait) as bench:
            show(bench, max_wait, "idle", partial(idle, bench, commits))
            for rate in RATES:
                show(bench, max_wait, f"{rate} changes/s", partial(paced, bench, rate))


if __name__ == "__main__":
    main()
