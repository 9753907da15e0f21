"""One very large transaction through the whole daemon: how much memory it takes, and how much of the processor's time.

    python bench/large_transaction.py [ROWS [KEYS]]

An embedded PostgreSQL, a sandbox Salesforce and the daemon with one mapping and default settings, each in a process of
its own. One transaction makes ROWS row changes (a million unless said otherwise) to KEYS rows (a tenth of ROWS), once
read with protocol 1 ("plain": the server sends it after its commit) and once with postgres.streaming. The changes of a
row are folded. With KEYS = ROWS all are inserts, and the CRM has to take every one; reading then goes no faster than
the CRM, once the memory for pending rows is full.

"read" is the time from the statement's start until the daemon has the whole transaction, "sent" until the CRM has it.
The peak of resident memory is the kernel's figure (VmHWM) at that moment, processor time that of all threads.
"silent" is the longest time between two answers of the status page, which is asked five times a second.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.demo.processes import Children, Daemon, start_sandbox
from cdcsync.status import Snapshot

WAYS = {"plain": "false", "streaming": "true"}
POLL = 0.2
PATIENCE = 3600.0
CONFIG = """\
version = 1
[postgres]
dsn = "{dsn}"
streaming = {streaming}
[state]
path = "{directory}/state.db"
[status]
listen = "{listen}"
[crm.salesforce]
login_url = "{url}"
client_id = "demo"
client_secret = {{ env = "DEMO_SALESFORCE_SECRET" }}
[[map]]
table = "items"
to = "salesforce.Account"
key = {{ External_Id__c = "id" }}
fields = {{ Name = "name" }}
"""
TRANSACTION = """
    INSERT INTO items SELECT i, 'Row ' || i FROM generate_series(1, {keys}) i;
    DO $$ BEGIN FOR n IN 2..{rounds} LOOP UPDATE items SET name = 'Row ' || id || '/' || n; END LOOP; END $$;
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one transaction took: seconds, bytes."""

    read: float
    sent: float
    peak: int
    processor: float
    silent: float


@contextlib.contextmanager
def daemon(way: str) -> Iterator[tuple[psycopg.Connection, Daemon]]:
    """Set everything up anew."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-bench-"))
    children = Children(directory)
    try:
        with EmbeddedPostgres(directory / "postgres", settings={"max_wal_size": "4GB"}) as postgres:
            url = start_sandbox(children, "salesforce").url
            with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
                connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text)")
                listen = f"127.0.0.1:{_free_port()}"
                text = CONFIG.format(
                    dsn=postgres.dsn(), streaming=WAYS[way], directory=directory, listen=listen, url=url
                )
                (directory / "cdcsync.toml").write_text(text, encoding="utf-8")
                yield connection, Daemon(children, directory / "cdcsync.toml", f"http://{listen}/")
            children.stop()
    finally:
        children.stop()
        shutil.rmtree(directory, ignore_errors=True)


def measure(way: str, rows: int, keys: int) -> Figures:
    """Pass one transaction through a fresh daemon."""
    with daemon(way) as (connection, running):
        _until(running, lambda now: now.source.connected and all(m.backfill.state == "done" for m in now.maps))
        process = psutil.Process(running.pid)
        began, before = time.monotonic(), _processor(process)
        connection.execute("BEGIN")
        connection.execute(TRANSACTION.format(keys=keys, rounds=rows // keys))
        connection.execute("COMMIT")
        ((tip,),) = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
        silent = _until(running, lambda now: now.source.received_lsn >= tip - 64)
        read = time.monotonic() - began
        silent = max(silent, _until(running, lambda now: all(lane.pending == 0 for lane in now.lanes)))
        sent = time.monotonic() - began
        return Figures(read, sent, _peak(process.pid), _processor(process) - before, silent)


def _until(running: Daemon, reached: Callable[[Snapshot], bool]) -> float:
    """Poll until the daemon is so far; returns the longest time between two answers."""
    deadline = time.monotonic() + PATIENCE
    answered, silent = time.monotonic(), 0.0
    while (now := running.snapshot()) is None or not reached(now):
        if time.monotonic() > deadline:
            raise TimeoutError(str(now))
        if now is not None:
            silent, answered = max(silent, time.monotonic() - answered), time.monotonic()
        time.sleep(POLL)
    return max(silent, time.monotonic() - answered)


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    """Print the table."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    keys = int(sys.argv[2]) if len(sys.argv) > 2 else rows // 10
    titles = ("changes", "rows", "peak MB", "µs/change", "read s", "sent s", "silent s")
    print(f"{'way':<12}{''.join(f'{title:>10}' for title in titles)}")
    for way in WAYS:
        took = measure(way, rows, keys)
        share = took.processor / rows * 1e6
        figures = (
            f"{took.peak / (1 << 20):>10.0f}{share:>10.1f}{took.read:>10.1f}{took.sent:>10.1f}{took.silent:>10.1f}"
        )
        print(f"{way:<12}{rows:>10}{keys:>10}{figures}", flush=True)


if __name__ == "__main__":
    main()
