"""The state file under a whole cdcsync: backups beside the daemon, old copies, files that are damaged or lost."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cdcsync.errors import REBUILD
from tests.faults.stage import Stage, stage
from tests.faults.test_cli import reconfigure, run, slot_of
from tests.unit.test_state_trouble import become_newer, empty, flip, overwrite, truncate


def test_a_backup_beside_a_daemon_under_load(pg: str, tmp_path: Path) -> None:
    """It is sound and balanced, never replaces a file unasked, and the daemon goes on; `check` sees both files."""
    backup = tmp_path / "backup.db"
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                shop.execute("UPDATE companies SET name = left(name, 30) || (random() * 1000)::int WHERE id <= 50")

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(3):
                made = run(shop, "state", "backup", str(backup), "--force", "--json")
                assert made.code == 0, made.err
                assert json.loads(made.out)["bytes"] == backup.stat().st_size
                for arguments in ([str(backup)], [str(backup), "--quick"], []):
                    checked = run(shop, "state", "check", *arguments, "--json")
                    assert checked.code == 0, checked
                    report = json.loads(checked.out)
                    assert (report["fine"], report["slot"], report["format"]) == (True, slot_of(shop), 1)
                    assert {entry["lane"] for entry in report["books"]} == {"salesforce", "hubspot"}
                    assert (report["backup"] is not None) == bool(arguments)
        finally:
            done.set()
            worker.join()
        again = run(shop, "state", "backup", str(backup))
        assert (again.code, "--force" in again.err) == (1, True)
        text = run(shop, "state", "check").out
        assert "✓ hubspot: " in text
        assert "ledger: " in text
        refused = run(shop, "state", "restore", str(backup), "--confirm", slot_of(shop))
        assert (refused.code, "another cdcsync is running" in refused.err) == (1, True)
        shop.settled()
        shop.assert_converged()


def written(shop: Stage) -> bool:
    """Whether the state file knows of each record that was made."""
    snapshot = shop.snapshot()
    with contextlib.closing(sqlite3.connect(shop.directory / "state.db")) as db:
        ((known,),) = db.execute("SELECT count(*) FROM ledger").fetchall()
    return snapshot is not None and known == sum(lane.counters.created for lane in snapshot.lanes)


def live_on(shop: Stage) -> None:
    """Change, move, delete and make rows, and let values go there and back."""
    shop.execute("UPDATE companies SET name = 'After the backup' WHERE id BETWEEN 10 AND 20")
    shop.execute("UPDATE orders SET id = id + 100000 WHERE id <= 20")
    shop.execute("INSERT INTO companies (name, domain) VALUES ('Made after', 'made-after.example.com')")
    shop.execute("DELETE FROM orders WHERE id BETWEEN 30 AND 40")


def test_an_old_copy_is_refused_and_rebuilt_from(pg: str, tmp_path: Path) -> None:
    """The slot has gone on: nothing is sent, and the command that is named leads to equality without a double.

    What the copy says of contents and of rows on their way is not believed: rows that changed since and changed back
    are sent, those that moved keep their records, and what was deleted with nobody listening is deleted.
    """
    backup = tmp_path / "backup.db"
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        shop.wait(lambda: written(shop), "the ledger is not written")  # what is settled is, with the next tick
        shop.execute("UPDATE companies SET name = 'Waits in the copy' WHERE id = 21")
        assert run(shop, "state", "backup", str(backup)).code == 0
        (name,) = shop.execute("SELECT name FROM companies WHERE id = 5")[0]
        shop.execute("UPDATE companies SET name = 'There and back' WHERE id = 5")
        live_on(shop)
        shop.settled()
        assert shop.stop() == 0
        shop.execute("UPDATE companies SET name = %s WHERE id = 5", [name])
        shop.execute("DELETE FROM orders WHERE id BETWEEN 50 AND 60")

        slot = slot_of(shop)
        restored = run(shop, "state", "restore", str(backup), typed=f"{slot}\n")
        assert restored.code == 0, restored.err
        assert "state.db.replaced-1" in restored.out
        before = [len(shop.admin(crm, "requests")) for crm in shop.sandboxes]
        for _ in range(2):
            refused = run(shop, "run")
            assert refused.code == 1
            assert "is a backup of" in refused.err
            assert "has gone on to" in refused.err
            assert REBUILD in refused.err
        assert [len(shop.admin(crm, "requests")) for crm in shop.sandboxes] == before

        assert run(shop, "slot", "reset", "--confirm", slot).code == 0
        shop.start()
        shop.settled()
        shop.assert_converged()


def test_a_copy_that_is_current_is_gone_on_from(pg: str, tmp_path: Path) -> None:
    """Moved to another machine after a stop, say: nothing is missing, and the start goes on from it."""
    backup = tmp_path / "backup.db"
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        assert shop.stop() == 0
        assert run(shop, "state", "backup", str(backup)).code == 0
        shop.execute("UPDATE companies SET name = 'Unread' WHERE id = 5")
        assert run(shop, "state", "restore", str(backup), "--confirm", slot_of(shop)).code == 0
        shop.start()
        shop.settled()
        shop.assert_converged()
        assert json.loads(run(shop, "state", "check", "--json").out)["backup"] is None


@pytest.mark.parametrize("spoil", [flip, truncate, overwrite, empty, Path.unlink])
def test_a_lost_state_is_rebuilt_by_the_command_that_is_named(
    spoil: Callable[[Path], object], pg: str, tmp_path: Path
) -> None:
    """Damaged or gone: the start is refused, and two commands later the CRMs equal the database, without a double."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "run", "--once").code == 0
        path = shop.directory / "state.db"
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        spoil(path)
        shop.execute("UPDATE companies SET name = 'Meanwhile' WHERE id = 5")
        refused = run(shop, "run")
        assert refused.code == 1, refused
        assert REBUILD in refused.err
        assert "Traceback" not in refused.err
        reset = run(shop, "slot", "reset", "--confirm", slot_of(shop))
        assert reset.code == 0, reset.err
        lost = spoil in {empty, Path.unlink}
        assert ("is damaged; it is moved aside" in reset.err) == (not lost)
        assert "stay in the CRM" in reset.err
        assert path.with_name("state.db.damaged-1").exists() == (not lost)
        shop.start()
        shop.settled()
        shop.assert_converged()


def test_a_state_of_another_source_or_time_is_refused(pg: str, tmp_path: Path) -> None:
    """Of another slot, or of a later version: one sentence, and the file is left as it is."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "run", "--once").code == 0
        path, slot = shop.directory / "state.db", slot_of(shop)
        reconfigure(shop, f'slot = "{slot}"', f'slot = "{slot}_x"')
        another = run(shop, "run")
        assert another.code == 1
        assert f"belongs to slot '{slot}' in database" in another.err
        assert REBUILD in another.err
        reconfigure(shop, f'slot = "{slot}_x"', f'slot = "{slot}"')
        become_newer(path)
        for command in (["run"], ["status"], ["state", "check"], ["slot", "reset", "--confirm", slot]):
            newer = run(shop, *command)
            assert newer.code == 1, command
            assert "was written by a newer cdcsync" in newer.err
            assert REBUILD in newer.err
