"""Pauses on real parts: of a whole CRM, and those that the guard against mass deletes makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.stage import Stage, stage

COMPANIES = "companies:salesforce.Account"
BULK = {'client_id     = "demo"': 'client_id     = "demo"\nbulk_from = 200'}
GUARDED = {'key   = { External_Id__c = "id" }\nmax_deletes = "off"': 'key   = { External_Id__c = "id" }'}
"""The first mapping has the default allowance."""


def paused(shop: Stage, mapping: str = COMPANIES) -> str:
    """Return why a mapping is paused, empty if it is not, or if no daemon answers."""
    snapshot = shop.snapshot()
    entries = snapshot.maps if snapshot is not None else ()
    return next((entry.paused or "" for entry in entries if entry.name == mapping), "")


def accounts(shop: Stage) -> int:
    """Count the accounts."""
    return len(shop.records("salesforce", "Account"))


def fill(shop: Stage, companies: int) -> None:
    """Make further companies."""
    shop.execute(
        "INSERT INTO companies (name, domain) SELECT 'More ' || i, 'more' || i || '.example.com' "
        f"FROM generate_series(1, {companies}) i"
    )


def test_a_paused_crm_hears_nothing(pg: str, tmp_path: Path) -> None:
    """No request goes to it, not even a login after a restart; the other goes on, and the status says who and why."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        said = shop.cli("pause", "salesforce", "--reason", "maintenance till noon")
        assert said == "salesforce is paused; `cdcsync resume salesforce` lets it go on\n"
        assert "was paused already" in shop.cli("pause", "salesforce")
        shop.wait(lambda: "maintenance till noon" in paused(shop), "the daemon did not hear of it")
        shop.cli("pause", "customers:salesforce.Contact")
        before = len(shop.admin("salesforce", "requests"))
        shop.execute("UPDATE companies SET name = 'While paused' WHERE id = 1")
        shop.execute("DELETE FROM orders WHERE id = (SELECT min(id) FROM orders)")
        shop.wait(lambda: "While paused" in str(shop.records("hubspot", "companies")), "the other CRM is held up")
        shop.kill()
        shop.start()
        shop.wait(lambda: "maintenance till noon" in paused(shop), "the daemon does not come back")
        shop.wait(lambda: shop.cli("status", code=0).startswith("salesforce is paused, 2 rows waiting"), "no sentence")
        assert len(shop.admin("salesforce", "requests")) == before
        assert "  salesforce is paused: maintenance till noon (by " in shop.cli("status")
        document = json.loads(shop.cli("status", "--json"))
        pause = document["lanes"][0]["pause"]
        assert (pause["reason"], pause["by"], "@" in pause["who"]) == ("maintenance till noon", "person", True)
        shop.stop()
        assert "maintenance till noon" in shop.cli("status", code=1)
        shop.start()

        resumed = shop.cli("resume", "salesforce").splitlines()
        assert resumed[0] == "salesforce goes on: 2 rows waiting, of which 1 delete"
        assert resumed[1] == "customers:salesforce.Contact is still paused: paused by hand"
        assert shop.cli("resume", "salesforce").startswith("salesforce was not paused\n")
        assert (
            shop.cli("resume", "customers:salesforce.Contact")
            == "customers:salesforce.Contact goes on: 0 rows waiting\n"
        )
        shop.settled()
        shop.assert_converged()


