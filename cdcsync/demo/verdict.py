"""The demo's oracle: each CRM equals the database, and never held something double or older.

It shares no code with the mapper: what a record should look like is written down once more here, as SQL. What the
CRMs hold, and what their books say, comes from the sandboxes' admin ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from cdcsync.demo.processes import get_json

Fields = Mapping[str, str | None]

KEYS = {
    ("salesforce", "Account"): "External_Id__c",
    ("salesforce", "Contact"): "External_Id__c",
    ("salesforce", "Opportunity"): "External_Id__c",
    ("hubspot", "companies"): "company_id",
    ("hubspot", "contacts"): "customer_id",
    ("hubspot", "deals"): "order_id",
}

WANTED: Mapping[tuple[str, str], LiteralString] = {
    ("salesforce", "Account"): """
        SELECT id AS key, name AS "Name", industry AS "Industry", phone AS "Phone", row_version AS "Version__c"
        FROM companies""",
    ("salesforce", "Contact"): """
        SELECT id AS key, first_name AS "FirstName", last_name AS "LastName", email AS "Email",
            CASE tier WHEN 'b' THEN 'Bronze' WHEN 's' THEN 'Silver' WHEN 'g' THEN 'Gold' END AS "Level__c",
            company_id AS "AccountId", row_version AS "Version__c"
        FROM customers""",
    ("salesforce", "Opportunity"): """
        SELECT id AS key, title AS "Name", amount AS "Amount", due AS "CloseDate", company_id AS "AccountId",
            CASE stage WHEN 'new' THEN 'Prospecting' WHEN 'quoted' THEN 'Proposal/Price Quote'
                WHEN 'won' THEN 'Closed Won' WHEN 'lost' THEN 'Closed Lost' END AS "StageName",
            row_version AS "Version__c"
        FROM orders""",
    ("hubspot", "companies"): """
        SELECT id AS key, name, domain, row_version FROM companies""",
    ("hubspot", "contacts"): """
        SELECT id AS key, email, first_name AS firstname, last_name AS lastname,
            CASE tier WHEN 'b' THEN 'bronze' WHEN 's' THEN 'silver' WHEN 'g' THEN 'gold' END AS tier,
            row_version, company_id AS "→ companies"
        FROM customers""",
    ("hubspot", "deals"): """
        SELECT id AS key, title AS dealname, amount, due || 'T00:00:00Z' AS closedate,
            CASE stage WHEN 'new' THEN 'appointmentscheduled' WHEN 'quoted' THEN 'contractsent'
                WHEN 'won' THEN 'closedwon' WHEN 'lost' THEN 'closedlost' END AS dealstage,
            row_version, company_id AS "→ companies", customer_id AS "→ contacts"
        FROM orders""",
}
"""For each object, its records as they should be; ``→`` stands for the external key of an associated record."""

NUMBERS = frozenset({"Version__c", "Amount", "row_version", "amount"})


@dataclass(frozen=True, slots=True)
class Difference:
    """A record that is not as it should be."""

    crm: str
    object: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.crm} {self.object} {self.key}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found. ``books`` are the sandboxes' own, by CRM."""

    compared: int
    differences: tuple[Difference, ...]
    books: Mapping[str, Mapping[str, Any]]

    @property
    def ok(self) -> bool:
        """Whether the CRMs equal the database, and nothing was doubled or put back on the way."""
        return not self.differences and not any(self.total(fault) for fault in ("double_creates", "steps_back"))

    def total(self, counter: str) -> int:
        """Add up one counter of all the books."""
        return sum(int(books[counter]) for books in self.books.values())


def judge(dsn: str, admin_urls: Mapping[str, str]) -> Verdict:
    """Compare. Raises psycopg.Error, or OSError if a sandbox does not answer."""
    crms = {name: Holdings(get_json(f"{url}/records")) for name, url in admin_urls.items()}
    differences: list[Difference] = []
    compared = 0
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        connection.execute("SET DateStyle = ISO")
        for (crm, object_name), query in WANTED.items():
            wanted = {str(row.pop("key")): _texts(row) for row in connection.execute(query)}
            compared += len(wanted)
            found = crms[crm].of(object_name, KEYS[crm, object_name])
            differences += (Difference(crm, object_name, key, text) for key, text in compare(wanted, found))
    books = {name: get_json(f"{url}/books") for name, url in admin_urls.items()}
    return Verdict(compared, tuple(differences), books)


def compare(wanted: Mapping[str, Fields], found: Iterable[tuple[str | None, Fields]]) -> Iterator[tuple[str, str]]:
    """Give (key, what is wrong) for each record that is missing, there twice, different, or not wanted at all."""
    missing = dict(wanted)
    for key, fields in found:
        if key is None or key not in wanted:
            yield key or "(no key)", "should not be there"
        elif key not in missing:
            yield key, "is there twice"
        else:
            expected = missing.pop(key)
            wrong = [name for name, value in expected.items() if not _same(name, value, fields.get(name))]
            if wrong:
                yield key, ", ".join(f"{name} is {fields.get(name)!r}, not {expected[name]!r}" for name in wrong)
    for key in missing:
        yield key, "is missing"


class Holdings:
    """The live records of one CRM."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._records = [record for record in records if not record["archived"]]
        self._key_by_id = {
            str(record["id"]): value for record in self._records for value in record["key"].values() if value
        }

    def of(self, object_name: str, key_field: str) -> Iterator[tuple[str | None, Fields]]:
        """Give the external key and the fields of an object's records; references as external keys of the other end."""
        for record in self._records:
            if record["object"] == object_name:
                yield record["key"].get(key_field), {**self._fields(record), **self._links(record)}

    def _fields(self, record: Mapping[str, Any]) -> Fields:
        return {
            name: self._key_by_id.get(str(value), value) if name.endswith("Id") and value else value
            for name, value in _texts(record["fields"]).items()
        }

    def _links(self, record: Mapping[str, Any]) -> Fields:
        linked: Mapping[str, list[str]] = record.get("associations", {})
        return {
            f"→ {name}": ", ".join(sorted(self._key_by_id.get(str(one), "(unknown)") for one in others))
            for name, others in linked.items()
        }


def _texts(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Turn values to text, for comparison; what is empty is None."""
    return {name: None if value is None or value == "" else str(value) for name, value in row.items()}


def _same(name: str, wanted: str | None, found: str | None) -> bool:
    if wanted is None or found is None or name not in NUMBERS:
        return wanted == found
    try:
        return Decimal(wanted) == Decimal(found)
    except InvalidOperation:
        return False
