"""What changes cost in API calls: nothing where nothing changes, next to nothing where few rows change often.

One window's bound (1,000,000 changes of 10,000 rows are at most 10,000 records) is proven in test_outage.py;
figures for more kinds of work are bench/calls.py's.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.stage import Stage, stage

ROWS = int(os.environ.get("CDCSYNC_TOUCHED_ROWS", "3000"))
"""Rows that are written as they are; the issue's figure is 100,000."""
HOT_ROWS, ROUNDS = 300, 100


@pytest.mark.timeout(900)
def test_touching_costs_nothing_and_hot_rows_next_to_nothing(pg: str, tmp_path: Path) -> None:
    """Rows that are written as they are cost no call; many changes of few rows 99 % fewer than one call for each."""
    with stage(tmp_path, pg) as shop:
        shop.execute("DROP TRIGGER raise_row_version ON companies")  # a version that rises would be a change
        shop.execute(
            "INSERT INTO companies (name, domain) SELECT 'Touched ' || i, i || '.example.com' "
            f"FROM generate_series(1, {ROWS}) i"
        )
        shop.start()
        shop.settled(timeout=600)
        before = requests(shop)
        for part in range(10):
            shop.execute(f"UPDATE companies SET name = name, phone = phone WHERE id % 10 = {part}")
        shop.settled(timeout=600)
        assert requests(shop) == before
        snapshot = shop.snapshot()
        assert snapshot is not None
        assert all(lane.counters.suppressed + lane.counters.coalesced >= ROWS for lane in snapshot.lanes)

        for number in range(ROUNDS):
            shop.execute(f"UPDATE companies SET name = 'Hot {number}' WHERE id <= {HOT_ROWS}")
        shop.settled()
        for crm, calls in requests(shop).items():
            print(f"{crm}: {calls - before[crm]} calls for {HOT_ROWS * ROUNDS} changes")
            assert calls - before[crm] <= HOT_ROWS * ROUNDS / 100
        shop.assert_converged()


def requests(shop: Stage) -> dict[str, int]:
    """Count the requests that each CRM has had."""
    return {crm: int(shop.admin(crm, "books")["requests"]) for crm in shop.sandboxes}
