"""One object of a CRM is stuck: what the others notice, in milliseconds from commit to CRM.

    python bench/stuck_object.py [SECONDS]

The whole of cdcsync on this machine: an embedded PostgreSQL, both sandbox CRMs and the daemon with its default settings
and the demo's six mappings, each in a process of its own. For SECONDS (20 unless said otherwise) companies change at a
steady pace, each a row of its own, while many orders change, too; from the moment at which a company's statement is
given, to the one at which the CRM stored that row. First with everything well, then with the orders' object stuck, in
each way that there is:

* job: Salesforce has taken a bulk job of orders, and does not work on it;
* locks: each order is locked by somebody else;
* 503: each request about that object is refused so;
* hangs: no request about that object is answered.

"change" is p95 against that of the same CRM with everything well. All clocks are this machine's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psycopg

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.demo.processes import Children, Daemon, SandboxProcess, get_json, start_sandbox
from cdcsync.demo.shop import Inventor, create
from cdcsync.demo.shop_config import VERSION_FIELDS, Places, write

T = TypeVar("T")

RATE = 20
"""Changes of companies a second."""
ORDERS = 2_500
"""Rows of the stuck object that change at the start: enough for a bulk job."""
ORDERS_AT_ONCE = 20
"""Rows of it that change with each second, of those that were there before."""
PATIENCE = 180.0
MARGIN = 1.0
"""Seconds after the last change at which a CRM that notices nothing has it."""
HELD_BY = {"salesforce": ("Account", "External_Id__c"), "hubspot": ("companies", "company_id")}
STUCK = {"salesforce": "Opportunity", "hubspot": "deals"}
WAYS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "job": {"salesforce": {"kind": "stuck_job"}},
    "locks": {"salesforce": {"kind": "lock"}, "hubspot": {"kind": "refuse", "status": 423}},
    "503": {"salesforce": {"kind": "refuse", "status": 503}, "hubspot": {"kind": "refuse", "status": 503}},
    "hangs": {"salesforce": {"kind": "hold"}, "hubspot": {"kind": "hold"}},
}


@dataclass(slots=True)
class Bench:
    """The parts that a measurement touches."""

    connection: psycopg.Connection
    sandboxes: Sequence[SandboxProcess]
    daemon: Daemon
    seconds: int
    changes: int = 0

    def change(self, company: int) -> float:
        """Commit a change of a company; returns when that began (Unix time)."""
        self.changes += 1
        begin = time.time()
        self.connection.execute("UPDATE companies SET name = %s WHERE id = %s", [f"Name {self.changes}", company])
        return begin

    def change_orders(self, count: int) -> None:
        """Commit changes of the stuck object's rows."""
        self.connection.execute(
            "UPDATE orders SET amount = random() * 1000 WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT %s)",
            [count],
        )

    def settled(self) -> bool:
        """Tell whether the daemon has nothing left to do, as far as it has read."""
        snapshot = self.daemon.snapshot()
        return (
            snapshot is not None
            and all(entry.backfill.state == "done" for entry in snapshot.maps)
            and bool(snapshot.lanes)
            and all(lane.pending == 0 for lane in snapshot.lanes)
        )

    def stick(self, way: str) -> None:
        """Let the orders' object be stuck, in the CRMs that know this way."""
        for sandbox in self.sandboxes:
            if sandbox.name in WAYS[way]:
                rule = {**WAYS[way][sandbox.name], "match": {"object": STUCK[sandbox.name]}, "times": None}
                _send("POST", f"{sandbox.admin_url}/faults", [rule])

    def mend(self) -> None:
        """Let everything be well again; a request that hung breaks off."""
        for sandbox in self.sandboxes:
            _send("DELETE", f"{sandbox.admin_url}/faults", None)
            _send("POST", f"{sandbox.admin_url}/faults/release", {"drop": True})


