"""`wait`, `lag --fail-above` and what the status claims: with a daemon, with its file alone, and without Postgres."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.stage import Stage, stage
from tests.faults.test_cli import LIVE, reconfigure, run


def _read(shop: Stage) -> bool:
    """Whether the first table is copied, as far as reading goes."""
    snapshot = shop.snapshot()
    return snapshot is not None and any(
        entry.lane == "hubspot" and entry.backfill.state == "done" and entry.pending for entry in snapshot.maps
    )


def test_scripts_read_their_own_writes(pg: str, tmp_path: Path) -> None:
    """When `wait` returns, what was committed before is in the CRMs, after a first copy, too; else it says why."""
    with stage(tmp_path, pg) as shop:
        shop.fault("hubspot", {"kind": "hold", "match": {"method": "POST", "path": ".*companies/batch/upsert"}})
        shop.start()
        shop.wait(lambda: bool(shop.admin("hubspot", "faults")["held"]), "no request is held")
        shop.wait(lambda: _read(shop), "the copy is not read")
        early = run(shop, "wait", "--lsn", "0/1", "--crm", "hubspot", "--timeout", "1s")
        assert early.code == 75, early
        assert "still to be copied" in early.err
        shop.mend("hubspot")
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
        with ThreadPoolExecutor(1) as aside:
            waiting = aside.submit(run, shop, "wait")
            assert run(shop, "resume", LIVE).code == 0
            assert waiting.result().code == 0
        assert run(shop, "wait", "--crm", "other").code == 2
        assert run(shop, "wait", "--lsn", "nonsense").code == 2
        assert run(shop, "lag", "--fail-above", "much").code == 2


def test_rejected_rows_are_excepted(pg: str, tmp_path: Path) -> None:
    """They hold nothing back and are named; with --strict they count. The file alone proves it, without a page."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        assert run(shop, "wait").code == 0
        shop.execute(
            "INSERT INTO customers (id, email, last_name) VALUES "
            "('00000000-0000-4000-8000-000000000001', 'no address', 'Refused')"
        )
        shop.execute(
            "INSERT INTO orders (customer_id, title, stage, due) "
            "VALUES ('00000000-0000-4000-8000-000000000001', 'Waits', 'new', now())"
        )
        excepted = ["except 1 row (1 rejected)", "except 2 rows (1 rejected, 1 waiting for a parent)"]
        for listen in (True, False):
            if not listen:
                assert shop.stop() == 0
                reconfigure(shop, f'listen = "{shop.status_url[7:-1]}"', 'listen = "off"')
                shop.start()
                shop.execute("UPDATE companies SET name = 'Without a page' WHERE id = 1")
            waited = run(shop, "wait")
            assert waited.code == 0, waited
            for crm, words, out, err in zip(
                ("salesforce", "hubspot"), excepted, waited.out.splitlines(), waited.err.splitlines(), strict=True
            ):
                assert out.startswith(f"{crm} is current as of LSN "), waited
                assert out.endswith(f", {words}"), waited
                assert err.startswith(f"cdcsync: {crm}: {words}"), waited
            assert run(shop, "wait", "--strict").code == 1
            assert "salesforce is current as of LSN" in run(shop, "status").out
            told = [lane["proof"]["sentence"] for lane in json.loads(run(shop, "status", "--json").out)["lanes"]]
            assert [sentence.partition(", ")[2] for sentence in told] == excepted
        names = [record["fields"]["name"] for record in shop.records("hubspot", "companies")]
        assert names.count("Without a page") == 1
        assert shop.stop() == 0
        books = json.loads(run(shop, "state", "check", "--json").out)["books"]
        assert {one["lane"]: (one["missing"], one["rejected"]) for one in books} == {
            "salesforce": (0, 1),
            "hubspot": (0, 2),
        }


def test_waiting_without_postgres_or_a_daemon(pg: str, tmp_path: Path, free_port: int) -> None:
    """Without Postgres the present position is not known: 69. For a given one the state file is enough."""
    with stage(tmp_path, pg) as shop:
        assert run(shop, "wait", "--timeout", "1s").code == 1
        assert run(shop, "run", "--once").code == 0
        shop.execute("UPDATE companies SET name = 'Not read' WHERE id = 1")
        stopped = run(shop, "wait", "--timeout", "1s")
        assert (stopped.code, stopped.err.count("is not current as of")) == (75, 2)
        reconfigure(shop, f'dsn = "{pg}"', f'dsn = "postgresql://nobody@127.0.0.1:{free_port}/shop"')
        unreachable = run(shop, "wait")
        assert unreachable.code == 69
        assert "cannot connect to PostgreSQL" in unreachable.err
        assert run(shop, "wait", "--lsn", "0/1").code == 0
        assert run(shop, "wait", "--lsn", "FFFF/0", "--timeout", "1s").code == 75
        assert run(shop, "lag", "--fail-above", "1GB").code == 69
