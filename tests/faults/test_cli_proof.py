"""`wait`, `lag --fail-above` and what the status claims: with a daemon, with its file alone, and without Postgres."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tests.faults.stage import stage
from tests.faults.test_cli import LIVE, run

UPSERT = {"method": "POST", "path": "/services/data/.*"}


def test_scripts_read_their_own_writes(pg: str, tmp_path: Path) -> None:
    """When `wait` returns, what was committed before is in the CRMs, also after a first copy; else it says what is not."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        waited = run(shop, "wait")
        assert waited.code == 0, waited.err
        assert [line.partition(" is current as of LSN ")[0] for line in waited.out.splitlines()] == [
            "salesforce",
            "hubspot",
        ]
        assert len(shop.records("hubspot", "companies")) == shop.execute("SELECT count(*) FROM companies")[0][0]
        for number in range(5):
            shop.execute("UPDATE companies SET name = %s WHERE id = 1", [f"Written {number}"])
            assert run(shop, "wait").code == 0
            for crm, kind, field in (("salesforce", "Account", "Name"), ("hubspot", "companies", "name")):
                assert [r["fields"][field] for r in shop.records(crm, kind)].count(f"Written {number}") == 1

        assert run(shop, "pause", LIVE).code == 0
        shop.wait(lambda: "paused by hand" in run(shop, "status").out, "the daemon did not hear of the pause")
        shop.execute("UPDATE companies SET name = 'Held' WHERE id = 1")
        assert run(shop, "wait", "--crm", "hubspot").code == 0
        late = run(shop, "wait", "--timeout", "1s", "--json")
        assert late.code == 75
        assert "cdcsync: salesforce is not current as of" in late.err
        assert "after 1s: 1 row pending, 1 paused" in late.err
        held, fine = map(json.loads, late.out.splitlines())
        assert (held["crm"], held["current"], held["paused"], fine["current"]) == ("salesforce", False, 1, True)
        assert run(shop, "lag", "--fail-above", "1h").code == 0
        above = run(shop, "lag", "--fail-above", "1ms")
        assert (above.code, above.err) == (1, "cdcsync: further behind than 1ms: salesforce\n")
        done = threading.Event()
        waiting = threading.Thread(target=lambda: run(shop, "wait").code == 0 and done.set())
        waiting.start()
        assert run(shop, "resume", LIVE).code == 0
        waiting.join()
        assert done.is_set()
        assert run(shop, "wait", "--crm", "other").code == 2
        assert run(shop, "wait", "--lsn", "nonsense").code == 2
        assert run(shop, "lag", "--fail-above", "much").code == 2


def test_rejected_rows_are_excepted(pg: str, tmp_path: Path, free_port: int) -> None:
    """They hold nothing back and are named; with --strict they count. The file alone proves it, without a page."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        assert run(shop, "wait").code == 0
        shop.execute("UPDATE companies SET name = NULL WHERE id = 1") if False else None
        shop.fault(
            "hubspot",
            {"kind": "reject", "match": {"object": "companies"}, "times": 1, "code": "VALIDATION_ERROR"},
        )
        shop.execute("UPDATE companies SET name = 'Refused' WHERE id = 1")
        waited = run(shop, "wait")
        assert waited.code == 0, waited