def measure(bench: Bench) -> dict[str, list[float]]:
    """Change companies at a steady pace; returns for each CRM the seconds until each was stored.

    One that a CRM has not stored in time counts as if it were stored now.
    """
    committed: dict[str, float] = {}
    begin = time.monotonic()
    rows = bench.connection.execute("SELECT id FROM companies ORDER BY id LIMIT %s", [RATE * bench.seconds]).fetchall()
    for number, (company,) in enumerate(rows):
        time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        if number % RATE == 0:
            bench.change_orders(ORDERS_AT_ONCE)
        committed[str(company)] = bench.change(company)
    time.sleep(MARGIN)
    return {sandbox.name: _delays(sandbox, committed) for sandbox in bench.sandboxes}


def _delays(sandbox: SandboxProcess, committed: Mapping[str, float]) -> list[float]:
    name, key = HELD_BY[sandbox.name]
    records = get_json(f"{sandbox.admin_url}/records?object={name}")
    stored = {record["key"].get(key): record["modified"] for record in records}
    now = time.time()
    return [(stored[company] if stored[company] > moment else now) - moment for company, moment in committed.items()]


def _until(look: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (value := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came within {PATIENCE:.0f} s")
        time.sleep(0.1)
    return value


def _send(method: str, url: str, document: object) -> None:
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)  # noqa: S310 - a URL of our own, on loopback
    with urllib.request.urlopen(request, timeout=30.0):  # noqa: S310 - as above
        pass


@contextlib.contextmanager
def stage(seconds: int) -> Iterator[Bench]:
    """Set everything up, with the first copy done."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-bench-"))
    children = Children(directory)
    try:
        with EmbeddedPostgres(directory / "postgres") as postgres:
            dsn = postgres.dsn()
            sandboxes = [start_sandbox(children, name) for name in VERSION_FIELDS]
            with psycopg.connect(dsn, autocommit=True) as connection:
                create(connection, Inventor(1))
                connection.execute(
                    "INSERT INTO companies (name, domain) "
                    "SELECT 'Bench', i || '.bench.example' FROM generate_series(1, %s::int) i",
                    [RATE * seconds],
                )
                connection.execute(
                    "INSERT INTO orders (customer_id, title, stage, due) SELECT c.id, 'Bench', 'new', '2026-01-02' "
                    "FROM generate_series(1, %s::int), (SELECT id FROM customers LIMIT 1) c",
                    [ORDERS],
                )
                listen = f"127.0.0.1:{_free_port()}"
                config = directory / "cdcsync.toml"
                write(config, Places(dsn, sandboxes[0].url, sandboxes[1].url, listen, directory / "state.db"))
                bench = Bench(connection, sandboxes, Daemon(children, config, f"http://{listen}/"), seconds)
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


def show(way: str, crm: str, delays: Sequence[float], well: float | None) -> float:
    """Print a line; returns p95."""
    cuts = statistics.quantiles(delays, n=100, method="inclusive")
    figures = "".join(f"{cuts[share - 1] * 1000:>9.0f}" for share in (50, 95, 99))
    change = "" if well is None else f"{cuts[94] / well - 1:>+9.0%}"
    print(f"{way:<12}{crm:<12}{figures}{max(delays) * 1000:>9.0f}{len(delays):>9}{change}", flush=True)
    return cuts[94]


def main() -> None:
    """Print the table."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    titles = "".join(f"{title:>9}" for title in ("p50 ms", "p95", "p99", "most", "changes", "change"))
    print(f"{'stuck':<12}{'CRM':<12}{titles}")
    with stage(seconds) as bench:
        well = {crm: show("nothing", crm, delays, None) for crm, delays in measure(bench).items()}
        for way, rules in WAYS.items():
            _until(bench.settled)
            bench.stick(way)
            bench.change_orders(ORDERS)
            for crm, delays in measure(bench).items():
                if crm in rules:
                    show(way, crm, delays, well[crm])
            bench.mend()


if __name__ == "__main__":
    main()
