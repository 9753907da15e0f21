"""Two daemons, one of them active: the other takes over within ten seconds, and nothing is doubled or put back."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.shopkeeper import FAULTS, Shopkeeper, prepare
from tests.faults.stage import Stage, stage
from tests.faults.test_bulk_crash import BULK, JOBS, POINTS, ROWS

TAKEOVER_SECONDS = 10.0
COPIED = 10_000


@contextmanager
def two_machines(directory: Path, dsn: str, **changes: str) -> Iterator[tuple[Stage, Stage]]:
    """Set the stage with a mirror that both machines reach, and with two configs; no daemon runs yet."""
    mirrored = {"[state]\n": f'[state]\nmirror = "{directory}/shared.db"\n'}
    with stage(directory, dsn, changes={**mirrored, **changes}) as shop:
        yield shop, shop.second()


def active(shop: Stage) -> bool:
    """Whether this daemon has the stream."""
    snapshot = shop.snapshot()
    return snapshot is not None and snapshot.source.connected


def start_both(first: Stage, second: Stage) -> None:
    """Start the first as the active daemon, and the second to stand by."""
    first.start("--standby")
    first.wait(lambda: active(first), "the first daemon does not become active")
    stand_by(second)


def stand_by(shop: Stage) -> None:
    """Start a daemon, and wait until it stands by."""
    shop.start("--standby")
    shop.wait(lambda: "standing by" in shop.log(), "the daemon does not stand by")


def fail_over(dying: Stage, next_one: Stage) -> float:
    """Kill the active daemon; returns the seconds until the other one has the stream."""
    began = time.monotonic()
    dying.kill()
    next_one.wait(lambda: active(next_one), "the standby does not take over")
    took = time.monotonic() - began
    print(f"took over in {took:.2f} s")
    assert took < TAKEOVER_SECONDS
    return took


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_fail_over_to_and_fro_under_load(pg: str, tmp_path: Path) -> None:
    """Kill -9 under load with failing CRMs, each time the other takes over; at the end the CRMs equal the database."""
    seed = int(os.environ.get("CDCSYNC_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    turns = max(3, int(os.environ.get("CDCSYNC_SOAK_SECONDS", "0")) // 4)
    with two_machines(tmp_path, pg) as (first, second):
        prepare(first)
        now, spare = first, second
        start_both(now, spare)
        with Shopkeeper(pg, seed).at_work():
            for crm, rules in FAULTS.items():
                first.settings(crm, seed=seed)
                first.fault(crm, *rules)
            for _ in range(turns):
                time.sleep(rng.uniform(0.5, 2.0))  # the point of the crash
                fail_over(now, spare)
                stand_by(now)
                now, spare = spare, now
        for crm in FAULTS:
            first.mend(crm)
        now.settled(timeout=120)
        now.assert_converged()
        assert spare.stop() == 0, spare.log()
        assert now.stop() == 0, now.log()


@pytest.mark.parametrize("point", ["created, its id not known", "closed, the answer lost"])
def test_the_standby_takes_up_a_bulk_job(point: str, pg: str, tmp_path: Path) -> None:
    """Killed within a bulk job, its job is taken up on the other machine: one job, no row written twice."""
    with two_machines(tmp_path, pg, **BULK) as (first, second):
        start_both(first, second)
        first.settled()
        before = len(first.requests("salesforce", "POST", JOBS))
        where = POINTS[point]
        match = {"method": where["method"], "path": where["path"]}
        first.fault("salesforce", {"kind": "hold", "when": where["when"], "match": match, "times": 1})
        first.execute(
            "INSERT INTO companies (name, domain) SELECT 'Bulk ' || i, 'bulk' || i || '.example.com' "
            f"FROM generate_series(1, {ROWS}) i"
        )
        first.wait(lambda: bool(first.admin("salesforce", "faults")["held"]), "no request is held")
        first.kill()
        first.mend("salesforce", drop=True)
        second.settled()
        assert len(second.requests("salesforce", "POST", JOBS)) - before == 1
        records = second.records("salesforce", "Account")
        assert [r["writes"] for r in records if r["fields"]["Name"].startswith("Bulk ")] == [1] * ROWS
        second.assert_converged()


def test_the_standby_goes_on_with_a_first_copy(pg: str, tmp_path: Path) -> None:
    """Killed within the first copy, the other machine copies the rest, and doubles nothing."""
    with two_machines(tmp_path, pg) as (first, second):
        first.execute(
            "INSERT INTO companies (name, domain) SELECT 'Copied ' || i, 'copied' || i || '.example.com' "
            f"FROM generate_series(1, {COPIED}) i"
        )
        start_both(first, second)
        first.wait(lambda: _copying(first), "no copy is under way")
        fail_over(first, second)
        second.settled(timeout=240)
        second.assert_converged()


def _copying(shop: Stage) -> bool:
    snapshot = shop.snapshot()
    if snapshot is None:
        return False
    copies = [entry.backfill for entry in snapshot.maps]
    return any(copy.rows for copy in copies) and any(copy.state != "done" for copy in copies)


def test_two_daemons_on_one_machine_need_no_mirror(pg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one state file the second waits for the first, tells systemd so, and ends with 0 when it is asked to."""
    with stage(tmp_path, pg) as shop, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        second = shop.second(machine=False)
        start_both(shop, second)
        assert second.stop() == 0, second.log()
        name = f"cdcsync-{tmp_path.name}-{os.getpid()}"
        systemd.bind(f"\0{name}")
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        stand_by(second)
        told = ""
        while "READY=1" not in told:
            told += systemd.recv(1000).decode() + "\n"
        assert f"STATUS=Standing by; active is process {shop.daemon.pid if shop.daemon else 0} on " in told
        shop.settled()
        assert shop.daemon is not None
        assert shop.stop() == 0
        shop.execute("UPDATE companies SET phone = 'new'")
        second.settled()
        second.assert_converged()


