"""One history: a database at work, a daemon that is killed and started, CRMs with faults; and whether all ends well.

Everything is drawn from one seed, and nothing waits, so a history takes milliseconds and runs again the same way (with
``PYTHONHASHSEED=0``: sets of keys have an order of their own). Real are pipeline, lanes, copies, state file and
limiter; simulated are time, threads, the source's socket and the CRMs behind their adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from asyncio_throttle import throttler

from cdcsync import copies, verdicts
from cdcsync.entries import Identity
from cdcsync.state import State
from tests.simulation.crm import Crm, trace
from tests.simulation.database import Database
from tests.simulation.judge import Wrong
from tests.simulation.life import End, Life
from tests.simulation.plot import Plot, draw
from tests.simulation.side import Side
from tests.simulation.virtual import Deadlock, VirtualLoop

QUIET_SECONDS = 5 * 86_400.0
"""Virtual seconds within which everything has to settle once nothing changes and nothing fails any more."""
QUIET_DAYS = 60 * 86_400.0
"""As above, where a day has few calls."""
BEFORE = (0, 3, 12)
"""Transactions before the daemon's first start."""
COPY_LOOK = 1.0
"""Seconds between two looks for a copy that is to be done: five a second would be most of what a history does."""


class World:
    """A history under way."""

    def __init__(self, plot: Plot, directory: Path) -> None:
        self.plot = plot
        self.rng = random.Random(f"{plot.seed} world")
        self.database = Database(random.Random(f"{plot.seed} rows"), plot.habits)
        self.excused: set[tuple[str, str]] = set()
        """Object and key of rows that people gave up: others may refer to them in vain."""
        self.disturbed: set[str] = set()
        """Rows by uid whose records people had a hand in."""
        self.sides = [self._side(number) for number in range(len(plot.terms))]
        self.now = 0.0
        self.jump = 0.0
        """Seconds by which the wall clock is wrong."""
        self.slot = 0
        """What the slot has confirmed."""
        self.counts: Counter[str] = Counter()
        self._path = directory / "state.db"

    def _side(self, number: int) -> Side:
        rng = random.Random(f"{self.plot.seed} crm {number}")
        crm = Crm(rng, whole_batches=self.plot.terms[number].whole_batches, excused=self._excuses)
        return Side(number, self.plot, crm)

    def _excuses(self, uid: str, name: str, key: str) -> bool:
        """Whether a row may find what is not as it should be: people gave that up, or a TRUNCATE has left the row."""
        return (name, key) in self.excused or (self.database.truncated and uid not in self.database.uids)

    @property
    def lives(self) -> int:
        """Lives so far."""
        return self.counts["lives"]

    def run(self) -> None:
        """Run the history to its end. Raises Wrong, or whatever the daemon would have died of."""
        plot, rng = self.plot, self.rng
        random.seed(f"{plot.seed} jitter")
        for _ in range(rng.choice(BEFORE) if plot.backfill else 0):
            self.database.transact(self.now)
        self._begin_slot()
        while not plot.calm and self.now < plot.seconds:
            seconds = min(plot.seconds - self.now, rng.expovariate(1 / plot.kills))
            life = self._live(seconds, "stop" if rng.random() < plot.graceful else "kill")
            if rng.random() < plot.slot_losses and life.knows_all:
                self._lose_slot()
        self._live(plot.seconds if plot.calm else 0.0, "last")
        self.counts += sum((side.crm.books.counts for side in self.sides), Counter())

    def _live(self, seconds: float, end: End) -> Life:
        """Let the daemon live for a while; the last time it has to come to an end."""
        self.counts["lives"] += 1
        trace("life", self.lives, "from", self.now, end)
        loop = VirtualLoop(self.now, self.rng, self.plot.disk)
        setattr(throttler, "time", SimpleNamespace(monotonic=loop.time))  # noqa: B010 — a module that it imports
        state = self._open()
        life = Life(self, state, loop, end, seconds)
        asyncio.set_event_loop(loop)
        main = loop.create_task(life.run())
        main.add_done_callback(lambda _: loop.stop())
        loop.call_at(self.now + self._longest(seconds, end), loop.stop)
        try:
            loop.run_forever()
        except Deadlock:
            raise Wrong(self._described(life, "nothing will ever happen again")) from None
        finally:
            self.now = loop.now
            self.slot = max(self.slot, life.feed.confirmed)
            _abandon(loop)
            state.close()
        self._conclude(main, life, end)
        return life

    def _longest(self, seconds: float, end: End) -> float:
        if end == "kill":
            return seconds
        days = any(terms.daily for terms in self.plot.terms)
        return seconds + (QUIET_DAYS if days else QUIET_SECONDS)

    def _conclude(self, main: asyncio.Task[None], life: Life, end: End) -> None:
        for side in self.sides:
            side.crash(self.now)
        if main.done() and not main.cancelled() and (error := main.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if isinstance(error, Wrong):
                raise Wrong(self._described(life, str(error))) from None
            raise error
        if end != "kill" and not main.done():
            raise Wrong(self._described(life, "did not come to an end"))
        self.counts["crashes"] += end == "kill"
        wrong = [words for side in self.sides for words in side.crm.books.wrong]
        if wrong:
            raise Wrong(self._described(life, "\n".join(wrong)))

    # --- the state file and the slot

    def _open(self) -> State:
        state = State.open(self._path)
        state._db._db.execute("PRAGMA synchronous = OFF")
        if state.identity() is None:
            state.bind(Identity("1", "db", "slot", self.slot), self.slot, 1)
        return state

    def _begin_slot(self) -> None:
        """Let a slot begin here: what was written before, nobody will hear of."""
        self.database.wal.clear()
        self.slot = self.database.lsn

    def _lose_slot(self) -> None:
        """Lose the slot, and some changes with it, before there is another one; the tables are copied anew."""
        self.counts["slots lost"] += 1
        for side in self.sides:
            side.crm.gap = True
        state = self._open()
        state.unbind()
        state.close()
        for _ in range(self.rng.choice(BEFORE)):
            self.database.transact(self.now)
        self._begin_slot()

    def _described(self, life: Life, words: str) -> str:
        """Describe what is there, for a person who looks for the cause."""
        lines = [words, f"{self.plot}", f"life {self.lives}, now {self.now}"]
        for lane, side in zip(life.lanes, self.sides, strict=True):
            for route in lane.routes:
                backlog = route.backlog
                lines.append(
                    f"{route.name}: ready {list(backlog.ready.keys())} held {backlog.held} in flight "
                    f"{list(backlog.in_flight)} cold {len(backlog.cold)} parked {backlog.parked} {route.reasons} "
                    f"referred {dict(backlog.referred)} paused {route.paused}"
                )
                lines.append(f"  table {self.database.tables[route.config.table.partition('.')[2]]}")
            lines += [f"  {crm_id} {held}" for crm_id, held in side.crm.records.items()]
        return "\n".join(lines)


def _abandon(loop: VirtualLoop) -> None:
    """Leave everything as a kill does: nobody hears of it."""
    for task in asyncio.all_tasks(loop):
        quiet: Any = task
        quiet._log_destroy_pending = False
        with contextlib.suppress(RuntimeError, ValueError, BaseExceptionGroup):
            quiet.get_coro().close()
    asyncio.set_event_loop(None)


@contextlib.contextmanager
def _scaled(plot: Plot) -> Iterator[None]:
    """Scale some constants of the daemon to a history's size."""
    values: list[tuple[Any, str, Any]] = [
        (verdicts, "LEAST", plot.judges[0]),
        (verdicts, "WINDOW", plot.judges[1]),
        (copies, "LOOK_SECONDS", COPY_LOOK),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in values]
    try:
        for owner, name, value in values:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def play(seed: int, directory: Path) -> World:
    """Play the history of a seed in an empty directory, which is removed. Raises Wrong, or what the daemon died of."""
    try:
        plot = draw(seed)
        with _scaled(plot):
            world = World(plot, directory)
            world.run()
        return world
    finally:
        shutil.rmtree(directory, ignore_errors=True)
