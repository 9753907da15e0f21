"""A polite guest: the whole daemon on a server of the test's own, which is stopped, promoted, or written to elsewhere.

Answers the complaints of groups A (WAL kept for nothing), B (a slow consumer), C (a lost slot), E (a shutdown that
hangs), F (a wrong position) and I (failover).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.faults.stage import Stage, stage
from tests.faults.test_cli import assert_equal, reconfigure, run
from tests.polling import eventually
from tests.proxy import Proxy

ROWS = int(os.environ.get("CDCSYNC_GUEST_ROWS", "5000"))
"""Rows that no CRM has when the server stops; the issue's figure is 100,000."""
ELSEWHERE = int(os.environ.get("CDCSYNC_GUEST_MEGABYTES", "160"))
"""WAL of another database; the issue's figure is 1024."""
SILENCE = float(os.environ.get("CDCSYNC_GUEST_SECONDS", "4"))
"""How long a CRM keeps an answer back; the issue's figure is 30."""
LIMIT = float(os.environ.get("CDCSYNC_GUEST_LIMIT", "1"))
"""The connection's wal_sender_timeout in seconds."""
RETAINED = 64 << 20
STOP_SECONDS = 5.0
SLOT = "postgres"
DOWN: dict[str, object] = {"kind": "refuse", "status": 503, "match": {}, "times": None}
HOLD: dict[str, object] = {"kind": "hold", "when": "before", "match": {}, "times": None}
INSERT = (
    "INSERT INTO companies (name, domain) SELECT 'G' || i, 'g' || i || '.example.com' FROM generate_series(1, {}) i"
)


