"""Play histories: ``python -m tests.simulation [SEED | FIRST:LAST] [--seconds N [--from SEED]] [--jobs N]``.

Prints the seeds that went wrong, and counts. One seed alone is told at length (``CDCSYNC_TRACE=1``: with all that
happens). The order of sets is fixed (PYTHONHASHSEED), so that a seed plays the same again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from tests.simulation.runner import Tally, play_all, play_on, processors

MINUTE = 60.0
SHOWN = 600
"""Characters of what went wrong that are shown, among many histories."""


def main(arguments: list[str]) -> int:
    """Play what was asked for; returns 1 if a history went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Play random histories.")
    parser.add_argument("seeds", nargs="?", default="1:1000", help="SEED or FIRST:LAST (default: 1:1000)")
    parser.add_argument("--seconds", type=float, help="play for so long, whatever the last seed is")
    parser.add_argument("--from", type=int, dest="first", help="with --seconds: the first seed (default: the time)")
    parser.add_argument("--jobs", type=int, default=processors(), help="processes (default: one for each processor)")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    if given.seconds is not None:
        first = int(time.time()) * 1_000 if given.first is None else given.first
        print(f"from seed {first}", flush=True)
        tally = play_on(first, given.jobs, _until(began + given.seconds))
    elif ":" in given.seeds:
        first, last = map(int, given.seeds.split(":"))
        tally = play_on(first, given.jobs, _until(float("inf")), last)
    else:
        tally = play_all([int(given.seeds)])
    for seed, words in sorted(tally.wrong.items()):
        print(f"--- seed {seed}: {words if len(tally.wrong) == 1 else words[:SHOWN]}")
    print(f"{tally}; {time.monotonic() - began:.1f} s")
    if tally.wrong:
        print(f"wrong: {' '.join(map(str, sorted(tally.wrong)))}")
    return bool(tally.wrong)


def _until(end: float) -> Callable[[Tally], bool]:
    """Go on until a time, and tell once a minute how it goes."""
    told = time.monotonic()

    def go_on(tally: Tally) -> bool:
        nonlocal told
        now = time.monotonic()
        if now - told >= MINUTE:
            told = now
            print(f"{tally}", flush=True)
            if tally.wrong:
                print(f"wrong: {' '.join(map(str, sorted(tally.wrong)))}", flush=True)
        return now < end

    return go_on


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606 — no shell is needed
    sys.exit(main(sys.argv[1:]))
