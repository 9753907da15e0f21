"""People work in the CRMs, too: they delete, merge and edit records, and change what there is to write to."""

from __future__ import annotations

from pathlib import Path

from cdcsync.status import MapStatus
from tests.faults.shopkeeper import prepare
from tests.faults.stage import Stage, stage

PEOPLE = {"salesforce": "Contact", "hubspot": "contacts"}
FIRST = {"salesforce": "FirstName", "hubspot": "firstname"}


def ids(shop: Stage, table: str, count: int) -> list[str]:
    """Return the keys of some rows."""
    return [str(key) for (key,) in shop.execute(f"SELECT id FROM {table} ORDER BY id LIMIT {count}")]


def mapping(shop: Stage, target: str) -> MapStatus:
    """Return the status of a mapping."""
    snapshot = shop.snapshot()
    assert snapshot is not None
    return next(entry for entry in snapshot.maps if entry.target == target)


def test_records_that_people_delete(pg: str, tmp_path: Path) -> None:
    """A record that was deleted by hand comes back with its row's next change, and is not missed at its row's delete.

    A row that goes takes its record along.
    """
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        changed, gone, deleted = ids(shop, "orders", 3)
        shop.execute("UPDATE orders SET customer_id = customer_id, company_id = NULL WHERE id = %s", [changed])
        shop.settled()
        for key in (changed, gone):
            shop.remove("salesforce", shop.record("salesforce", "Opportunity", key))
        company = ids(shop, "companies", 20)[-1]
        shop.remove("hubspot", shop.record("hubspot", "companies", company))
        shop.remove("hubspot", shop.record("hubspot", "deals", gone))
        shop.execute("UPDATE orders SET amount = amount + 1 WHERE id = %s", [changed])
        shop.execute("UPDATE companies SET phone = '1' WHERE id = %s", [company])
        shop.execute("DELETE FROM orders WHERE id = ANY(%s)", [[int(gone), int(deleted)]])
        shop.settled()
        # What referred to the company does so again with its own next change.
        shop.execute("UPDATE customers SET tier = tier WHERE company_id = %s", [company])
        shop.execute("UPDATE orders SET stage = stage WHERE company_id = %s", [company])
        shop.settled()
        shop.assert_converged()


def test_records_that_people_merge(pg: str, tmp_path: Path) -> None:
    """The survivor stays its own row's record; a row whose record went into it gets a new one, or the reason why not.

    An address that the survivor has taken over is such a reason.
    """
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        kept, changing, kept_too, readdressed, keeper, gone = ids(shop, "customers", 6)
        for one, other in ((kept, changing), (kept_too, readdressed)):
            for crm, name in PEOPLE.items():
                shop.merge(crm, shop.record(crm, name, one), shop.record(crm, name, other))
        shop.merge("salesforce", *(shop.record("salesforce", "Contact", key) for key in (keeper, gone)))
        shop.execute("UPDATE customers SET first_name = 'Kept' WHERE id = ANY(%s::uuid[])", [[kept, changing]])
        shop.execute("UPDATE customers SET email = 'other@example.com' WHERE id = %s", [readdressed])
        shop.execute("DELETE FROM customers WHERE id = %s", [gone])
        shop.settled()
        ((code, rows),) = [(one.code, one.rows) for one in mapping(shop, "hubspot.contacts").rejects]
        assert (code, rows) == ("CONFLICT", 1)
        for crm, name in PEOPLE.items():
            for key in (kept, kept_too, readdressed, keeper):
                assert shop.holders(crm, name, key), f"{crm} lost the record of {key}"
            assert not shop.holders(crm, name, gone)
            (first_name,) = {record["fields"].get(FIRST[crm]) for record in shop.holders(crm, name, kept)}
            assert first_name == "Kept"
        assert not shop.holders("hubspot", "contacts", changing)
        # Who was parked for the other's address gets a record with one of its own.
        shop.execute("UPDATE customers SET email = 'third@example.com' WHERE id = %s", [changing])
        shop.settled()
        assert not mapping(shop, "hubspot.contacts").rejects
        for crm, name in PEOPLE.items():
            for key in (kept, changing, kept_too, readdressed, keeper):
                assert len(shop.holders(crm, name, key)) == 1
            books = shop.admin(crm, "books")
            assert (books["double_creates"], books["steps_back"]) == (0, 0)


