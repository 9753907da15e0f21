"""kill -9 at each point of a bulk job's life: the job is taken up again, and its rows are not sent twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.stage import stage

ROWS = 300
BULK = {'client_id     = "demo"': 'client_id     = "demo"\nbulk_from = 200'}
JOBS = "/jobs/ingest"

POINTS = {
    "created, its id not known": {"method": "POST", "path": "/jobs/ingest$", "when": "after"},
    "created": {"method": "PUT", "path": "/batches", "when": "before"},
    "uploaded, the answer lost": {"method": "PUT", "path": "/batches", "when": "after"},
    "uploaded": {"method": "PATCH", "path": "/jobs/ingest/", "when": "before"},
    "closed, the answer lost": {"method": "PATCH", "path": "/jobs/ingest/", "when": "after"},
    "closed": {"method": "GET", "path": "/jobs/ingest/[^/]+$", "when": "before"},
    "finished": {"method": "GET", "path": "/successfulResults", "when": "before"},
}


@pytest.mark.parametrize("point", POINTS)
def test_a_job_survives_kill_9(point: str, pg: str, tmp_path: Path) -> None:
    """Killed while a request is held, the daemon takes the same job up: one job, one upload, no row twice."""
    where = POINTS[point]
    with stage(tmp_path, pg, changes=BULK) as shop:
        shop.start()
        shop.settled()
        before = len(shop.requests("salesforce", "POST", JOBS))
        hold = {"kind": "hold", "when": where["when"], "match": {"method": where["method"], "path": where["path"]}}
        shop.fault("salesforce", {**hold, "times": 1})
        shop.execute(
            "INSERT INTO companies (name, domain) SELECT 'Bulk ' || i, 'bulk' || i || '.example.com' "
            f"FROM generate_series(1, {ROWS}) i"
        )
        shop.wait(lambda: bool(shop.admin("salesforce", "faults")["held"]), "no request is held")
        shop.kill()
        shop.mend("salesforce", drop=True)
        shop.start()
        shop.settled()
        assert len(shop.requests("salesforce", "POST", JOBS)) - before == 1
        written = [
            r["writes"] for r in shop.records("salesforce", "Account") if r["fields"]["Name"].startswith("Bulk ")
        ]
        assert written == [1] * ROWS
        shop.assert_converged()
