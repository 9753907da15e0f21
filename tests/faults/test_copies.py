"""Copies at size: kills do not make them begin anew, and a lost slot costs the differences, not the table.

``CDCSYNC_SOAK_ROWS`` is the size of the table (30,000 unless said otherwise; 1,000,000 takes a quarter of an hour).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from cdcsync.demo.verdict import WANTED, Holdings, _texts, compare
from tests.faults.stage import Stage, stage

ROWS = int(os.environ.get("CDCSYNC_SOAK_ROWS", "30000"))
MANY = 100_000
KILLS = 3 if ROWS < MANY else 5
CHANGED, DELETED = (200, 100) if ROWS < MANY else (1_000, 500)
PATIENCE = 60 + ROWS / 500
WRITES_A_SECOND = 500


class Writer:
    """Changes random companies, some hundred a second."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stopping = threading.Event()
        self.writes = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _run(self) -> None:
        rng = random.Random(1)
        began = time.monotonic()
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stopping.wait(max(0.0, self.writes / WRITES_A_SECOND - (time.monotonic() - began))):
                ids = [rng.randint(1, ROWS) for _ in range(5)]
                phone = f"+1 555 {rng.randrange(10**7)}"
                self.writes += connection.execute(
                    "UPDATE companies SET phone = %s WHERE id = ANY (%s)", [phone, sorted(set(ids))]
                ).rowcount


@contextmanager
def shop_of_companies(directory: Path, dsn: str) -> Iterator[Stage]:
    """Set a stage with many companies, and one mapping: companies to Salesforce accounts."""
    with stage(directory, dsn) as shop:
        shop.execute(
            "INSERT INTO companies (name, domain) SELECT 'Company ' || n, n || '.example.com' "
            f"FROM generate_series((SELECT count(*) FROM companies) + 1, {ROWS}) n"
        )
        shop.execute("ANALYZE companies")
        head, one, *_ = shop.config.read_text(encoding="utf-8").split("[[map]]")
        shop.config.write_text(f"{head}[[map]]{one}", encoding="utf-8")
        yield shop


def assert_equal(shop: Stage) -> None:
    """Compare the accounts with the companies, and ask the sandbox's books."""
    with psycopg.connect(shop.dsn, row_factory=dict_row) as connection:
        rows = connection.execute(WANTED["salesforce", "Account"])
        wanted = {str(row.pop("key")): _texts(row) for row in rows}
    found = Holdings(shop.admin("salesforce", "records?object=Account")).of("Account", "External_Id__c")
    assert list(compare(wanted, found))[:10] == []
    books = shop.admin("salesforce", "books")
    assert (books["double_creates"], books["steps_back"]) == (0, 0)
    snapshot = shop.snapshot()
    assert snapshot is not None
    assert snapshot.balanced


def progress(shop: Stage) -> int:
    """Return the rows that the copy has behind it for good."""
    return int(shop.state("SELECT coalesce(max(rows), 0) FROM copy"))


def counter(shop: Stage, name: str) -> int:
    """Return a counter of the lanes, as it is on disk."""
    return int(shop.state(f"SELECT coalesce(sum(value), 0) FROM counter WHERE name = '{name}'"))


@pytest.mark.soak
@pytest.mark.timeout(60 + 10 * PATIENCE)
def test_kills_do_not_make_a_copy_begin_anew(pg: str, tmp_path: Path) -> None:
    """Under 500 writes a second and kills -9, each row is read once, and the CRM ends equal, without a double."""
    with shop_of_companies(tmp_path, pg) as shop:
        writer = Writer(pg)
        began = time.monotonic()
        shop.start()
        shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come up")
        with writer.at_work():
            for kill in range(1, KILLS + 1):
                due = ROWS * kill // (KILLS + 2)
                shop.wait(lambda due=due: progress(shop) >= due, "the copy does not go on", PATIENCE)  # type: ignore[misc]
                shop.kill()
                before = progress(shop)
                assert before < ROWS, "the kills are to come in the middle"
                shop.start()
                shop.wait(lambda: shop.snapshot() is not None, "the daemon does not come back")
                assert progress(shop) >= before
            shop.wait(lambda: shop.state("SELECT count(*) FROM copy WHERE finished") == 1, "no end", PATIENCE)
        copied = time.monotonic() - began
        shop.settled(timeout=PATIENCE)
        assert progress(shop) <= ROWS
        # A chunk that was redone would have been counted twice: counters and cursor are of the same tick.
        assert ROWS <= counter(shop, "changes_in") <= ROWS + writer.writes + 1
        books = shop.admin("salesforce", "books")
        assert books["creates"] == ROWS
        assert_equal(shop)
        print(
            f"{ROWS} rows, {KILLS} kills, {writer.writes} writes: copied in {copied:.0f} s, equal after "
            f"{time.monotonic() - began:.0f} s; {books['updates']} updates, {books['noop_writes']} of them no-ops"
        )


@pytest.mark.soak
@pytest.mark.timeout(60 + 10 * PATIENCE)
def test_a_lost_slot_costs_the_differences(pg: str, tmp_path: Path) -> None:
    """With all rows in sync, a reset sends what was changed and deleted meanwhile, and hardly more."""
    with shop_of_companies(tmp_path, pg) as shop:
        shop.start()
        shop.settled(timeout=PATIENCE)
        assert shop.stop() == 0
        shop.execute("SELECT pg_drop_replication_slot(current_database()::text)")
        shop.execute(f"UPDATE companies SET phone = 'changed' WHERE id % {ROWS // CHANGED} = 1")
        shop.execute(f"DELETE FROM companies WHERE id % {ROWS // DELETED} = 2")
        before = shop.admin("salesforce", "books")
        lost = counter(shop, "applied")
        ((slot,),) = shop.execute("SELECT current_database()::text")
        began = time.monotonic()
        shop.cli("slot", "reset", "--confirm", str(slot))
        shop.start()
        shop.settled(timeout=PATIENCE)
        took = time.monotonic() - began
        shop.wait(lambda: counter(shop, "applied") - lost >= CHANGED + DELETED, "the counters are not written")
        assert CHANGED + DELETED <= counter(shop, "applied") - lost <= 1.05 * (CHANGED + DELETED)
        after = shop.admin("salesforce", "books")
        sent = {name: after[name] - before[name] for name in ("creates", "updates", "deletes", "noop_writes")}
        assert (sent["creates"], sent["deletes"]) == (0, DELETED)
        assert sent["updates"] <= 1.05 * CHANGED + 1
        assert_equal(shop)
        print(f"{ROWS} rows, {CHANGED} changed, {DELETED} deleted: sent {sent} in {took:.0f} s")
