"""The books balance on disk, after every transaction: counters and rows of the state file itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cdcsync.backlog import COLD, IN_BATCH, WAITING
from cdcsync.entries import Balance, Tick
from cdcsync.model import Batch, Change, Outcome, Position, Record, Rejected, Retry
from cdcsync.state import State
from tests.unit.test_pipeline import (
    COMPANIES,
    PEOPLE,
    Bench,
    MemoryCrm,
    bench,
    companies,
    delete,
    insert,
    opened,
    people,
    update,
)
from tests.unit.test_state import row

KEYS = 12


class Shop:
    """Two tables, by key; makes changes that may follow from one another, and others that databases bring as well."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._rows: dict[str, dict[str, list[str | None]]] = {"companies": {}, "people": {}}

    def change(self) -> Change:
        source = self._source
        relation = source.choice((COMPANIES, PEOPLE))
        rows = self._rows[relation.name]
        key, name = str(source.randrange(KEYS)), str(source.randrange(3))
        fresh: list[str | None] = [key, name] if relation is COMPANIES else [key, name, str(source.randrange(KEYS))]
        if key not in rows:
            rows[key] = fresh
            return insert(relation, *fresh)
        old, draw = rows.pop(key), source.random()
        if draw < 0.2:
            return delete(relation, *old)
        other = str(source.randrange(KEYS))
        if draw < 0.4 and other not in rows:
            fresh[0] = other
        rows[str(fresh[0])] = fresh
        return update(relation, old, fresh)


def unreliable(source: random.Random) -> MemoryCrm:
    """Make a CRM that refuses some records and does not answer for others, before or after it wrote them."""

    def judge(_: Batch, __: Record) -> Outcome | None:
        draw = source.random()
        return Rejected("NO", "not this one") if draw < 0.2 else Retry("LOCK", "later") if draw < 0.25 else None

    return MemoryCrm(judge=judge, writes_before_judging=source.random() < 0.5)


@contextlib.contextmanager
def watched(path: Path) -> Iterator[list[Balance]]:
    """Look at the file all the time, beside the daemon; yields what was out of balance."""
    wrong: list[Balance] = []
    done = threading.Event()

    def watch() -> None:
        with contextlib.closing(State.read(path)) as state:
            while not done.is_set():
                with state.reading():
                    wrong.extend(one for one in state.balances() if one.missing)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield wrong
    finally:
        done.set()
        thread.join()


async def disturb(at: Bench, source: random.Random, shop: Shop) -> None:
    """Let something happen, and a tick be written at some moment of it."""
    at.commit(*(shop.change() for _ in range(source.randint(1, 6))))
    for route in at.lane.routes:
        route.paused = "by the test" if source.random() < 0.2 else None
    at.lane.nudge()
    await asyncio.sleep(source.choice((0, 0, 0.002, 0.01)))
    if source.random() < 0.3:
        await at.lane.spill.keep_within(source.choice((1, 5_000)))
    await at.pipeline.tick()


@pytest.mark.parametrize("seed", range(6))
def test_the_equation_holds_on_disk_at_every_tick(seed: int, tmp_path: Path) -> None:
    """Waiting, in flight and cold rows of one key, refusals, retries, changed keys, restarts, a mapping left out."""
    source = random.Random(seed)
    shop, crm = Shop(source), unreliable(source)
    State.open(tmp_path / "state.db").close()

    async def work(*names: str) -> None:
        made = {"companies": companies, "people": people}
        async with bench(tmp_path, *(made[name]() for name in names), crm=crm) as at:
            assert at.lane.balance() == 0
            for _ in range(25):
                await disturb(at, source, shop)
                (books,) = await at.pipeline.after_tick(State.balances)
                assert books.missing == 0

    with watched(tmp_path / "state.db") as wrong:
        asyncio.run(work("companies", "people"))
        asyncio.run(work("companies"))
        asyncio.run(work("companies", "people"))
    assert wrong == []


def test_the_file_alone_tells_where_its_changes_are(tmp_path: Path) -> None:
    """A key that waits, is in flight and cold is three rows; each lane is counted with its own mappings."""
    with opened(tmp_path) as state:
        state.write(
            Tick(
                1,
                Position(1, 1),
                journal=[
                    *(("m", "k", slot, row("k")) for slot in (WAITING, IN_BATCH, COLD)),
                    ("n", "k", WAITING, row("k")),
                ],
                counters=[
                    ("crm", "changes_in", 7),
                    ("crm", "applied", 4),
                    ("crm", "applied:m", 4),
                    ("other", "applied:n", 0),
                    ("other", "changes_in", 1),
                ],
            )
        )
        assert [(one.lane, one.pending, one.missing) for one in state.balances()] == [("crm", 3, 0), ("other", 1, 0)]


def test_a_start_says_that_the_books_are_broken_and_goes_on(tmp_path: Path) -> None:
    """A row that is gone from the file is an error in the log; the daemon goes on, and its status has the alarm."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            at.route("companies").paused = "by the test"
            at.commit(insert(COMPANIES, "1", "a"), insert(COMPANIES, "2", "a"))
            await at.pipeline.tick()
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as db:
            db.execute("DELETE FROM journal WHERE key = '1'")
            db.commit()
        with capture_logs() as logs:
            async with bench(tmp_path, companies()) as at:
                (said,) = [entry for entry in logs if entry["event"] == "the books do not balance"]
                assert (said["log_level"], said["crm"], said["unaccounted"]) == ("error", "crm", 1)
                assert at.lane.balance() == 1

    asyncio.run(work())
