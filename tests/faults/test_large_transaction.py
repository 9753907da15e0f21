"""A very large transaction through the whole daemon, in both ways of reading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.faults.stage import Stage, stage

CHANGES = int(os.environ.get("CDCSYNC_TEST_CHANGES", "100000"))
ROWS = 2_000
DISTINCT = CHANGES * 6 // 5
"""Rows that a transaction inserts; none folds into another."""
MAP = "companies:salesforce.Account"
BOUND = 300 << 20


@pytest.mark.soak
@pytest.mark.parametrize("streaming", [False, True])
def test_memory_does_not_grow_with_a_transaction(pg: str, tmp_path: Path, streaming: bool) -> None:  # noqa: FBT001 - a case
    """So many changes to a fixed number of rows pass, the CRMs are right, and memory stays below 300 MB."""
    with stage(tmp_path, pg) as shop:
        text = shop.config.read_text(encoding="utf-8")
        shop.config.write_text(text.replace("[postgres]\n", f"[postgres]\nstreaming = {str(streaming).lower()}\n"))
        shop.execute(
            "INSERT INTO companies (name, domain)"
            f" SELECT 'Many ' || i, i || '.example' FROM generate_series(1, {ROWS}) i"
        )
        shop.execute(f"ALTER DATABASE \"{conninfo_to_dict(pg)['dbname']}\" SET logical_decoding_work_mem = '64kB'")
        shop.start()
        shop.settled(120)
        shop.execute(f"DO $$ BEGIN FOR n IN 1..{CHANGES // ROWS} LOOP UPDATE companies SET phone = n; END LOOP; END $$")
        shop.settled(120 + CHANGES / 2000)
        assert _peak(shop) < BOUND
        shop.assert_converged()


@pytest.mark.soak
def test_memory_is_bounded_while_very_many_rows_are_sent(pg: str, tmp_path: Path) -> None:
    """Rows of one transaction wait, more than are sent at once: each arrives once, and memory stays below 300 MB."""
    with stage(tmp_path, pg) as shop:
        head, *maps = shop.config.read_text(encoding="utf-8").split("[[map]]")
        (accounts,) = (one for one in maps if 'salesforce.Account"' in one and '"companies"' in one)
        shop.config.write_text(f"{head}[[map]]{accounts}", encoding="utf-8")
        shop.start()
        shop.wait(lambda: _applied(shop) > 0 and _pending(shop) == 0, "the first copy does not settle")
        before = shop.admin("salesforce", "books")["creates"]
        shop.cli("pause", MAP)
        shop.wait(lambda: _paused(shop), "the daemon does not take the pause up")
        shop.execute(
            "INSERT INTO companies (name, domain)"
            f" SELECT 'Many ' || i, i || '.example' FROM generate_series(1, {DISTINCT}) i"
        )
        shop.wait(lambda: _pending(shop) == DISTINCT, "the rows are not read", timeout=60 + DISTINCT / 1000)
        shop.cli("resume", MAP)
        shop.wait(
            lambda: shop.admin("salesforce", "books")["creates"] == before + DISTINCT and _pending(shop) == 0,
            "the rows do not arrive",
            timeout=120 + DISTINCT / 1000,
        )
        assert _peak(shop) < BOUND
        books = shop.admin("salesforce", "books")
        assert (books["updates"], books["noop_writes"]) == (0, 0)


def _peak(shop: Stage) -> int:
    """Return the most memory that the daemon ever had, in bytes."""
    assert shop.daemon is not None
    status = Path(f"/proc/{shop.daemon.pid}/status").read_text(encoding="ascii")
    (peak,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))
    return peak


def _pending(shop: Stage) -> int:
    snapshot = shop.snapshot()
    return 1 if snapshot is None else sum(lane.pending for lane in snapshot.lanes)


def _paused(shop: Stage) -> bool:
    snapshot = shop.snapshot()
    return snapshot is not None and all(one.paused for one in snapshot.maps)


def _applied(shop: Stage) -> int:
    snapshot = shop.snapshot()
    return 0 if snapshot is None else sum(lane.counters.applied for lane in snapshot.lanes)
