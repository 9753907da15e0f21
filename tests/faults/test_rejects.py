"""Rows that a CRM refuses are parked with its reason, harm no other row, and go when they are mended."""

from __future__ import annotations

from pathlib import Path

from tests.faults.stage import Stage, stage
from tests.faults.test_cli import reconfigure, run

DEALS = {"salesforce": "Opportunity", "hubspot": "deals"}
NO_CHECK = "ALTER TABLE customers DROP CONSTRAINT customers_tier_check"


def test_twenty_invalid_rows_of_a_thousand_are_rejected_with_their_reasons(pg: str, tmp_path: Path) -> None:
    """980 of 1,000 arrive; 20 (bad email, required field missing, unknown picklist value) are parked, with reasons."""
    with stage(
        tmp_path,
        pg,
        changes={'b = "Bronze", s = "Silver", g = "Gold"': 'b = "Bronze", s = "Silver", g = "Gold", x = "Lead"'},
    ) as shop:
        shop.execute(NO_CHECK)
        shop.execute("ALTER TABLE customers ALTER last_name DROP NOT NULL")
        shop.start()
        shop.settled()
        shop.execute(
            "INSERT INTO customers (id, email, last_name, tier) SELECT gen_random_uuid(), "
            "CASE WHEN i <= 7 THEN 'no address ' || i ELSE 'batch' || i || '@example.com' END, "
            "CASE WHEN i BETWEEN 8 AND 14 THEN NULL ELSE 'Batch' END, "
            "CASE WHEN i BETWEEN 15 AND 20 THEN 'x' ELSE 'g' END FROM generate_series(1, 1000) i"
        )
        shop.settled()
        arrived = [r for r in shop.records("salesforce", "Contact") if r["fields"].get("LastName") == "Batch"]
        assert len(arrived) == 980
        snapshot = shop.snapshot()
        assert snapshot is not None
        contacts = next(entry for entry in snapshot.maps if entry.target == "salesforce.Contact")
        groups = {(group.code, group.field): group.rows for group in contacts.rejects}
        assert groups == {
            ("INVALID_EMAIL_ADDRESS", "Email"): 7,
            ("REQUIRED_FIELD_MISSING", "LastName"): 7,
            ("INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", "Level__c"): 6,
        }
        assert all(lane.missing == 0 for lane in snapshot.lanes)

        shop.execute(
            "UPDATE customers SET email = 'mended' || row_version || substr(id::text, 1, 8) || '@example.com' "
            "WHERE email LIKE 'no address%'"
        )
        shop.execute("UPDATE customers SET last_name = 'Batch' WHERE last_name IS NULL")
        shop.execute("UPDATE customers SET tier = 'g' WHERE tier = 'x'")
        shop.settled()
        shop.assert_converged()


