"""`on_delete = { set = … }` with the real adapters: the record stays, is marked, and is the same one afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.faults.stage import Stage, stage

SALESFORCE = 'to    = "salesforce.Account"\n'
HUBSPOT = 'to     = "hubspot.companies"\n'
CHANGES = {
    SALESFORCE: f'{SALESFORCE}on_delete = {{ set = {{ Industry = "Gone" }} }}\n',
    HUBSPOT: f'{HUBSPOT}on_delete = {{ set = {{ name = "(gone)", city = "-" }}, unset = {{ city = "here" }} }}\n',
}


def record(shop: Stage, crm: str, name: str, key: str) -> dict[str, Any]:
    """Return the one live record with this key: its CRM id, and its fields."""
    field = {"salesforce": "External_Id__c", "hubspot": "company_id"}[crm]
    (found,) = [one for one in shop.records(crm, name) if str(one["fields"].get(field)) == key]
    return {"id": found["id"], **found["fields"]}


def test_a_record_is_kept_marked_and_taken_up_again(pg: str, tmp_path: Path) -> None:
    """On both CRMs, with a kill while the row is gone and a comparison after it; `check` knows the fields."""
    with stage(tmp_path, pg, changes=CHANGES) as shop:
        assert "✗" not in shop.cli("check")
        shop.start()
        shop.execute(
            "INSERT INTO companies (id, name, domain, industry) VALUES (9000, 'Nine', 'nine.example.com', 'Energy')"
        )
        shop.settled()
        before = record(shop, "salesforce", "Account", "9000"), record(shop, "hubspot", "companies", "9000")
        assert (before[0]["Industry"], before[1]["city"]) == ("Energy", "here")
        shop.execute("DELETE FROM companies WHERE id = 9000")
        shop.settled()
        shop.kill()
        shop.start()
        shop.settled()  # what was not written down before the kill is sent once more
        requests = len(shop.admin("salesforce", "requests"))
        shop.cli("resync", "companies:salesforce.Account")
        shop.wait(lambda: shop.state("SELECT count(*) FROM copy WHERE finished IS NULL") == 0, "no end of the resync")
        gone = record(shop, "salesforce", "Account", "9000"), record(shop, "hubspot", "companies", "9000")
        assert (gone[0]["Industry"], gone[0]["Name"]) == ("Gone", "Nine")
        assert (gone[1]["name"], gone[1]["city"], gone[1]["domain"]) == ("(gone)", "-", "nine.example.com")
        assert [one["id"] for one in gone] == [one["id"] for one in before]
        writes = shop.admin("salesforce", "requests")[requests:]
        assert not [one for one in writes if one["method"] == "PATCH"], "it is marked once"
        shop.execute(
            "INSERT INTO companies (id, name, domain, industry) VALUES (9000, 'Again', 'nine.example.com', 'Energy')"
        )
        shop.settled()
        shop.assert_converged()
        after = record(shop, "salesforce", "Account", "9000"), record(shop, "hubspot", "companies", "9000")
        assert [one["id"] for one in after] == [one["id"] for one in before]
        assert (after[0]["Industry"], after[1]["name"], after[1]["city"]) == ("Energy", "Again", "here")
