"""The life of the slot with the whole daemon: other readers, standbys, failover, shutdowns while it does not read.

Answers the complaints of groups C (an invalidated slot), D (a busy slot), E (a shutdown that hangs) and I (failover).
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.faults.stage import Stage, stage
from tests.faults.test_cli import assert_equal, run
from tests.faults.test_guest import DOWN, INSERT, SLOT, STOP_SECONDS
from tests.pg.standby import PHYSICAL_SLOT, caught_up, either, kill, standby_of
from tests.polling import eventually
from tests.servers import server_home

PUBLICATION = (
    "CREATE PUBLICATION cdcsync FOR TABLE companies, customers, orders WITH (publish_via_partition_root = true)"
)
MAPPING = "companies:salesforce.Account"
TAKEOVER_SECONDS = 10.0
REFUSALS = 4


def test_a_shutdown_while_reading_is_paused(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A daemon whose disk budget is full does not read, and does not hold the server's stop up either."""
    changes = {"[state]\n": '[state]\nmax_journal = "4MB"\n'}
    with stage(tmp_path, own_pg_server.dsn(), changes=changes) as shop:
        shop.execute("ALTER TABLE companies ADD remark text, ALTER remark SET STORAGE EXTERNAL")
        shop.start()
        shop.settled()
        for crm in shop.sandboxes:
            shop.fault(crm, DOWN)
        shop.execute(
            "INSERT INTO companies (name, domain, remark)"
            " SELECT 'G' || i, 'g' || i || '.example.com', repeat('x', 5000)"
            " FROM generate_series(1, 1000) i"
        )
        shop.wait(lambda: "reading paused" in shop.log(), "reading is not paused")
        shop.execute("UPDATE orders SET amount = amount + 1")
        stop_in_time(own_pg_server)
        assert shop.alive()
        own_pg_server.start()
        for crm in shop.sandboxes:
            shop.mend(crm)
        shop.settled(timeout=120)
        shop.assert_converged()


def test_reading_goes_on_whatever_the_ledger_takes(pg: str, tmp_path: Path) -> None:
    """The disk budget is for rows that wait: a state file that the ledger alone makes larger does not stop reading."""
    changes = {"[state]\n": '[state]\nmax_journal = "1MB"\n'}
    with stage(tmp_path, pg, changes=changes) as shop:
        shop.start()
        shop.settled()
        many = (
            "INSERT INTO companies (name, domain)"
            " SELECT 'G' || i, 'g' || i || '.example.com' FROM generate_series({}) i"
        )
        shop.execute(many.format("1, 20000"))
        shop.settled(timeout=120)
        assert (tmp_path / "state.db").stat().st_size > 2 << 20
        shop.execute(many.format("20001, 20100"))
        shop.settled()
        shop.stop()
        shop.start()
        shop.execute(many.format("20101, 20200"))
        shop.settled()
        shop.assert_converged()


