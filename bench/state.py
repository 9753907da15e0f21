"""The state file with a large ledger: looking records up, writing ticks, starting, and backing up beside a writer.

    python bench/state.py [ROWS]

Fills a ledger of 3,000,000 rows (10 fields each, in the order in which a first copy reads them), through the same code
as the daemon. Lookups are of random keys, one by one and in batches of 200 as the lanes ask for them; beside them
stands the ceiling, a SELECT by primary key of one small column in an ordinary SQLite table with as many rows. Ticks
write random rows, and wait for the disk. Files lie in the directory for temporary files; the system's cache is warm.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cdcsync.entries import Known, Tick
from cdcsync.model import Position
from cdcsync.state import State
from cdcsync.state_backup import back_up
from cdcsync.state_check import look

FIELDS = tuple(f"Field_{number}__c" for number in range(10))
TICK = 10_000
BATCH = 200
LOOKUPS = 20_000
TICKS = 20


def known(number: int, source: random.Random) -> Known:
    """Make a ledger's entry of the usual size."""
    return Known(f"003{number:015d}", FIELDS, source.randbytes(80), {}, Position(1_000 + number, 1), 1.7e9 + number)


def tick(numbers: Sequence[int], source: random.Random) -> Tick:
    """Make a tick that settles these rows."""
    return Tick(9, Position(9, 1), ledger=[("m", str(number), known(number, source)) for number in numbers])


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def line(name: str, seconds: Sequence[float]) -> None:
    """Print three percentiles and the longest, in milliseconds."""
    ordered = sorted(seconds)
    at = (ordered[int(len(ordered) * share)] for share in (0.5, 0.95, 0.99))
    print(f"{name:<44}" + "".join(f"{value * 1e3:>10.3f}" for value in (*at, ordered[-1])))


def fill(state: State, rows: int, source: random.Random) -> None:
    """Fill the ledger as a first copy does."""
    for first in range(0, rows, TICK):
        state.write(tick(range(first, min(rows, first + TICK)), source))


def ceiling(path: Path, rows: int, source: random.Random) -> list[float]:
    """Look random keys up in the plainest table."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE plain (key TEXT PRIMARY KEY, crm_id TEXT) WITHOUT ROWID")
        db.executemany(
            "INSERT INTO plain VALUES (?, ?)", ((str(number), f"003{number:015d}") for number in range(rows))
        )
        db.commit()
        keys = [str(source.randrange(rows)) for _ in range(LOOKUPS)]

        def ask(key: str) -> None:
            db.execute("SELECT crm_id FROM plain WHERE key = ?", (key,)).fetchone()

        return [timed(ask, key) for key in keys]


def lookups(state: State, rows: int, number: int, source: random.Random) -> list[float]:
    """Look random keys up, so many at a time."""
    asked = [[str(source.randrange(rows)) for _ in range(number)] for _ in range(LOOKUPS // number)]
    return [timed(state.known, "m", keys) for keys in asked]


def ticks(state: State, rows: int, size: int, source: random.Random) -> list[float]:
    """Write ticks of ``size`` random rows."""
    made = [tick(source.sample(range(rows), min(size, rows)), source) for _ in range(TICKS)]
    return [timed(state.write, one) for one in made]


def start(path: Path) -> None:
    """Open the file as a start does."""
    State.open(path).close()


def beside_backup(state: State, rows: int, target: Path, source: random.Random) -> tuple[float, list[float]]:
    """Write ticks of 1,000 rows while a backup is made; returns its seconds, and theirs."""
    took: list[float] = []
    began = threading.Event()

    def work() -> None:
        took.append(timed(lambda: back_up(state.path, target, told=lambda *_: began.set())))

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    pauses = []
    while thread.is_alive():
        one = tick(source.sample(range(rows), min(1_000, rows)), source)
        pauses.append(timed(state.write, one))
        time.sleep(0.05)
    thread.join()
    return took[0], pauses


def main() -> None:
    """Print the table."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000_000
    source = random.Random(1)
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-bench-"))
    try:
        path = directory / "state.db"
        state = State.open(path)
        filled = timed(fill, state, rows, source)
        state.close()
        print(f"{rows:,} rows, {path.stat().st_size / rows:.0f} bytes each, filled in {filled:.0f} s")
        starts = [timed(start, path) for _ in range(3)]
        print(f"\n{'milliseconds':<44}" + "".join(f"{name:>10}" for name in ("p50", "p95", "p99", "longest")))
        line("lookup, plain SELECT (ceiling)", ceiling(directory / "plain.db", rows, source))
        state = State.open(path)
        line("lookup, one by one", lookups(state, rows, 1, source))
        line(f"lookup, batches of {BATCH}", lookups(state, rows, BATCH, source))
        line(f"tick of {TICK:,} rows", ticks(state, rows, TICK, source))
        line("tick of 1,000 rows", ticks(state, rows, 1_000, source))
        seconds, pauses = beside_backup(state, rows, directory / "backup.db", source)
        line("tick of 1,000 rows, beside a backup", pauses)
        state.close()
        print(f"\nstart {min(starts):.2f} s, backup {seconds:.1f} s", end="")
        print(f", full check {timed(look, path):.1f} s")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
