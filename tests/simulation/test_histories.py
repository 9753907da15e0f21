"""Whole histories of the daemon against a simulated database, CRM and network: see the package's ``__main__``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXED = 9_600
"""Seeds that are the same each time."""
PIECE = 480
FRESH = 400
"""Seeds that nobody has played yet; ``CDCSYNC_SIMULATION_SEED`` plays the same again."""
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


@pytest.mark.parametrize("first", range(1, FIXED + 1, PIECE))
def test_histories_end_well(first: int) -> None:
    """Each CRM becomes what the database maps to; on the way nothing is done that must never be done."""
    _play(first, PIECE)


@pytest.mark.parametrize("half", range(2))
def test_new_histories_end_well(half: int, testrun_uid: str) -> None:
    """So do histories that no run has seen before."""
    given = os.environ.get("CDCSYNC_SIMULATION_SEED")
    first = int(given) if given else int(time.time()) * 1_000 + int(testrun_uid[:4], 16) % 500
    _play(first + half * FRESH // 2, FRESH // 2)
