"""A CRM that lets nobody in, has no calls left, or hangs at one object."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cdcsync.status import LaneStatus
from tests.faults.stage import Stage, stage

OLD, NEW = "pat-na1-not-a-secret", "pat-na1-another"
QUIET = 4.0
"""Seconds in which a CRM without calls left is watched."""
LOOKS = 2
"""Requests that may go to such a CRM meanwhile: one that shows it, and those that were under way with it."""
STUCK = 400


def lane(shop: Stage, name: str) -> LaneStatus:
    """Return the status of a CRM's lane."""
    snapshot = shop.snapshot()
    assert snapshot is not None
    return next(entry for entry in snapshot.lanes if entry.name == name)


def says(shop: Stage, name: str, words: str) -> bool:
    """Tell whether a lane's last error has these words in it."""
    return words in (lane(shop, name).last_error or "")


def test_a_day_without_calls_left(pg: str, tmp_path: Path) -> None:
    """Both CRMs refuse for the day: it is told, they are left alone, nothing is lost, and all arrives when it is over.

    The next look is due a quarter of an hour later (tests/unit/test_rate.py); a start looks at once.
    """
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        shop.settings("salesforce", daily_requests=1)
        shop.settings("hubspot", daily=1)
        for number in range(3):
            shop.execute("UPDATE customers SET first_name = %s", [f"Name {number}"])
            shop.execute("UPDATE orders SET amount = amount + 1")
        for crm in shop.sandboxes:
            shop.wait(lambda crm=crm: bool(lane(shop, crm).last_error), f"{crm} refuses nothing")  # type: ignore[misc]
        before = {crm: shop.admin(crm, "books")["requests"] for crm in shop.sandboxes}
        time.sleep(QUIET)
        for crm, requests in before.items():
            assert shop.admin(crm, "books")["requests"] - requests <= LOOKS
            assert lane(shop, crm).pending >= 500
            assert lane(shop, crm).missing == 0
        assert shop.stop() == 0, shop.log()
        shop.settings("salesforce", daily_requests=1_000_000)
        shop.settings("hubspot", daily=1_000_000)
        shop.start()
        shop.settled()
        shop.assert_converged()


@pytest.mark.timeout(200)
def test_what_a_person_has_to_mend(pg: str, tmp_path: Path) -> None:
    """The token is withdrawn in HubSpot, and a field taken away in Salesforce: each is told, with what to do.

    The daemon stays, looks about once a minute, and goes on by itself when there is another token in the file, and the
    field is back; nothing is parked or lost.
    """
    token = tmp_path / "token"
    token.write_text(OLD)
    with stage(tmp_path, pg, changes={'{ env = "DEMO_HUBSPOT_TOKEN" }': f'{{ file = "{token}" }}'}) as shop:
        shop.settings("hubspot", tokens=[OLD])
        shop.start()
        shop.settled()
        shop.settings("hubspot", tokens=[NEW])
        shop.settings("salesforce", objects={"Contact": {"fields": {"FirstName": None}}})
        shop.execute("UPDATE customers SET first_name = 'Later'")
        shop.wait(lambda: says(shop, "hubspot", "HubSpot answered 401"), "HubSpot's refusal is not told")
        shop.wait(lambda: says(shop, "salesforce", "FirstName"), "Salesforce's refusal is not told")
        log = shop.children.log("daemon-0").read_text(encoding="utf-8")
        assert "give a valid token: HubSpot, Settings" in log
        assert "run `cdcsync check`" in log
        token.write_text(NEW)
        shop.settings("salesforce", objects={})
        shop.settled(timeout=150)
        shop.assert_converged()
        assert shop.starts == 1


def test_an_object_that_is_stuck(pg: str, tmp_path: Path) -> None:
    """A bulk job hangs, and rows of one object stay locked: all other objects of that CRM go on meanwhile.

    How little they notice is measured by bench/stuck_object.py.
    """
    changes = {'client_id     = "demo"': 'client_id     = "demo"\nbulk_from = 100'}
    with stage(tmp_path, pg, changes=changes) as shop:
        shop.start()
        shop.settled()
        shop.fault("salesforce", {"kind": "stuck_job", "match": {}, "times": 1})
        shop.execute(
            "INSERT INTO orders (customer_id, title, stage, due) SELECT c.id, 'Stuck', 'new', '2026-01-02' "
            f"FROM generate_series(1, {STUCK}), (SELECT id FROM customers LIMIT 1) c"
        )
        shop.wait(lambda: bool(lane(shop, "salesforce").jobs), "no job is under way")
        shop.fault("salesforce", {"kind": "lock", "match": {"object": "Contact"}, "times": None})
        shop.execute("UPDATE customers SET first_name = 'Locked' WHERE id IN (SELECT id FROM customers LIMIT 50)")
        for number in range(5):
            shop.execute("UPDATE companies SET name = 'Goes on ' || %s", [str(number)])
            shop.wait(
                lambda number=number: (
                    {record["fields"]["Name"] for record in shop.records("salesforce", "Account")}  # type: ignore[misc]
                    == {f"Goes on {number}"}
                ),
                "another object's rows do not go on",
                timeout=5,
            )
        assert lane(shop, "salesforce").pending == STUCK + 50
        shop.mend("salesforce")
        shop.settled()
        shop.assert_converged()


@pytest.mark.parametrize("kind", ["hold", "refuse"])
def test_an_object_that_hangs_or_refuses(kind: str, pg: str, tmp_path: Path) -> None:
    """Requests about one object get no answer, or 503: rows of others go on at their own pace."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        for crm, name in {"salesforce": "Opportunity", "hubspot": "deals"}.items():
            shop.fault(crm, {"kind": kind, "match": {"object": name}, "times": None})
        shop.execute(
            "INSERT INTO orders (customer_id, title, stage, due) SELECT c.id, 'Stuck', 'new', '2026-01-02' "
            "FROM generate_series(1, 1900), (SELECT id FROM customers LIMIT 1) c"
        )
        shop.wait(
            lambda: lane(shop, "hubspot").in_flight + lane(shop, "hubspot").counters.retries > 0, "nothing is sent"
        )
        time.sleep(QUIET)  # repeated refusals would have made a common back-off long by now
        for number in range(5):
            shop.execute("UPDATE companies SET name = 'Goes on ' || %s", [str(number)])
            for crm, (name, field) in {"salesforce": ("Account", "Name"), "hubspot": ("companies", "name")}.items():
                shop.wait(
                    lambda crm=crm, name=name, field=field, number=number: (  # type: ignore[misc]
                        {record["fields"][field] for record in shop.records(crm, name)} == {f"Goes on {number}"}
                    ),
                    f"companies do not go on in {crm}",
                    timeout=3,
                )
        for crm in shop.sandboxes:
            shop.mend(crm)
        shop.settled()
        shop.assert_converged()