@pytest.mark.timeout(600)
def test_a_fast_shutdown_is_not_held_up(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The server stops in five seconds with rows that no CRM takes, and all of them arrive after its start."""
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        shop.start()
        shop.settled()
        for crm in shop.sandboxes:
            shop.fault(crm, DOWN)
        shop.execute(INSERT.format(ROWS))
        began = time.monotonic()
        own_pg_server.stop("fast", wait=20)
        took = time.monotonic() - began
        print(f"the server stopped in {took:.2f} s")
        assert took < STOP_SECONDS
        assert shop.alive()
        own_pg_server.start()
        for crm in shop.sandboxes:
            shop.mend(crm)
        shop.settled(timeout=500)
        shop.assert_converged()


@pytest.mark.timeout(300)
def test_a_short_time_limit_is_kept(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """While CRMs keep their answers back and rows are drained, the server hears of us in time: one connection.

    The daemon's own word counts for when each status update was sent, whatever the machine does to the test.
    """
    updates = StatusUpdates()
    with Proxy(own_pg_server.dsn()) as proxy, stage(tmp_path, own_pg_server.dsn()) as shop:
        proxy.observe = updates.look
        limited = make_conninfo(proxy.dsn, options=f"-c wal_sender_timeout={LIMIT * 1000:.0f}")
        reconfigure(shop, f'"{own_pg_server.dsn()}"', f'"{limited}"')
        shop.start()
        shop.settled()
        for crm in shop.sandboxes:
            shop.fault(crm, HOLD)
        shop.execute(INSERT.format(ROWS))
        ends = time.monotonic() + SILENCE
        while time.monotonic() < ends:
            shop.execute("UPDATE orders SET amount = amount + 1")
        for crm in shop.sandboxes:
            shop.mend(crm)
        shop.settled(timeout=200)
        shop.assert_converged()
        log = shop.children.log("daemon-0").read_text(encoding="utf-8")
        assert log.count('"event": "streaming"') == 1, [line for line in log.splitlines() if "interrupted" in line]
        print(f"the longest pause between two of {len(updates.times)} status updates: {updates.longest():.3f} s")
        assert updates.longest() < LIMIT


class StatusUpdates:
    """When the status updates were sent that go through a proxy, in seconds."""

    MARK = b"d\0\0\0\x26r"
    """CopyData of 38 bytes, with a status update in it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def look(self, data: bytes) -> None:
        """Find the updates in what a client sent: each is one write, and its time stands behind three positions."""
        for start in (found.start() for found in re.finditer(re.escape(self.MARK), data)):
            place = start + len(self.MARK) + 24
            if len(data) >= place + 8:
                self.times.append(int.from_bytes(data[place : place + 8], "big") / 1e6)

    def longest(self) -> float:
        """Return the longest pause between two updates."""
        return max(later - earlier for earlier, later in pairwise(self.times))


@pytest.mark.timeout(300)
def test_a_server_with_a_short_time_limit_may_keep_it(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A limit in the server's configuration is for others: a connection of ours has its own, and stays."""
    own_pg_server.settings["wal_sender_timeout"] = "1s"
    own_pg_server.reload()
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        shop.start()
        shop.settled()
        assert shop.daemon is not None
        shop.daemon.send_signal(signal.SIGSTOP)
        time.sleep(2.0)  # twice the limit, without a word
        shop.daemon.send_signal(signal.SIGCONT)
        shop.execute("UPDATE companies SET phone = 'awake'")
        shop.settled()
        log = shop.children.log("daemon-0").read_text(encoding="utf-8")
        assert log.count('"event": "streaming"') == 1


@pytest.mark.timeout(600)
def test_traffic_elsewhere_retains_nothing(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """WAL of another database is let go: with both lanes idle, and with one down whose rows are in the journal."""
    with psycopg.connect(own_pg_server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE elsewhere")
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        shop.start()
        shop.settled()
        write_elsewhere(own_pg_server, ELSEWHERE)
        shop.wait(lambda: retained(shop) < RETAINED, "WAL is held back while nothing waits")
        print(f"of {ELSEWHERE} MB the slot retains {retained(shop) / (1 << 20):.1f} MB")
        shop.fault("hubspot", DOWN)
        shop.execute("UPDATE companies SET name = name || '!'")
        write_elsewhere(own_pg_server, ELSEWHERE)
        shop.wait(lambda: retained(shop) < RETAINED, "rows that wait for a CRM hold back WAL")
        snapshot = shop.snapshot()
        assert snapshot is not None
        assert any(lane.pending for lane in snapshot.lanes)
        print(f"with rows that wait it retains {retained(shop) / (1 << 20):.1f} MB")


def test_a_promotion_while_the_daemon_is_down(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A later timeline that holds all we read is gone on with, and written down; one that does not is refused."""
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        assert run(shop, "run", "--once").code == 0
        assert shop.state("SELECT value FROM meta WHERE key = 'timeline'") == "1"
        own_pg_server.stop()
        backup = own_pg_server.directory / "backup"
        subprocess.run(["cp", "-a", own_pg_server.data, backup], check=True)
        promote(own_pg_server)
        shop.execute("UPDATE companies SET name = 'Promoted'")
        assert run(shop, "run", "--once").code == 0
        assert_equal(shop)
        assert shop.state("SELECT value FROM meta WHERE key = 'timeline'") == "2"

        own_pg_server.stop()
        subprocess.run(["rm", "-rf", own_pg_server.data], check=True)
        backup.rename(own_pg_server.data)
        own_pg_server.start()
        own_pg_server.stop()
        for _ in range(2):
            promote(own_pg_server)
            own_pg_server.stop()
        own_pg_server.start()
        shop.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 20)")
        diverged = run(shop, "run", "--once")
        assert diverged.code == 1, diverged.err
        assert "does not contain ours" in diverged.err
        assert "slot reset" in diverged.err


def test_advancing_skips_and_compares(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The slot moves with its checkpoint; what was skipped is made right by comparing, without a false alarm."""
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        assert run(shop, "run", "--once").code == 0
        shop.execute("UPDATE companies SET name = 'Skipped' WHERE id <= 5")
        shop.execute("DELETE FROM orders WHERE id <= 5")
        assert run(shop, "slot", "advance", "--to", "nonsense").code == 2
        beyond = run(shop, "slot", "advance", "--to", "FFFF/0", "--confirm", SLOT)
        assert beyond.code == 1
        assert "cannot be moved to" in beyond.err
        moved = run(shop, "slot", "advance", "--confirm", SLOT)
        assert moved.code == 0, moved.err
        assert "This skips " in moved.err
        assert "rows deleted meanwhile included" in moved.err
        assert "Skipped" not in {record["fields"].get("Name") for record in shop.records("salesforce", "Account")}
        assert run(shop, "run", "--once").code == 0
        assert_equal(shop)
        shop.start()
        shop.settled()
        refused = run(shop, "slot", "advance", "--confirm", SLOT)
        assert refused.code == 1
        assert "is in use" in refused.err


def test_a_lost_slot_is_mended_by_a_reset(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """WAL that was removed: cause and remedy are said, and after the reset only what differs is sent."""
    own_pg_server.settings |= {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    own_pg_server.restart()
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        assert run(shop, "run", "--once").code == 0
        writes = sum(shop.admin("salesforce", "books")[kind] for kind in ("creates", "updates"))
        shop.execute("UPDATE companies SET name = 'Changed' WHERE id <= 5")
        shop.execute("DELETE FROM orders WHERE id <= 3")
        for _ in range(4):
            shop.execute("SELECT pg_logical_emit_message(true, 'noise', 'x')")
            shop.execute("SELECT pg_switch_wal()")
        shop.execute("CHECKPOINT")
        shown = run(shop, "slot", "show")
        assert shown.code == 1
        assert "✗ the slot can never be used again: it was read too late" in shown.out
        lost = run(shop, "run", "--once")
        assert lost.code == 1
        assert "max_slot_wal_keep_size" in lost.err
        assert "cdcsync slot reset" in lost.err
        assert run(shop, "slot", "advance", "--confirm", SLOT).code == 1
        assert run(shop, "slot", "reset", "--confirm", SLOT).code == 0
        assert run(shop, "run", "--once").code == 0
        assert_equal(shop)
        after = sum(shop.admin("salesforce", "books")[kind] for kind in ("creates", "updates"))
        assert after - writes == 5


def retained(shop: Stage) -> int:
    """Return the bytes of WAL that our slot keeps."""
    ((size,),) = shop.execute(
        "SELECT (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = %s", [SLOT]
    )
    return int(size)


def write_elsewhere(server: EmbeddedPostgres, megabytes: int) -> None:
    """Write WAL in a database that is not ours, and let the server tidy up."""
    with psycopg.connect(server.dsn("elsewhere"), autocommit=True) as connection:
        for _ in range(megabytes):
            connection.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000))")
        connection.execute("CHECKPOINT")


def promote(server: EmbeddedPostgres) -> None:
    """Start the stopped server as a standby, and let it leave its timeline."""
    (server.data / "standby.signal").touch()
    server.start()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_promote()")

        def writes() -> bool:
            row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            return row == (False,)

        eventually(writes)