def test_values_that_no_crm_has_park_their_rows_alone(pg: str, tmp_path: Path) -> None:
    """Infinity, BC, years beyond 9999, NaN and 24:00 among good rows (of types unknown to us): they alone are parked.

    A field with ``on_invalid = "null"`` parks nothing. A mended row goes out.
    """
    changes = {
        'Name       = "title"': 'Name       = "place"',
        'Amount     = "amount"': 'Amount     = { column = "amount", on_invalid = "null" }',
        'Industry   = "industry"\nPhone      = "phone"': 'Phone      = "opens"',
    }
    with stage(tmp_path, pg, changes=changes) as shop:
        shop.execute("CREATE TYPE place AS (street text, at point)")
        shop.execute("ALTER TABLE orders ADD place place NOT NULL DEFAULT ROW('a, b', '(1,2)')")
        shop.execute("ALTER TABLE companies ADD opens time")
        shop.start()
        shop.settled()
        before = {crm: len(shop.records(crm, name)) for crm, name in DEALS.items()}
        shop.execute("UPDATE companies SET opens = CASE id WHEN 1 THEN '24:00'::time ELSE '09:00' END WHERE id < 4")
        shop.execute(
            "INSERT INTO orders (customer_id, company_id, title, stage, due, amount) "
            "SELECT customer.id, NULL, 'Batch', 'new', "
            "coalesce((ARRAY['infinity', '-infinity', '0044-03-15 BC', '10000-01-01'])[i], '2026-01-02')::date, "
            "CASE i WHEN 5 THEN 'NaN' ELSE 1.5 END "
            "FROM generate_series(1, 200) i, (SELECT id FROM customers LIMIT 1) customer"
        )
        shop.settled()
        assert {crm: len(shop.records(crm, name)) - before[crm] for crm, name in DEALS.items()} == {
            "salesforce": 196,
            "hubspot": 195,
        }
        snapshot = shop.snapshot()
        assert snapshot is not None
        groups = {
            (entry.target, group.code, group.field): group.rows for entry in snapshot.maps for group in entry.rejects
        }
        assert groups.pop(("salesforce.Account", "time-out-of-range", "Phone")) == 1
        assert groups.pop(("salesforce.Opportunity", "time-out-of-range", "CloseDate")) == 4
        assert groups.pop(("hubspot.deals", "number-not-finite", "amount")) == 1
        assert {target for target, _, _ in groups} == {"hubspot.deals"}
        assert sum(groups.values()) == 4  # its date is a template: the CRM itself refuses the text
        assert all(lane.missing == 0 for lane in snapshot.lanes)
        names = {record["fields"]["Name"] for record in shop.records("salesforce", "Opportunity")}
        assert names == {'("a, b","(1,2)")'}

        shop.execute("UPDATE orders SET due = '2026-01-02', amount = 1 WHERE title = 'Batch'")
        shop.execute("UPDATE companies SET opens = NULL")
        shop.settled()
        mended = shop.snapshot()
        assert mended is not None
        assert sum(lane.rejected for lane in mended.lanes) == 0


CONTACTS = "customers:salesforce.Contact"
ONE_BY_ONE = {'client_id     = "demo"': 'client_id     = "demo"\nbulk_from     = 100000'}


def _in_flight(shop: Stage) -> int:
    """Count the Salesforce rows that are being sent; -1 while the daemon does not answer."""
    snapshot = shop.snapshot()
    return next((lane.in_flight for lane in snapshot.lanes if lane.name == "salesforce"), -1) if snapshot else -1


def test_a_wrong_mapping_is_paused_and_once_mended_takes_all_in(pg: str, tmp_path: Path) -> None:
    """A required field comes from a column that is empty: after a few requests the mapping pauses, and says why.

    With the config mended and the mapping resumed all rows arrive, and nothing is rejected.
    """
    wrong, right = 'LastName   = "surname"', 'LastName   = "last_name"'
    with stage(tmp_path, pg, changes={right: wrong, **ONE_BY_ONE}) as shop:
        shop.execute("ALTER TABLE customers ADD surname text")
        shop.execute(
            "INSERT INTO customers (id, email, last_name) SELECT gen_random_uuid(), 'more' || i || '@example.com', "
            "'More' FROM generate_series(1, 4000) i"
        )
        shop.start()
        shop.wait(lambda: shop.paused(CONTACTS) is not None, "the mapping did not pause")
        reason = shop.paused(CONTACTS) or ""
        assert "records were refused, most often with REQUIRED_FIELD_MISSING for LastName" in reason
        assert f"cdcsync resume {CONTACTS} and cdcsync rejects retry {CONTACTS}" in reason
        shop.wait(lambda: _in_flight(shop) == 0, "what was under way was not answered")
        sent = shop.requests("salesforce", "PATCH", "/composite/sobjects/Contact/")
        assert 1 <= len(sent) <= 10  # of the 21 that the rows take
        shop.wait(lambda: shop.state("SELECT count(*) FROM reject") > 0, "nothing was parked")
        told = run(shop, "rejects", "list")
        assert f"{CONTACTS}: " in told.out
        assert "REQUIRED_FIELD_MISSING (LastName)" in told.out
        assert "→ fill the column, give the field a default in the mapping" in told.out
        snapshot = shop.snapshot()
        assert snapshot is not None
        assert all(lane.missing == 0 for lane in snapshot.lanes)
        assert len(shop.requests("salesforce", "PATCH", "/composite/sobjects/Contact/")) == len(sent)

        assert shop.stop() == 0
        reconfigure(shop, wrong, right)
        shop.start()
        shop.cli("resume", CONTACTS)
        shop.wait(lambda: shop.paused(CONTACTS) is None, "the mapping was not resumed")
        shop.settled()
        shop.assert_converged()
