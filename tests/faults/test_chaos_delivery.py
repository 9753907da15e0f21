"""Changes that come twice, answers that come late, a database that is away, a disk that is full, a clock that jumps."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.errors import EXIT_TRY_LATER
from tests.faults.disturber import lines
from tests.faults.shopkeeper import prepare
from tests.faults.stage import Stage, stage

FIRMS = {"salesforce": "Account", "hubspot": "companies"}
HOLD: dict[str, object] = {
    "kind": "hold",
    "when": "after",
    "match": {"path": "composite/sobjects$|companies/batch/update"},
}
PIECE = 20
AWAY = float(os.environ.get("CDCSYNC_AWAY_SECONDS", "4"))
"""How long PostgreSQL is down; minutes make no difference but to the test's time."""
DAY = 86_400
INSERT = (
    "INSERT INTO companies (name, domain) "
    "SELECT '{0} ' || i, '{0}' || i || '.example.com' FROM generate_series(1, {1}) i"
)
CLOCK = '''\
"""Shift the wall clock of this process by the seconds in a file."""
import os
import time

_true = time.time


def _shifted() -> float:
    with open(os.environ["CDCSYNC_TEST_CLOCK"]) as file:
        return _true() + float(file.read() or 0)


time.time = _shifted
'''


def changes_in(shop: Stage) -> list[int]:
    """Return how many row changes each lane has been fed."""
    snapshot = shop.snapshot()
    assert snapshot is not None
    return [lane.counters.changes_in for lane in snapshot.lanes]


def test_what_is_delivered_twice_counts_once(pg: str, tmp_path: Path) -> None:
    """The server sends again what it was not told to be safe; it is fed once, and created once.

    First the connection is cut as soon as changes have come, then the daemon is killed as soon as a CRM has them.
    """
    with stage(tmp_path, pg) as shop, lines(shop) as (source, _):
        shop.start()
        shop.settled()
        before, again = changes_in(shop), 0
        for number in range(2):
            shop.execute(INSERT.format(f"Cut {number}", PIECE))
            ((target,),) = shop.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
            shop.wait(lambda target=target: received(shop) >= target - 64, "the changes do not come")  # type: ignore[misc]
            again += durable(shop) < target - 64
            source.cut()
        shop.settled()
        assert again, "everything was safe before any cut: the test proves nothing"
        assert changes_in(shop) == [count + 2 * PIECE + 1 for count in before]
        for number in range(2):
            shop.execute(INSERT.format(f"Kill {number}", PIECE))
            shop.wait(lambda number=number: named(shop, f"Kill {number} ") > 0, "nothing arrives")  # type: ignore[misc]
            shop.kill()
            shop.start()
            shop.settled()
            shop.wait(lambda: durable(shop) == received(shop) > 0, "no tick")
        shop.assert_converged()
        for crm in shop.sandboxes:
            books = shop.admin(crm, "books")
            assert books["creates"] == len(shop.admin(crm, "records")), "a record was made twice, or deleted"
            assert books["noop_writes"] <= 2 * (PIECE + 1), "more was sent again than what was under way at a kill"


def received(shop: Stage) -> int:
    """Return the position up to which the daemon has read."""
    snapshot = shop.snapshot()
    return 0 if snapshot is None else int(snapshot.source.received_lsn)


def durable(shop: Stage) -> int:
    """Return the position that the daemon has made safe."""
    snapshot = shop.snapshot()
    return 0 if snapshot is None else int(snapshot.source.durable_lsn)


def named(shop: Stage, beginning: str) -> int:
    """Count the Salesforce accounts with such a name."""
    return sum(record["fields"]["Name"].startswith(beginning) for record in shop.records("salesforce", "Account"))


def test_an_answer_that_comes_late(pg: str, tmp_path: Path) -> None:
    """While a write's answer is out, its rows wait with their next change, and all others go on.

    In Salesforce the connection breaks before the answer comes, in HubSpot the answer comes at last. Either way the
    rows' next changes follow, in order.
    """
    with stage(tmp_path, pg) as shop, lines(shop) as (_, crms):
        shop.start()
        shop.settled()
        for crm in shop.sandboxes:
            shop.fault(crm, HOLD)
        shop.execute("UPDATE companies SET name = 'First' WHERE id <= 3")
        shop.wait(lambda: all(shop.admin(crm, "faults")["held"] for crm in shop.sandboxes), "no request is held")
        shop.execute("UPDATE companies SET name = 'Second' WHERE id <= 3")
        shop.execute("UPDATE companies SET name = 'Other' WHERE id > 3")
        others = shop.execute("SELECT count(*) FROM companies WHERE id > 3")[0][0]
        for crm, name in FIRMS.items():
            field = {"salesforce": "Name", "hubspot": "name"}[crm]
            shop.wait(
                lambda crm=crm, name=name, field=field: (  # type: ignore[misc]
                    [record["fields"][field] for record in shop.records(crm, name)].count("Other") == others
                ),
                f"the other rows of {crm} do not go on",
            )
            assert {shop.record(crm, name, key)["fields"][field] for key in (1, 2, 3)} == {"First"}
        crms["salesforce"].cut()
        shop.wait(lambda: shop.record("salesforce", "Account", 1)["fields"]["Name"] == "Second", "no second try")
        for crm in shop.sandboxes:
            shop.mend(crm)
        shop.settled()
        shop.assert_converged()


