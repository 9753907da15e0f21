"""Rows that a CRM refuses are parked with its reason, harm no other row, and go when they are mended."""

from __future__ import annotations

from pathlib import Path

from tests.faults.stage import stage

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
