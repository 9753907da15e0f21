"""The shop's daily life, sped up: a thread that writes to the database at a set rate until it is told to stop.

Most transactions hammer a few hot rows, as carts and counters do; others add, move and delete rows over several
tables, and some are rolled back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, LiteralString

import psycopg

from cdcsync.demo.shop import TIERS, Inventor
from cdcsync.model import Lsn, parse_lsn

HOT_ROWS = 12
RATE = 25.0
"""Transactions per second, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the workload has done: committed transactions and their row changes, and transactions rolled back."""

    transactions: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rolled_back: int = 0

    @property
    def changes(self) -> int:
        """Row changes committed."""
        return self.inserted + self.updated + self.deleted


class RollbackWanted(Exception):  # noqa: N818 - a change of mind, not an error
    """Ends a transaction that was never meant to last."""


class Workload:
    """Writes ``rate`` transactions a second from ``start`` to ``stop``; ``tally`` and ``failure`` tell how it goes."""

    def __init__(self, dsn: str, inventor: Inventor, rate: float = RATE) -> None:
        self.tally = Tally()
        self.failure: psycopg.Error | None = None
        self._dsn = dsn
        self._inventor = inventor
        self._random = inventor.random
        self._pause = 1 / rate
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workload", daemon=True)
        self._life: list[tuple[Callable[[psycopg.Cursor], Tally], int]] = [
            (self._hammer_hot_rows, 60),
            (self._move_orders, 10),
            (self._edit_customer, 8),
            (self._new_customer, 9),
            (self._new_company, 2),
            (self._delete_orders, 4),
            (self._delete_customer, 2),
            (self._delete_company, 1),
            (self._change_mind, 4),
        ]

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> Lsn:
        """End, and return a WAL position before which every change of the workload was committed, but the last one.

        That last one is a commit behind the position: who has seen a commit there has seen them all.
        """
        self._stopping.set()
        self._thread.join()
        with psycopg.connect(self._dsn) as connection, connection.transaction():
            connection.execute("UPDATE companies SET phone = NULL WHERE id = (SELECT min(id) FROM companies)")
            found = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        self._count(Tally(updated=1))
        return parse_lsn(found[0]) if found else Lsn(0)

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                connection.execute("SELECT setseed(%s)", [self._random.uniform(-1, 1)])
                due = time.monotonic()
                while not self._stopping.wait(max(0.0, due - time.monotonic())):
                    due = max(due + self._pause, time.monotonic() - 1.0)
                    self._live(connection)
        except psycopg.Error as error:
            self.failure = error

    def _live(self, connection: psycopg.Connection) -> None:
        """Run one transaction of a random kind."""
        kinds, weights = zip(*self._life, strict=True)
        kind = self._random.choices(kinds, weights)[0]
        try:
            with connection.transaction(), connection.cursor() as cursor:
                done = kind(cursor)
        except RollbackWanted:
            self.tally = replace(self.tally, rolled_back=self.tally.rolled_back + 1)
        else:
            self._count(done)

    def _count(self, done: Tally) -> None:
        before = self.tally
        self.tally = Tally(
            before.transactions + 1,
            before.inserted + done.inserted,
            before.updated + done.updated,
            before.deleted + done.deleted,
            before.rolled_back,
        )

    def _hammer_hot_rows(self, cursor: psycopg.Cursor) -> Tally:
        """Update the same few rows again and again, several times in a transaction."""
        updated = 0
        for _ in range(self._random.randint(2, 12)):
            offset = self._random.randrange(HOT_ROWS)
            amount = f"{self._random.randint(100, 900_000) / 100:.2f}"
            cursor.execute(
                "UPDATE orders SET amount = %s WHERE id = (SELECT id FROM orders ORDER BY id OFFSET %s LIMIT 1)",
                [amount, offset],
            )
            updated += cursor.rowcount
        return Tally(updated=updated)

    def _move_orders(self, cursor: psycopg.Cursor) -> Tally:
        """Put a few orders into other stages; some are there already, so that the update changes nothing."""
        cursor.execute(
            "UPDATE orders SET stage = %s WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT %s)",
            [self._inventor.stage(), self._random.randint(1, 5)],
        )
        return Tally(updated=cursor.rowcount)

    def _edit_customer(self, cursor: psycopg.Cursor) -> Tally:
        """Change a customer's tier or e-mail address, or let them change companies."""
        customer = self._any(cursor, "SELECT id FROM customers ORDER BY random() LIMIT 1")
        match self._random.randrange(3):
            case 0:
                tier = self._random.choice(TIERS)
                cursor.execute("UPDATE customers SET tier = %s WHERE id = %s", [tier, customer])
            case 1:
                cursor.execute("UPDATE customers SET email = %s WHERE id = %s", [self._inventor.email(), customer])
            case _:
                company = self._any(cursor, "SELECT id FROM companies ORDER BY random() LIMIT 1")
                cursor.execute("UPDATE customers SET company_id = %s WHERE id = %s", [company, customer])
        return Tally(updated=cursor.rowcount)

    def _new_customer(self, cursor: psycopg.Cursor) -> Tally:
        """Add a customer of some company, with orders, in one transaction."""
        return self._add_customer(cursor, self._any(cursor, "SELECT id FROM companies ORDER BY random() LIMIT 1"))

    def _new_company(self, cursor: psycopg.Cursor) -> Tally:
        """Add a company, a customer of it and orders, in one transaction."""
        cursor.execute(
            "INSERT INTO companies (name, domain, industry, phone) VALUES (%s, %s, %s, %s)", self._inventor.company()
        )
        done = self._add_customer(cursor, self._any(cursor, "SELECT max(id) FROM companies"))
        return replace(done, inserted=done.inserted + 1)

    def _add_customer(self, cursor: psycopg.Cursor, company: Any) -> Tally:
        customer = self._inventor.customer()
        cursor.execute(
            "INSERT INTO customers (id, email, first_name, last_name, tier, company_id)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [*customer, company],
        )
        orders = self._random.randint(0, 3)
        for _ in range(orders):
            cursor.execute(
                "INSERT INTO orders (title, stage, amount, due, customer_id, company_id)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                [*self._inventor.order(), customer[0], company],
            )
        return Tally(inserted=1 + orders)

    def _delete_orders(self, cursor: psycopg.Cursor) -> Tally:
        """Delete a few orders."""
        few = self._random.randint(1, 4)
        cursor.execute("DELETE FROM orders WHERE id IN (SELECT id FROM orders ORDER BY random() LIMIT %s)", [few])
        return Tally(deleted=cursor.rowcount)

    def _delete_customer(self, cursor: psycopg.Cursor) -> Tally:
        """Delete a customer and the customer's orders."""
        customer = [self._any(cursor, "SELECT id FROM customers ORDER BY random() LIMIT 1")]
        orders = cursor.execute("DELETE FROM orders WHERE customer_id = %s", customer).rowcount
        return Tally(deleted=orders + cursor.execute("DELETE FROM customers WHERE id = %s", customer).rowcount)

    def _delete_company(self, cursor: psycopg.Cursor) -> Tally:
        """Delete the company with the fewest customers, and all that belongs to it."""
        company = self._any(
            cursor,
            "SELECT id FROM companies ORDER BY"
            " (SELECT count(*) FROM customers WHERE company_id = companies.id), random() LIMIT 1",
        )
        orders = cursor.execute(
            "DELETE FROM orders WHERE company_id = %s"
            " OR customer_id IN (SELECT id FROM customers WHERE company_id = %s)",
            [company, company],
        ).rowcount
        customers = cursor.execute("DELETE FROM customers WHERE company_id = %s", [company]).rowcount
        companies = cursor.execute("DELETE FROM companies WHERE id = %s", [company]).rowcount
        return Tally(deleted=orders + customers + companies)

    def _change_mind(self, cursor: psycopg.Cursor) -> Tally:
        """Write to several tables, and roll it all back."""
        self._new_company(cursor)
        self._delete_orders(cursor)
        raise RollbackWanted

    @staticmethod
    def _any(cursor: psycopg.Cursor, query: LiteralString) -> Any:
        """Give the one value that the query finds, None if it finds nothing."""
        found = cursor.execute(query).fetchone()
        return found[0] if found else None
