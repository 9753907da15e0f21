"""That the simulation can fail: bugs put in by hand are found within a bounded number of histories."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_mutation_is_caught() -> None:
    """Each bug ends a history badly, and the very same history without it ends well."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation.mutations"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2_000:]
    assert len(ran.stdout.splitlines()) >= 12