def test_a_record_that_people_deleted_comes_back_with_its_references(pg: str, tmp_path: Path) -> None:
    """A record that was deleted by hand and comes back with its row's next change is linked as the one before was."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        (changed,) = ids(shop, "orders", 1)
        shop.remove("hubspot", shop.record("hubspot", "deals", changed))
        shop.execute("UPDATE orders SET amount = amount + 1 WHERE id = %s", [changed])
        shop.settled()
        shop.assert_converged()


def test_a_record_that_people_replaced_gets_the_whole_row(pg: str, tmp_path: Path) -> None:
    """Somebody deletes a record and gives its key to another: that one has nothing of the row, nor its references.

    The row's next change of one field brings all of it.
    """
    with stage(tmp_path, pg) as shop:
        changed, spare = ids(shop, "orders", 2)
        shop.execute("UPDATE orders SET company_id = (SELECT min(id) FROM companies) WHERE id = %s", [changed])
        shop.execute(
            "UPDATE orders SET company_id = NULL, customer_id = (SELECT customer_id FROM orders WHERE id = %s) "
            "WHERE id = %s",
            [changed, spare],
        )
        shop.start()
        shop.settled()
        other = shop.record("hubspot", "deals", spare)
        shop.remove("hubspot", shop.record("hubspot", "deals", changed))
        shop.edit("hubspot", other, order_id=changed, amount="1", closedate="2001-02-03T00:00:00Z")
        shop.execute("UPDATE orders SET title = title || '!' WHERE id = %s", [changed])
        shop.execute("UPDATE orders SET title = title || '!' WHERE id = %s", [spare])
        shop.settled()
        assert shop.record("hubspot", "deals", changed)["id"] == other["id"]
        shop.assert_converged()


def test_a_row_that_goes_spares_the_record_that_its_own_was_merged_into(pg: str, tmp_path: Path) -> None:
    """HubSpot's survivor answers to both old ids; the row whose record went into it must not take it along.

    Nor may it give the survivor its own new key. The row that kept its record takes it along as ever. What the other
    record was associated with stays with the survivor, as people wanted.
    """
    with stage(tmp_path, pg) as shop:
        prepare(shop)
        shop.start()
        shop.settled()
        kept, gone, kept_too, renamed, both, neither = ids(shop, "customers", 6)
        for one, other in ((kept, gone), (kept_too, renamed), (both, neither)):
            shop.merge("hubspot", *(shop.record("hubspot", "contacts", key) for key in (one, other)))
        shop.execute("DELETE FROM customers WHERE id = ANY(%s::uuid[])", [[gone, both, neither]])
        shop.execute(
            "UPDATE customers SET id = gen_random_uuid(), email = 'renamed@example.com' WHERE id = %s", [renamed]
        )
        shop.settled()
        for key in (kept, kept_too):
            assert shop.holders("hubspot", "contacts", key), f"the record of {key} is lost"
        held = {record["key"]["customer_id"] for record in shop.records("hubspot", "contacts")}
        assert held == {str(key) for (key,) in shop.execute("SELECT id FROM customers")}
        books = shop.admin("hubspot", "books")
        assert (books["double_creates"], books["steps_back"]) == (0, 0)


def test_contacts_whose_key_is_their_address(pg: str, tmp_path: Path) -> None:
    """HubSpot takes no update by address: part of a row goes to the contact that has it, and a new address follows.

    A contact that was deleted by hand comes back whole.
    """
    changes = {
        'key       = { customer_id = "id" }': 'key       = { email = "email" }',
        'email       = "email"\n': 'customer_id = "id"\n',
        '  { to = "hubspot.contacts", column = "customer_id", type = "deal_to_contact" },\n': "",
    }
    with stage(tmp_path, pg, changes=changes) as shop:
        shop.execute("ALTER TABLE customers REPLICA IDENTITY FULL")
        shop.start()
        shop.settled()
        changed, deleted, moved, gone = ids(shop, "customers", 4)
        before = {key: shop.record("hubspot", "contacts", key) for key in (changed, deleted, moved)}
        shop.remove("hubspot", before[deleted])
        shop.edit("hubspot", before[changed], lastname="Theirs")
        shop.execute("UPDATE customers SET first_name = 'New' WHERE id = ANY(%s::uuid[])", [[changed, deleted]])
        shop.execute("UPDATE customers SET email = 'moved@example.com' WHERE id = %s", [moved])
        shop.execute("DELETE FROM customers WHERE id = %s", [gone])
        shop.settled()
        after = {key: shop.record("hubspot", "contacts", key) for key in (changed, deleted, moved)}
        assert after[changed]["id"] == before[changed]["id"]
        assert (after[changed]["fields"]["firstname"], after[changed]["fields"]["lastname"]) == ("New", "Theirs")
        assert after[deleted]["id"] != before[deleted]["id"]
        assert after[deleted]["fields"]["lastname"] == before[deleted]["fields"]["lastname"]
        assert (after[moved]["id"], after[moved]["fields"]["email"]) == (before[moved]["id"], "moved@example.com")
        assert not shop.holders("hubspot", "contacts", gone)
        books = shop.admin("hubspot", "books")
        assert (books["double_creates"], books["steps_back"]) == (0, 0)


def test_fields_that_people_edit(pg: str, tmp_path: Path) -> None:
    """What is not mapped is never touched; what is mapped stays until that field changes in the database."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        edited, other = ids(shop, "companies", 2)
        for key in (edited, other):
            shop.edit("salesforce", shop.record("salesforce", "Account", key), Website="https://kept.example", Name="X")
            shop.edit("hubspot", shop.record("hubspot", "companies", key), city="Kept", name="X")
        shop.execute("UPDATE companies SET industry = 'Energy', phone = '1' WHERE id = %s", [edited])
        shop.settled()
        found = shop.record("salesforce", "Account", edited)["fields"]
        assert (found["Name"], found["Website"]) == ("X", "https://kept.example")
        found = shop.record("hubspot", "companies", edited)["fields"]
        assert (found["name"], found["city"]) == ("X", "Kept")
        shop.execute("UPDATE companies SET name = name || ' Ltd' WHERE id = ANY(%s)", [[edited, other]])
        shop.settled()
        shop.assert_converged()
        assert shop.record("salesforce", "Account", other)["fields"]["Website"] == "https://kept.example"
        assert shop.record("hubspot", "companies", other)["fields"]["city"] == "Kept"


