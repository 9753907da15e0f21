"""`cdcsync run --shadow` on real parts: it tells what would be sent, and leaves everything as it was."""

from __future__ import annotations

import hashlib
import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.stage import Stage, stage
from tests.faults.test_cli import run

BULK = {'client_id     = "demo"': 'client_id     = "demo"\nbulk_from = 200'}
TABLES = "TABLE companies, customers, orders"


def books(shop: Stage) -> list[Any]:
    """Return what the sandboxes know of all writes ever made to them."""
    kept = []
    for crm in shop.sandboxes:
        seen = shop.admin(crm, "books")
        kept.append({name: seen[name] for name in ("creates", "updates", "deletes", "noop_writes") if name in seen})
    return kept


def slots(shop: Stage) -> list[tuple[Any, ...]]:
    """Return the database's slots as they are."""
    return shop.execute(
        "SELECT slot_name, restart_lsn, confirmed_flush_lsn, active FROM pg_replication_slots "
        "WHERE database = current_database() ORDER BY 1"
    )


def published(shop: Stage) -> list[tuple[Any, ...]]:
    """Return the publication as it is."""
    return shop.execute(
        "SELECT p.xmin::text, p.pubname, obj_description(p.oid), r.xmin::text, r.prrelid FROM pg_publication p "
        "LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid ORDER BY r.prrelid"
    )


def files(shop: Stage) -> dict[str, str]:
    """Return the digests of what is in the state's directory, logs left out."""
    found = (path for path in shop.directory.iterdir() if path.is_file() and path.name.startswith("state.db"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def leftovers(shop: Stage) -> list[str]:
    """Name the directories of shadow runs."""
    return [path.name for path in shop.directory.glob(".cdcsync-shadow-*")]


def told(path: Path) -> Counter[tuple[str, str]]:
    """Count the records of an output file by object and operation."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Counter((line["object"], line["op"]) for line in lines)


def test_the_differences_are_told_and_nothing_is_touched(pg: str, tmp_path: Path) -> None:
    """With the daemon down: slot, publication, state file and both CRMs are after it what they were before."""
    output = tmp_path / "would.jsonl"
    with stage(tmp_path, pg) as shop:
        assert run(shop, "run", "--once").code == 0
        shop.execute("UPDATE companies SET name = 'Changed' WHERE id = 1")
        shop.execute("INSERT INTO companies (name, domain) VALUES ('New', 'new.example.com')")
        shop.execute("DELETE FROM orders WHERE id = (SELECT min(id) FROM orders)")
        shop.execute("UPDATE orders SET amount = 'NaN' WHERE id = (SELECT max(id) FROM orders)")
        before = slots(shop), published(shop), files(shop), books(shop)
        writes = [len(shop.requests(crm, "PATCH", "")) for crm in shop.sandboxes]

        said = run(shop, "run", "--shadow", "--once", "--shadow-output", str(output))

        assert said.code == 0, said.err
        assert (slots(shop), published(shop), files(shop), books(shop)) == before
        assert [len(shop.requests(crm, "PATCH", "")) for crm in shop.sandboxes] == writes
        assert leftovers(shop) == []
        assert told(output) == {
            ("Account", "update"): 1,
            ("Account", "create"): 1,
            ("Opportunity", "delete"): 1,
            ("companies", "update"): 1,
            ("companies", "create"): 1,
            ("deals", "delete"): 1,
        }
        assert stat.S_IMODE(output.stat().st_mode) == 0o600
        lines = said.out.splitlines()
        assert lines[0].split() == ["CRM", "object", "creates", "updates", "deletes", "links", "API", "calls"]
        assert ["salesforce", "Account", "1", "1", "0", "0"] in [line.split()[:6] for line in lines]
        assert any("salesforce: 1 row cannot be mapped: " in line and "(Amount)" in line for line in lines), said.out
        assert "Changed" in output.read_text(encoding="utf-8")
        assert "Changed" not in said.err
        assert all(json.loads(line)["shadow"] for line in said.err.splitlines() if '"would send"' in line)

        again = run(shop, "run", "--shadow", "--once", "--shadow-output", str(output))
        assert again.code == 1
        assert "takes the path of a new file" in again.err


def test_before_the_first_start_all_that_would_be_made_is_told(pg: str, tmp_path: Path) -> None:
    """Bulk jobs included; the publication is a DBA's, and there is neither slot nor state file afterwards."""
    with stage(tmp_path, pg, changes=BULK) as shop:
        without = run(shop, "run", "--shadow", "--once")
        assert without.code == 1
        assert "there is no publication" in without.err
        assert "CREATE PUBLICATION" in without.err
        assert (slots(shop), published(shop)) == ([], [])
        shop.execute(f"CREATE PUBLICATION cdcsync FOR {TABLES}")
        before = books(shop), published(shop)
        said = run(shop, "run", "--shadow", "--once")
        assert said.code == 0, said.err
        rows = {(cells[0], cells[1]): cells[2:5] for cells in (line.split() for line in said.out.splitlines()[1:7])}
        assert rows["salesforce", "Opportunity"] == ["300", "0", "0"]
        assert rows["hubspot", "contacts"] == ["200", "0", "0"]
        assert (books(shop), published(shop)) == before
        assert (slots(shop), files(shop), leftovers(shop)) == ([], {}, [])


def test_beside_a_running_daemon_it_follows_the_stream(pg: str, tmp_path: Path) -> None:
    """Each change is told by the one and sent by the other; kill -9 leaves no slot, and its files go with the next."""
    output = tmp_path / "would.jsonl"
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        trial = shop.second(machine=False)
        trial.start("--shadow", "--shadow-output", str(output))
        shop.wait(lambda: len(slots(shop)) == 2 and all(slot[3] for slot in slots(shop)), "it does not come up")
        shop.execute("UPDATE companies SET name = 'Both' WHERE id = 2")
        shop.wait(lambda: told(output)["Account", "update"] == told(output)["companies", "update"] == 1, "not told")
        assert '"Both"' in output.read_text(encoding="utf-8")
        shop.settled()
        trial.kill()
        shop.wait(lambda: len(slots(shop)) == 1, "its slot stays")
        assert len(leftovers(shop)) == 1
        assert run(shop, "run", "--shadow", "--once").code == 0
        assert leftovers(shop) == []
        shop.settled()
        shop.assert_converged()
        assert run(shop, "run", "--shadow", "--standby").code == 2
        assert run(shop, "run", "--shadow-output", "x").code == 2
