"""A very large transaction through the whole daemon, in both ways of reading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.faults.stage import stage

CHANGES = int(os.environ.get("CDCSYNC_TEST_CHANGES", "100000"))
ROWS = 2_000
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
        assert shop.daemon is not None
        status = Path(f"/proc/{shop.daemon.pid}/status").read_text(encoding="ascii")
        (peak,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))
        assert peak < BOUND
        shop.assert_converged()