def test_a_field_that_becomes_required_parks_the_rows_that_lack_it(pg: str, tmp_path: Path) -> None:
    """Rows without a value are parked with the field's name, and harm no other; they go when the field may be empty."""
    with stage(tmp_path, pg) as shop:
        shop.start()
        shop.settled()
        shop.settings("salesforce", objects={"Account": {"fields": {"Industry": {"nillable": False}}}})
        shop.settings("hubspot", required={"contacts": ["tier"]})
        shop.execute("INSERT INTO companies (name, domain, industry) VALUES ('Without', 'w.example.com', NULL)")
        shop.execute("INSERT INTO companies (name, domain, industry) VALUES ('With', 'v.example.com', 'Energy')")
        shop.execute(
            "INSERT INTO customers (id, email, last_name, tier) VALUES "
            "(gen_random_uuid(), 'w@example.com', 'Without', NULL), (gen_random_uuid(), 'v@example.com', 'With', 'g')"
        )
        shop.settled()
        told = {
            target: [(one.code, one.field, one.rows) for one in mapping(shop, target).rejects]
            for target in ("salesforce.Account", "salesforce.Contact", "hubspot.companies", "hubspot.contacts")
        }
        assert told == {
            "salesforce.Account": [("REQUIRED_FIELD_MISSING", "Industry", 1)],
            "salesforce.Contact": [],
            "hubspot.companies": [],
            "hubspot.contacts": [("VALIDATION_ERROR", "tier", 1)],
        }
        shop.settings("salesforce", objects={})
        shop.settings("hubspot", required={"contacts": []})
        shop.execute("UPDATE companies SET phone = '1' WHERE name = 'Without'")
        shop.execute("UPDATE customers SET first_name = 'Now' WHERE last_name = 'Without'")
        shop.settled()
        shop.assert_converged()
