"""Whole histories of the daemon against a simulated database, CRM and network: see the package's ``__main__``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("CDCSYNC_SIMULATION_SEEDS", "960"))
"""Some 50 ms of a processor each; ``make simulate`` plays others, for as long as one likes."""
PIECE = 480
SECONDS = 280
"""For one piece, where other tests have the processors, too."""


def _play(first: int, count: int) -> None:
    """Play histories in a process of their own, in which sets of texts have a fixed order."""
    seeds = f"{first}:{first + count - 1}"
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation", seeds, "--jobs", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(ran.stdout[-200:])
    assert ran.returncode == 0, f"python -m tests.simulation {seeds}\n{ran.stdout[-6_000:]}{ran.stderr[-2_000:]}"


@pytest.mark.parametrize("first", range(1, SEEDS + 1, PIECE))
def test_histories_end_well(first: int) -> None:
    """Each CRM becomes what the database maps to; on the way nothing is done that must never be done."""
    _play(first, PIECE)