def test_a_pause_leaves_running_jobs_to_their_end_and_begins_none(pg: str, tmp_path: Path) -> None:
    """The results of a job that the CRM works on are collected; one that is not uploaded waits, also over a restart."""
    with stage(tmp_path, pg, changes=BULK) as shop:
        shop.start()
        shop.settled()
        poll = {"method": "GET", "path": "/jobs/ingest/[^/]+$"}
        shop.fault("salesforce", {"kind": "hold", "when": "before", "match": poll, "times": 1})
        fill(shop, 300)
        shop.wait(lambda: bool(shop.admin("salesforce", "faults")["held"]), "no request is held")
        shop.cli("pause", "salesforce")
        shop.wait(lambda: bool(paused(shop)), "the daemon did not hear of it")
        shop.mend("salesforce")
        shop.wait(lambda: not _jobs(shop), "the job's results are not collected")
        assert accounts(shop) == 320

        shop.cli("resume", "salesforce")
        shop.wait(lambda: not paused(shop), "the daemon did not hear of it")
        upload = {"method": "PUT", "path": "/batches"}
        shop.fault("salesforce", {"kind": "hold", "when": "before", "match": upload, "times": 1})
        shop.execute("UPDATE companies SET phone = 'after'")
        shop.wait(lambda: bool(shop.admin("salesforce", "faults")["held"]), "no request is held")
        shop.cli("pause", "salesforce")
        shop.kill()
        shop.mend("salesforce", drop=True)
        before = len(shop.requests("salesforce", "PUT", "/batches"))
        shop.start()
        shop.wait(lambda: bool(paused(shop)), "the daemon does not come back")
        shop.wait(lambda: _jobs(shop) == ["created"], "the job is not taken up")
        assert len(shop.requests("salesforce", "PUT", "/batches")) == before
        shop.cli("resume", "salesforce")
        shop.settled()
        shop.assert_converged()


def _jobs(shop: Stage) -> list[str]:
    snapshot = shop.snapshot()
    return [job.state for job in snapshot.lanes[0].jobs] if snapshot is not None else ["?"]


@pytest.mark.parametrize("path", [{}, BULK], ids=["batches", "bulk jobs"])
def test_an_emptied_table_leaves_the_crm_its_records_until_a_person_says_so(
    path: Mapping[str, str], pg: str, tmp_path: Path
) -> None:
    """A DELETE without WHERE, with kills in between: never more than the allowance goes. Resumed all of it goes."""
    with stage(tmp_path, pg, changes={**GUARDED, **path}) as shop:
        shop.execute("DELETE FROM orders")
        shop.execute("DELETE FROM customers")
        fill(shop, 3_000)
        shop.start()
        shop.settled()
        before = accounts(shop)
        shop.execute("DELETE FROM companies")
        for _ in range(3):
            shop.kill()
            shop.start()
            shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come back")
        shop.wait(lambda: "deletes wait, of" in paused(shop), "the guard did not pause it")
        assert accounts(shop) >= 0.9 * before
        snapshot = shop.snapshot()
        assert snapshot is not None
        assert snapshot.maps[0].pause is not None
        assert snapshot.maps[0].pause.by == "deletes"
        assert snapshot.balanced
        assert "of which" in shop.cli("resume", COMPANIES)
        shop.wait(lambda: accounts(shop) == 0, "the deletes do not go")
        shop.settled()
        shop.assert_converged()


def test_a_truncate_deletes_the_records_where_it_is_meant_to(pg: str, tmp_path: Path) -> None:
    """With rows made before and after it, and kills, the CRMs end equal; above the allowance, once a person said so."""
    orders = "orders:salesforce.Opportunity"
    changes = {'max_deletes = "off"\n': 'max_deletes = "off"\non_truncate = "delete"\n'} | GUARDED
    with stage(tmp_path, pg, changes=changes) as shop:
        shop.start()
        shop.settled()
        assert 0 < accounts(shop) <= 100 < len(shop.records("salesforce", "Opportunity"))
        shop.cli("pause", "hubspot")
        fill(shop, 20)
        insert = "INSERT INTO companies (name, domain) VALUES ('New', 'new.example.com')"
        shop.execute(f"BEGIN; TRUNCATE companies CASCADE; {insert}; COMMIT")
        shop.execute("INSERT INTO companies (name, domain) VALUES ('Newer', 'newer.example.com')")
        for _ in range(2):
            shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come back")
            shop.kill()
            shop.start()
        shop.cli("resume", "hubspot")
        for mapping in (orders, "customers:salesforce.Contact"):
            shop.wait(lambda mapping=mapping: "was truncated" in paused(shop, mapping), "nobody is asked")  # type: ignore[misc]
        shop.wait(lambda: shop.state("SELECT count(*) FROM pause") == 2, "the pauses are not written down")
        for mapping in (orders, "customers:salesforce.Contact"):
            shop.cli("resume", mapping)
        shop.settled()
        shop.assert_converged()
        assert (accounts(shop), len(shop.records("hubspot", "deals"))) == (2, 0)