def test_an_active_daemon_that_lost_its_lock_ends(pg: str, tmp_path: Path) -> None:
    """The lock is gone, as when a lease ran out, and the standby takes it: the former one ends with 75."""
    with two_machines(tmp_path, pg) as (first, second):
        start_both(first, second)
        first.settled()
        told = second.cli("status")
        assert told.startswith(f"Standing by: active is process {first.daemon.pid if first.daemon else 0} on ")
        assert "In step" in told
        (tmp_path / "shared.db.lock").unlink()
        assert first.daemon is not None
        assert first.daemon.wait(TAKEOVER_SECONDS) == 75, first.log()
        second.settled()
        second.assert_converged()


def test_nothing_is_sent_while_the_mirror_does_not_answer(pg: str, tmp_path: Path) -> None:
    """Storage that hangs: the daemon waits without sending, says so, and goes on when it is back."""
    with two_machines(tmp_path, pg) as (first, _):
        first.start("--standby")
        first.settled()
        with contextlib.closing(sqlite3.connect(tmp_path / "shared.db", isolation_level=None, timeout=30)) as storage:
            storage.execute("BEGIN EXCLUSIVE")
            first.execute("UPDATE companies SET name = name || '!'")
            first.wait(lambda: _says(first, "mirror does not answer"), "the daemon does not say that it waits")
            books = [first.admin(crm, "books") for crm in first.sandboxes]
            first.execute("UPDATE companies SET phone = 'hung'")
            assert [first.admin(crm, "books") for crm in first.sandboxes] == books
            storage.execute("ROLLBACK")
        first.settled()
        first.assert_converged()


def _says(shop: Stage, words: str) -> bool:
    snapshot = shop.snapshot()
    return snapshot is not None and all(words in (lane.last_error or "") for lane in snapshot.lanes)


def test_an_old_copy_of_the_state_sends_nothing(pg: str, tmp_path: Path) -> None:
    """With an old state, rows in its journal and no mirror, the slot stops a daemon before its first request."""
    with stage(tmp_path, pg) as shop:
        old = shop.second()
        shop.start()
        shop.settled()
        for crm in shop.sandboxes:
            shop.fault(crm, {"kind": "refuse", "status": 503, "match": {}, "times": None})
        shop.execute("UPDATE companies SET name = name || ' (old)'")
        shop.wait(lambda: bool(shop.state("SELECT count(*) FROM journal WHERE job = 0")), "nothing waits")
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as now:
            now.execute("VACUUM INTO ?", [str(tmp_path / "second.db")])
        for crm in shop.sandboxes:
            shop.mend(crm)
        shop.execute("UPDATE companies SET name = name || ' (new)'")
        shop.settled()
        asked = {crm: len(shop.requests(crm, "POST", "")) for crm in shop.sandboxes}
        old.start("--standby")
        old.wait(lambda: not old.alive(), "the slot does not stop it")
        assert shop.stop() == 0
        assert old.daemon is not None
        assert old.daemon.wait(60) == 1, old.log()
        assert "ahead of what is durable here" in old.log()
        assert {crm: len(shop.requests(crm, "POST", "")) for crm in shop.sandboxes} == asked
        shop.start()
        shop.settled()
        shop.assert_converged()
