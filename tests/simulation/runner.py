"""Plays many histories: in one process or several, with a watchdog for each, and counts."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.judge import Wrong
from tests.simulation.world import World, play

LONGEST = 20
"""Seconds of real time that a history may take: more is a loop without an end."""
PIECE = 25
"""Histories that a process plays before it reports."""
_MEMORY = Path("/dev/shm")  # noqa: S108 — nothing is read from there that was not made there, in a directory of its own


@dataclass(slots=True)
class Tally:
    """What became of some histories."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    """Seeds that went wrong, and how."""

    def add(self, other: Tally) -> None:
        """Add other histories."""
        self.counts.update(other.counts)
        self.wrong |= other.wrong

    def __str__(self) -> str:
        names = (
            "seeds",
            "lives",
            "crashes",
            "slots lost",
            "requests",
            "writes",
            "created",
            "deleted",
            "idle",
            "faults",
        )
        told = [f"{len(self.wrong)} wrong", *(f"{self.counts[name]} {name}" for name in names)]
        return f"{', '.join(told)}; {self.counts['ms'] / max(1, self.counts['seeds']):.1f} ms of CPU each"


def play_one(seed: int, longest: int = LONGEST) -> World:
    """Play one history. Raises Wrong, or what the daemon died of; Wrong where it takes ``longest`` seconds."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-", dir=_MEMORY if _MEMORY.is_dir() else None))
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(longest)
    try:
        return play(seed, directory)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    raise Wrong("goes on and on")


def play_all(seeds: Iterable[int]) -> Tally:
    """Play histories in this process."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # a kill leaves some that were made just then
    tally, began = Tally(), time.process_time()
    for seed in seeds:
        tally.counts["seeds"] += 1
        try:
            tally.counts.update(play_one(seed).counts)
        except Exception as error:  # noqa: BLE001 — whatever ends a daemon is a finding
            tally.wrong[seed] = f"{type(error).__name__}: {error}\n{_place(error)}"
    tally.counts["ms"] = round(1_000 * (time.process_time() - began))
    return tally


def _place(error: Exception) -> str:
    return "" if isinstance(error, Wrong) else "".join(traceback.format_exception(error))[-3_000:]


def play_on(first: int, jobs: int, go_on: Callable[[Tally], bool], last: int | None = None) -> Tally:
    """Play histories from a seed on, in processes of their own, while ``go_on`` wants more of them."""
    tally = Tally()
    pieces = _pieces(first, last, go_on, tally)
    if jobs == 1:
        for piece in pieces:
            tally.add(play_all(piece))
        return tally
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for done in pool.imap_unordered(play_all, _throttled(pieces, tally, jobs)):
            tally.add(done)
    return tally


def _pieces(first: int, last: int | None, go_on: Callable[[Tally], bool], tally: Tally) -> Iterator[range]:
    for start in itertools.count(first, PIECE):
        if (last is not None and start > last) or not go_on(tally):
            return
        yield range(start, start + PIECE if last is None else min(start + PIECE, last + 1))


def _throttled(pieces: Iterator[range], tally: Tally, jobs: int) -> Iterator[range]:
    """Give out no more pieces than are being played: a pool would take them all at once."""
    given = 0
    for piece in pieces:
        yield piece
        given += len(piece)
        while given - tally.counts["seeds"] > 2 * jobs * PIECE:
            time.sleep(0.02)


def processors() -> int:
    """Count the processors that are ours."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
