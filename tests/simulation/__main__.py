"""Play histories: ``python -m tests.simulation [SEED | FIRST:LAST | --seconds N]``.

Prints the seeds that went wrong, and counts. The order of sets is fixed (PYTHONHASHSEED), so a seed plays the same again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.simulation.world import play

LONGEST = 10
"""Seconds of real time that a history may take: more is a loop without an end."""


def _too_long(*_: object) -> None:
    raise TimeoutError


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGALRM, _too_long)
    first, _, last = (arguments or ["1:1000"])[0].partition(":")
    failed = []
    counts: Counter[str] = Counter()
    began = time.process_time()
    for seed in range(int(first), int(last or first) + 1):
        directory = Path(tempfile.mkdtemp(prefix="cdcsync-sim-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        try:
            signal.alarm(LONGEST)
            world = play(seed, directory)
            counts += world.crm.books.counts
            counts["lives"] += world.lives
        except Exception as error:
            failed.append(seed)
            print(f"--- seed {seed}: {type(error).__name__}: {str(error)[: 3000 if not last else 300]}")
            if not last:
                traceback.print_exc()
        finally:
            signal.alarm(0)
            shutil.rmtree(directory)
    print(f"{len(failed)} wrong: {failed[:50]}")
    print(dict(counts), f"{time.process_time() - began:.1f} s CPU")
    return bool(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )  # noqa: S606
    sys.exit(main(sys.argv[1:]))