def test_a_database_that_is_away(own_pg_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """The server crashes and stays away: the daemon stays, says so, and goes on by itself when it is back."""
    with stage(tmp_path, own_pg_server.dsn()) as shop:
        shop.start()
        shop.settled()
        shop.execute(INSERT.format("Before", PIECE))
        own_pg_server.stop("immediate")
        shop.wait(lambda: (found := shop.snapshot()) is not None and not found.source.connected, "nothing is noticed")
        ends = time.monotonic() + AWAY
        while time.monotonic() < ends:
            assert shop.alive(), shop.log()
            time.sleep(0.2)
        told = shop.snapshot()
        assert told is not None
        assert told.source.last_error
        own_pg_server.start()
        shop.execute(INSERT.format("After", PIECE))
        shop.settled()
        shop.assert_converged()


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a file system of some megabytes on a directory; without the right to do so, the test is skipped."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "cdcsync-test", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(ballast: Path) -> None:
    """Write until there is no room left."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk(pg: str, tmp_path: Path) -> None:
    """The daemon ends and says what to do; so does its next start; with room again it goes on where it was."""
    with small_disk(tmp_path / "disk") as disk:
        moved = {f'path   = "{tmp_path}/state.db"': f'path   = "{disk}/state.db"'}
        with stage(tmp_path, pg, changes=moved) as shop:
            shop.start()
            shop.settled()
            fill(disk / "ballast")
            shop.execute(INSERT.format("Full", 5_000))
            ends_with_a_remedy(shop)
            shop.start()
            ends_with_a_remedy(shop)
            (disk / "ballast").unlink()
            shop.start()
            shop.settled()
            shop.assert_converged()
            shop.stop()


def ends_with_a_remedy(shop: Stage) -> None:
    """See that the daemon ends by itself, for want of room, and says what to do."""
    shop.wait(lambda: not shop.alive(), "the daemon does not end")
    assert shop.daemon is not None
    assert shop.daemon.returncode == EXIT_TRY_LATER
    assert "free disk space and start again" in shop.log(), shop.log()


def test_a_clock_that_jumps(pg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day forward and two back, with tokens in use, a job under way and a CRM backed off from: nothing is upset.

    No login is repeated, nothing waits for a clock, and no budget is taken for used up or for new.
    """
    oauth = (
        'client_id = "demo"\nclient_secret = { env = "DEMO_SALESFORCE_SECRET" }\n'
        'refresh_token = { env = "DEMO_HUBSPOT_TOKEN" }'
    )
    changes = {
        'client_id     = "demo"': 'client_id     = "demo"\nbulk_from = 200',
        'token    = { env = "DEMO_HUBSPOT_TOKEN" }': oauth,
    }
    with stage(tmp_path, pg, changes=changes) as shop:
        prepare(shop)
        (tmp_path / "clock").mkdir()
        (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
        shift = tmp_path / "shift"
        shift.write_text("0")
        monkeypatch.setenv("CDCSYNC_TEST_CLOCK", str(shift))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'clock'}:{os.environ.get('PYTHONPATH', '')}")
        shop.start()
        shop.settled()
        logins = [len(shop.requests(crm, "POST", "/token")) for crm in shop.sandboxes]
        for number, jump in enumerate((DAY, -2 * DAY, 0)):
            shop.fault("salesforce", {"kind": "stuck_job", "match": {}, "times": 1})
            shop.fault("hubspot", {"kind": "refuse", "status": 503, "match": {}, "times": 2})
            shop.execute(INSERT.format(f"Jump {number}", 300))
            shop.wait(lambda: backs_off(shop) and jobs(shop) > 0, "no job is under way, or nothing has failed")
            shift.write_text(str(jump))
            for crm in shop.sandboxes:
                shop.mend(crm)
            began = time.monotonic()
            shop.settled(timeout=30)
            print(f"settled {time.monotonic() - began:.1f} s after a jump to {jump}")
        shop.assert_converged()
        assert [len(shop.requests(crm, "POST", "/token")) for crm in shop.sandboxes] == logins


def backs_off(shop: Stage) -> bool:
    """Tell whether HubSpot has refused something."""
    return any(request["fault"] for request in shop.admin("hubspot", "requests"))


def jobs(shop: Stage) -> int:
    """Count the bulk jobs under way."""
    snapshot = shop.snapshot()
    return 0 if snapshot is None else sum(len(lane.jobs) for lane in snapshot.lanes)
