"""A shop that never rests: random transactions over its tables, and the faults that its CRMs have meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psycopg

from cdcsync.demo.shop import Inventor
from tests.faults.stage import Stage

LARGE = 1_500
"""Rows of a large transaction: more than a page, a batch, or the smallest bulk job that a test sets."""
REST = 3.0
"""Seconds of a longest idle pause."""
RECONNECT = 0.2

FAULTS: Mapping[str, list[Mapping[str, object]]] = {
    "salesforce": [
        {"kind": "refuse", "status": 503, "match": {"path": "/(composite|jobs)/"}, "probability": 0.03, "times": None},
        {"kind": "refuse", "status": 429, "match": {"path": "/composite/"}, "probability": 0.03, "times": None},
        {"kind": "do_then_fail", "status": 500, "match": {"path": "/composite/"}, "probability": 0.03, "times": None},
        {"kind": "reset", "when": "after", "match": {"path": "/(composite|jobs)/"}, "probability": 0.03, "times": None},
        {"kind": "reset", "when": "before", "match": {"path": "/composite/"}, "probability": 0.02, "times": None},
        {"kind": "lock", "match": {}, "probability": 0.01, "times": None},
    ],
    "hubspot": [
        {"kind": "refuse", "status": 502, "match": {"path": "/crm/"}, "probability": 0.03, "times": None},
        {"kind": "refuse", "status": 429, "match": {"path": "/crm/"}, "probability": 0.03, "times": None},
        {"kind": "do_then_fail", "status": 504, "match": {"path": "/batch/"}, "probability": 0.03, "times": None},
        {"kind": "reset", "when": "after", "match": {"path": "/batch/"}, "probability": 0.03, "times": None},
        {"kind": "reset", "when": "before", "match": {"path": "/batch/"}, "probability": 0.02, "times": None},
    ],
}


class Shopkeeper:
    """Writes random transactions over the three tables: rows come, change, change keys, go; some are rolled back.

    ``large`` adds transactions of many rows, and pauses in which nothing happens. Where the server goes away, the
    transaction is lost, or its outcome is not known, and the next one follows when the server is back.
    """

    def __init__(self, dsn: str, seed: int, *, large: bool = False) -> None:
        self.random = random.Random(seed)
        self.inventor = Inventor(seed + 1)
        self.inventor._serial = 1_000_000  # domains and addresses apart from those of the first rows
        self.transactions = 0
        self.lost = 0
        self._dsn = dsn
        self._large = large
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._steps: list[Callable[[psycopg.Connection], None]] = [
            *(self._insert, self._insert, self._update, self._update, self._update, self._rename, self._delete)
        ]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as connection:
                    connection.execute("SELECT setseed(0.5)")
                    self._live(connection)
            except (psycopg.OperationalError, psycopg.Rollback):
                # The server is restarted (a rollback that meets this is what is raised), or is not up yet.
                self.lost += 1
                time.sleep(RECONNECT)
            except Exception as error:  # noqa: BLE001 - raised again where it belongs
                self._error = error
                return

    def _live(self, connection: psycopg.Connection) -> None:
        while not self._stopping.is_set():
            try:
                with connection.transaction() as transaction:
                    self._transact(connection)
                    if self.random.random() < 0.1:
                        raise psycopg.Rollback(transaction)
            except psycopg.errors.IntegrityError:
                pass  # a key that was taken: the transaction is rolled back, as an application's would be
            self.transactions += 1
            self._stopping.wait(self.random.random() * (REST if self._rests() else 0.02))

    def _rests(self) -> bool:
        return self._large and self.random.random() < 0.01

    def _transact(self, connection: psycopg.Connection) -> None:
        if self._large and self.random.random() < 0.01:
            self._load(connection)
            return
        for _ in range(self.random.randint(1, 6)):
            self.random.choice(self._steps)(connection)

    def _load(self, connection: psycopg.Connection) -> None:
        """Make many rows, change many, or delete all that were made so."""
        which = self.random.randrange(3)
        if which == 0:
            # Never more than these: what is there already is left alone.
            connection.execute(
                "INSERT INTO companies (id, name, domain) SELECT 1000000 + i, 'Bulk ' || i, 'bulk' || i || "
                "'.example.com' FROM generate_series(1, %s) i ON CONFLICT DO NOTHING",
                [self.random.randint(1, LARGE)],
            )
        elif which == 1:
            connection.execute("UPDATE companies SET phone = %s WHERE name LIKE 'Bulk %%'", [self.inventor.phone()])
            connection.execute("UPDATE orders SET amount = amount + 1")
        else:
            connection.execute("DELETE FROM companies WHERE name LIKE 'Bulk %'")

    def _insert(self, connection: psycopg.Connection) -> None:
        which = self.random.random()
        if which < 0.1:
            connection.execute(
                "INSERT INTO companies (name, domain, industry, phone) VALUES (%s, %s, %s, %s)", self.inventor.company()
            )
        elif which < 0.5:
            connection.execute(
                "INSERT INTO customers (id, email, first_name, last_name, tier, company_id) VALUES "
                "(%s, %s, %s, %s, %s, (SELECT id FROM companies ORDER BY random() LIMIT 1))",
                self.inventor.customer(),
            )
        else:
            connection.execute(
                "INSERT INTO orders (title, stage, amount, due, customer_id, company_id) SELECT %s, %s, %s, %s, id, "
                "company_id FROM customers ORDER BY random() LIMIT 1",
                self.inventor.order(),
            )

    def _update(self, connection: psycopg.Connection) -> None:
        which = self.random.randrange(5)
        if which == 0:
            connection.execute(
                "UPDATE companies SET phone = %s WHERE id = (SELECT id FROM companies ORDER BY random() LIMIT 1)",
                [self.inventor.phone()],
            )
        elif which == 1:
            connection.execute(
                "UPDATE customers SET email = %s WHERE id = (SELECT id FROM customers ORDER BY random() LIMIT 1)",
                [self.inventor.email()],
            )
        elif which == 2:
            connection.execute(
                "UPDATE customers SET company_id = (SELECT id FROM companies ORDER BY random() LIMIT 1) "
                "WHERE id = (SELECT id FROM customers ORDER BY random() LIMIT 1)"
            )
        else:
            connection.execute(
                "UPDATE orders SET amount = random() * 1000, stage = %s WHERE id IN "
                "(SELECT id FROM orders ORDER BY random() LIMIT 5)",
                [self.inventor.stage()],
            )

    def _rename(self, connection: psycopg.Connection) -> None:
        which = self.random.randrange(4)
        if which == 0:
            connection.execute(
                "UPDATE companies SET id = (SELECT max(id) + 1 FROM companies) "
                "WHERE id = (SELECT id FROM companies ORDER BY random() LIMIT 1)"
            )
        elif which == 1:
            connection.execute(
                "UPDATE customers SET id = %s WHERE id = (SELECT id FROM customers ORDER BY random() LIMIT 1)",
                [self.inventor.customer()[0]],
            )
        else:
            connection.execute(
                "UPDATE orders SET id = (SELECT floor(random() * 500) + 1) "
                "WHERE id = (SELECT id FROM orders ORDER BY random() LIMIT 1)"
            )

    def _delete(self, connection: psycopg.Connection) -> None:
        which = self.random.randrange(10)
        if which == 0:
            connection.execute("DELETE FROM companies WHERE id = (SELECT id FROM companies ORDER BY random() LIMIT 1)")
        elif which < 4:
            connection.execute("DELETE FROM customers WHERE id = (SELECT id FROM customers ORDER BY random() LIMIT 1)")
        else:
            connection.execute("DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT 3)")


def prepare(shop: Stage) -> None:
    """Let the shop's keys change, and be used again: referring tables follow, and versions rise over all rows."""
    shop.execute(
        "CREATE SEQUENCE versions START 1000000; "
        "CREATE OR REPLACE FUNCTION raise_row_version() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.row_version := nextval('versions'); RETURN NEW; END $$"
    )
    for table in ("companies", "customers", "orders"):
        shop.execute(
            f"CREATE TRIGGER first_row_version BEFORE INSERT ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION raise_row_version()"
        )
    for table, column, parent in (
        ("customers", "company_id", "companies"),
        ("orders", "customer_id", "customers"),
        ("orders", "company_id", "companies"),
    ):
        shop.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT {table}_{column}_fkey, ADD CONSTRAINT {table}_{column}_fkey "
            f"FOREIGN KEY ({column}) REFERENCES {parent} ON UPDATE CASCADE ON DELETE CASCADE"
        )