def test_a_shutdown_while_a_copy_runs(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A copy's connection, within a chunk, does not hold the server's stop up; the copy goes on after its start."""
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        shop.start()
        shop.settled()
        shop.cli("pause", MAPPING)
        shop.cli("resync", MAPPING)
        with contextlib.closing(psycopg.connect(own_pg_server.dsn())) as migration:
            migration.execute("LOCK TABLE companies IN ACCESS EXCLUSIVE MODE")
            shop.cli("resume", MAPPING)
            shop.wait(lambda: waits_for_the_lock(shop), "no copy waits for the lock")
            stop_in_time(own_pg_server)
        own_pg_server.start()
        shop.settled()
        shop.assert_converged()


def waits_for_the_lock(shop: Stage) -> bool:
    """Whether a session of the daemon's waits for a table."""
    return bool(shop.execute("SELECT pid FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'"))


def stop_in_time(server: EmbeddedPostgres) -> None:
    """Stop the server fast, and see that it takes no longer than it may."""
    began = time.monotonic()
    server.stop("fast", wait=30)
    assert time.monotonic() - began < STOP_SECONDS


def test_a_busy_slot_is_taken_over_when_it_is_free(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The holder is named, in one line of the log however often it is in the way, and followed within seconds."""
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        assert run(shop, "run", "--once").code == 0
        with another_reader(own_pg_server):
            shop.wait(lambda: holder(shop) is not None, "nobody holds the slot")
            shop.start()
            shop.wait(lambda: said(shop).startswith(f"slot '{SLOT}' is in use by pid {holder(shop)}"), "it is not said")
            shop.wait(lambda: refusals(own_pg_server) >= REFUSALS, "the daemon gave up")
            assert "another reader" in said(shop)
            log = shop.children.log("daemon-0").read_text(encoding="utf-8")
            assert log.count("is in use by") == 1
        shop.execute("UPDATE companies SET phone = 'free'")
        shop.wait(lambda: said(shop) == "", "the slot is not taken over", timeout=TAKEOVER_SECONDS)
        shop.settled()
        shop.assert_converged()


@contextmanager
def another_reader(server: EmbeddedPostgres) -> Iterator[None]:
    """Read the slot with PostgreSQL's own client, which confirms nothing."""
    options = ["-o", "proto_version=1", "-o", "publication_names=cdcsync", "-F", "0", "-s", "0", "-f", "/dev/null"]
    program = str(server.program("pg_recvlogical"))
    command = [program, "-d", f"{server.dsn()}&application_name=another%20reader", "-S", SLOT]
    with subprocess.Popen([*command, "--start", *options], stderr=subprocess.DEVNULL) as reader:
        try:
            yield
        finally:
            reader.kill()


def holder(shop: Stage) -> int | None:
    """Return the process that reads the slot."""
    ((pid,),) = shop.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [SLOT])
    return None if pid is None else int(pid)


def said(shop: Stage) -> str:
    """Return what the daemon says of its source."""
    snapshot = shop.snapshot()
    return "no answer" if snapshot is None else snapshot.source.last_error or ""


def refusals(server: EmbeddedPostgres) -> int:
    """Count how often the server has refused a second reader."""
    return server.log.read_text(encoding="utf-8", errors="replace").count("is active for PID")


def test_an_idle_slot_that_was_invalidated_is_mended_by_a_reset(
    own_pg_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A daemon that was down for longer than the server's patience: cause and remedy are said; a reset mends it."""
    if own_pg_server.version < 18:
        pytest.skip("idle_replication_slot_timeout came with PostgreSQL 18 (CDCSYNC_TEST_PG=18)")
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        assert run(shop, "run", "--once").code == 0
        shop.execute("DELETE FROM orders WHERE id <= 3")
        shop.execute("UPDATE companies SET name = 'Changed' WHERE id <= 5")
        own_pg_server.settings["idle_replication_slot_timeout"] = "1s"
        own_pg_server.reload()

        def invalidated() -> bool:
            shop.execute("CHECKPOINT")
            return shop.execute("SELECT invalidation_reason FROM pg_replication_slots") == [("idle_timeout",)]

        shop.wait(invalidated, "the slot is not invalidated")
        lost = run(shop, "run", "--once")
        assert lost.code == 1
        assert "nothing read it for longer than idle_replication_slot_timeout" in lost.err
        assert "cdcsync slot reset" in lost.err
        assert "idle_replication_slot_timeout" in run(shop, "slot", "show").out
        own_pg_server.settings["idle_replication_slot_timeout"] = "0"
        own_pg_server.reload()
        assert run(shop, "slot", "reset", "--confirm", SLOT).code == 0
        assert run(shop, "run", "--once").code == 0
        assert_equal(shop)


def test_a_standby_is_the_source_and_is_promoted(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A publication that its primary lacks is named; with it, all is read from the standby, and after its promotion."""
    if own_pg_server.version < 16:
        pytest.skip("standbys decode from PostgreSQL 16 on")
    primary = own_pg_server.dsn()
    with (
        server_home() as directory,
        standby_of(own_pg_server, directory) as standby,
        stage(tmp_path, primary, changes={f'"{primary}"': f'"{standby.dsn()}"'}) as shop,
    ):
        caught_up(own_pg_server, standby)
        missing = run(shop, "run", "--once")
        assert missing.code == 1
        assert "this server is a standby, which takes it from its primary" in missing.err
        assert "on the primary: " in missing.err
        shop.execute(PUBLICATION)
        caught_up(own_pg_server, standby)
        shop.start()
        shop.wait(lambda: slot_begins(shop) and said(shop) == "", "the standby's slot is not read")
        shop.settled()
        shop.execute(INSERT.format(500))
        shop.execute("UPDATE companies SET name = name || '!'")
        shop.settled()
        shop.assert_converged()
        caught_up(own_pg_server, standby)
        kill(own_pg_server)
        promote(standby)
        shop.dsn = standby.dsn()
        shop.execute("UPDATE companies SET phone = 'promoted'")
        shop.execute("DELETE FROM orders WHERE id <= 3")
        shop.settled()
        shop.assert_converged()
        shop.wait(lambda: shop.state("SELECT value FROM meta WHERE key = 'timeline'") == "2", "no new timeline")


def slot_begins(shop: Stage) -> bool:
    """Give the primary's word on running transactions, which a new slot on its standby waits for."""
    shop.execute("SELECT pg_log_standby_snapshot()")
    return shop.snapshot() is not None


def promote(server: EmbeddedPostgres) -> None:
    """Make a standby the primary, and wait until it takes writes."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_promote()")
        eventually(lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,))


def test_a_failover_loses_and_doubles_nothing(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The primary is killed under a daemon that has rows to send, and its standby promoted: the CRMs become equal."""
    if own_pg_server.version < 17:
        pytest.skip("failover slots came with PostgreSQL 17 (CDCSYNC_TEST_PG=18)")
    own_pg_server.settings["synchronized_standby_slots"] = PHYSICAL_SLOT
    with server_home() as directory, standby_of(own_pg_server, directory, {"sync_replication_slots": "on"}) as standby:
        own_pg_server.reload()
        both = either(own_pg_server, standby, target_session_attrs="read-write")
        with stage(tmp_path, own_pg_server.dsn(), changes={f'"{own_pg_server.dsn()}"': f'"{both}"'}) as shop:
            shop.start()
            shop.settled()
            shop.wait(lambda: copied(shop, standby), "the slot is not copied for good")
            for crm in shop.sandboxes:
                shop.fault(crm, DOWN)
            shop.execute(INSERT.format(500))
            caught_up(own_pg_server, standby)
            kill(own_pg_server)
            promote(standby)
            shop.dsn = standby.dsn()
            shop.execute("UPDATE companies SET phone = 'promoted'")
            for crm in shop.sandboxes:
                shop.mend(crm)
            shop.settled(timeout=120)
            shop.assert_converged()
            shop.wait(lambda: shop.state("SELECT value FROM meta WHERE key = 'timeline'") == "2", "no new timeline")


def copied(shop: Stage, standby: EmbeddedPostgres) -> bool:
    """Write something, which lets the slot move, and say whether the standby has a copy that lasts."""
    shop.execute("UPDATE orders SET amount = amount + 1")
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = %s", [SLOT]
        )
        return found.fetchone() == (True,)


def test_a_first_host_that_is_a_standby_is_passed_by(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """With target_session_attrs=read-write the slot is made and read on the primary, wherever it is in the list."""
    with server_home() as directory, standby_of(own_pg_server, directory) as standby:
        both = either(standby, own_pg_server, target_session_attrs="read-write")
        with stage(tmp_path, own_pg_server.dsn(), changes={f'"{own_pg_server.dsn()}"': f'"{both}"'}) as shop:
            assert run(shop, "run", "--once").code == 0
            assert shop.execute("SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = %s", [SLOT]) == [(1,)]
            assert_equal(shop)
