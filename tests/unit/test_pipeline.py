"""Pipeline and lane together, on a real state file, with a small CRM in memory behind the adapters' interface."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from cdcsync.apply.base import Finding, Limits, Wanted
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.rate import RateController
from cdcsync.clock import Clock, SystemClock
from cdcsync.config import MapConfig
from cdcsync.copies import COPY_ROOM, Copy, Paused
from cdcsync.deletes import FLOOR
from cdcsync.entries import CopyState, Known
from cdcsync.errors import SourceError, SourceUnavailableError, StateError
from cdcsync.lane import Lane
from cdcsync.model import (
    ABSENT,
    START,
    Applied,
    Batch,
    Begin,
    Change,
    ChangeKind,
    Column,
    Commit,
    Missing,
    Op,
    Outcome,
    Position,
    Record,
    Rejected,
    Relation,
    Retry,
    Target,
    Text,
    Truncate,
)
from cdcsync.pipeline import Pipeline
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.wal.decode import join_tuple
from cdcsync.wal.row_filter import RowFilter
from cdcsync.wal.sight import TableSight
from cdcsync.wal.snapshot import Backfill, Cursor
from tests.polling import eventually_async

LOG: structlog.typing.FilteringBoundLogger = structlog.get_logger()
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

COMPANIES = Relation(1, "public", "companies", "f", (Column("id", 25, -1, True), Column("name", 25, -1, True)))
PEOPLE = Relation(
    2,
    "public",
    "people",
    "f",
    (Column("id", 25, -1, True), Column("name", 25, -1, True), Column("company", 25, -1, True)),
)


@dataclass(eq=False)
class MemoryCrm:
    """Records by object and external key; ``judge`` may refuse a record, before or after it was written."""

    name: str = "crm"
    limits: Limits = field(default_factory=lambda: Limits(dict.fromkeys(Op, 100), 4))
    records: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    judge: Callable[[Batch, Record], Outcome | None] = lambda *_: None
    writes_before_judging: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        self.gate.set()

    def close(self) -> None:
        pass

    def check(self, wanted: Sequence[Wanted]) -> list[Finding]:
        raise NotImplementedError

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        with self.lock:
            return {key: self.records[target.object, key]["id"] for key in keys if (target.object, key) in self.records}

    def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        with self.lock:
            held = {record["id"]: record for at, record in self.records.items() if at[0] == target.object}
        return {one: {name: held[one].get(name) or None for name in fields} for one in crm_ids if one in held}

    def send(self, batch: Batch) -> list[Outcome]:
        with self.lock:
            return [self._write(batch, record) for record in batch.records]

    def _write(self, batch: Batch, record: Record) -> Outcome:
        verdict = self.judge(batch, record)
        if verdict is not None and not self.writes_before_judging:
            return verdict
        name = batch.target.object
        if batch.op is Op.DELETE:
            self.records = {at: held for at, held in self.records.items() if held["id"] != record.crm_id}
            return Applied(record.crm_id)
        if batch.op is Op.UPDATE:
            at = next((at for at, held in self.records.items() if held["id"] == record.crm_id), None)
            if at is None:
                return Missing("gone")
            self.records[name, record.key] = {**self.records.pop(at), **record.fields}
            return verdict or Applied(record.crm_id)
        created = (name, record.key) not in self.records
        held = self.records.setdefault((name, record.key), {"id": f"{name}-{record.key}"})
        held.update(record.fields)
        return verdict or Applied(held["id"], created=created)

    def keys(self, name: str) -> set[str]:
        with self.lock:
            return {key for at, key in self.records if at == name}


def companies(**changes: Any) -> MapConfig:
    """Map the parents."""
    given = {"name": "companies", "table": "companies", "to": "crm.Account", "key": {"Key": "id"}}
    return MapConfig.model_validate({**given, "fields": {"Name": "name"}, "backfill": False, **changes})


def people(**changes: Any) -> MapConfig:
    """Map the children."""
    given = {"name": "people", "table": "people", "to": "crm.Contact", "key": {"Key": "id"}}
    parent = {"column": "company", "ref": "crm.Account.Key"}
    fields = {"Name": "name", "Account": parent}
    return MapConfig.model_validate({**given, "fields": fields, "backfill": False, **changes})


@dataclass(eq=False)
class Bench:
    """One lane at work. ``commit`` is what the stream would bring."""

    state: State
    crm: MemoryCrm
    pipeline: Pipeline
    lane: Lane
    lsn: int

    def route(self, name: str) -> Route:
        return next(route for route in self.lane.routes if route.name == name)

    async def under_way(self, name: str) -> Copy:
        """Let a mapping's copy begin, and go on to its end without having read anything."""
        self.pipeline.plan_copies()
        copy = self.pipeline.copies.of(name)
        assert copy is not None
        copy.entry = replace(self.state.begin_copy(copy.entry.id), order=("id",))
        copy.backfill = Backfill(name, COMPANIES, ["id"], log=LOG)
        return copy

    async def run_copies(self, error: SourceError | None = None) -> None:
        """Run the copies that read nothing to their end; with ``error``, none of them can be read."""

        async def make(route: Route, _: CopyState) -> Backfill:
            if error is not None:
                raise error
            return Backfill(route.name, COMPANIES, ["id"], log=LOG)

        async def connect() -> Any:
            raise AssertionError("nothing is to be read")

        async def look() -> None:
            assert error is not None, "no table has changed"

        task = asyncio.create_task(self.pipeline.copies.run(self.lane, connect, make, look))
        await eventually_async(lambda: not self.pipeline.copies.pending)
        task.cancel()
        await asyncio.wait([task])

    def commit(self, *changes: Change | Truncate) -> None:
        self.lsn += 100
        commit = Commit(self.lsn, self.lsn + 50, NOW)
        self.pipeline.receive([Begin(self.lsn, NOW, self.lsn), *changes, commit])

    async def settled(self) -> None:
        await eventually_async(lambda: self.lane.pending == 0)
        assert self.lane.balance() == 0


def values(relation: Relation, *texts: str | None) -> bytes:
    """Encode a tuple."""
    encoded: list[Text] = [None if text is None else text.encode() for text in texts]
    assert len(encoded) == len(relation.columns)
    return join_tuple(encoded)


def insert(relation: Relation, *texts: str | None) -> Change:
    """Make an insert."""
    return Change(ChangeKind.INSERT, relation, values(relation, *texts))


def update(relation: Relation, old: Sequence[str | None], new: Sequence[str | None]) -> Change:
    """Make an update with the whole old row."""
    return Change(ChangeKind.UPDATE, relation, values(relation, *new), values(relation, *old))


def delete(relation: Relation, *texts: str | None) -> Change:
    """Make a delete."""
    return Change(ChangeKind.DELETE, relation, None, values(relation, *texts))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[State]:
    """Open the state file for a while."""
    state = State.open(path / "state.db")
    try:
        yield state
    finally:
        state.close()


def lane_of(pipeline: Pipeline, crm: MemoryCrm, configs: Sequence[MapConfig]) -> Lane:
    """Make a lane with routes for these mappings."""
    limiter = Limiter(asyncio.get_running_loop(), RateController(now=0.0), "crm")
    routes = [Route(config, {}) for config in configs]
    return Lane("crm", crm, limiter, routes, pipeline, max_wait=0.0, log=LOG)


@contextlib.asynccontextmanager
async def bench(
    path: Path, *configs: MapConfig, crm: MemoryCrm | None = None, clock: Clock | None = None
) -> AsyncIterator[Bench]:
    """Run a lane with these mappings, parents first; what the state file holds is taken up."""
    with opened(path) as state:
        pipeline = Pipeline(state, 1 << 28, 1 << 33, LOG, clock or SystemClock())
        crm = crm or MemoryCrm()
        lane = lane_of(pipeline, crm, configs)
        pipeline.add(lane)
        task = asyncio.create_task(lane.run())
        try:
            yield Bench(state, crm, pipeline, lane, 1000 + pipeline.received_lsn)
        finally:
            lane.stop()
            await task
            await pipeline.tick()
            pipeline.close()


def run(work: Callable[[], Any]) -> None:
    """Run a test's coroutine."""
    asyncio.run(work())


def test_a_row_that_loses_its_key_is_deleted(tmp_path: Path) -> None:
    """A key that becomes NULL takes the record along: nothing else would ever tell the CRM of the row."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.commit(update(COMPANIES, ["1", "a"], [None, "a"]))
            await at.settled()
            assert at.crm.keys("Account") == set()

    run(work)


def test_a_refused_association_leaves_no_record_behind(tmp_path: Path) -> None:
    """A record whose association was refused may be there; when the row goes, the CRM is asked, and it goes too."""
    parent, child = (
        companies(),
        people(fields={"Name": "name"}, associate=[{"to": "crm.Account", "column": "company", "type": "works_at"}]),
    )
    crm = MemoryCrm(
        judge=lambda batch, record: Rejected("LIMIT", "too many") if record.links and batch.op is Op.UPSERT else None,
        writes_before_judging=True,
    )

    async def work() -> None:
        async with bench(tmp_path, parent, child, crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"), insert(PEOPLE, "7", "x", "1"))
            await at.settled()
            assert at.lane.rejected == 1
            at.commit(delete(PEOPLE, "7", "x", "1"))
            await at.settled()
            assert at.crm.keys("Contact") == set()
            assert at.lane.rejected == 0

    run(work)


def test_a_record_without_an_answer_is_not_forgotten(tmp_path: Path) -> None:
    """Where the answer said nothing about a new record, deleting its row asks the CRM for it."""
    crm = MemoryCrm(judge=lambda *_: Retry("UNANSWERED", "nothing said"), writes_before_judging=True)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await eventually_async(lambda: at.crm.keys("Account") == {"1"})
            at.commit(delete(COMPANIES, "1", "a"))
            crm.judge = lambda *_: None
            await at.settled()
            assert at.crm.keys("Account") == set()

    run(work)


def test_a_child_outlives_the_key_that_it_waits_for(tmp_path: Path) -> None:
    """A child of a key that its parent leaves, without a foreign key to follow it, is not held for ever."""

    async def work() -> None:
        async with bench(tmp_path, companies(), people()) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.route("companies").paused = "by the test"
            at.commit(update(COMPANIES, ["1", "a"], ["2", "a"]), insert(PEOPLE, "7", "x", "2"))
            await eventually_async(lambda: "7" in at.route("people").backlog.held)
            at.commit(update(COMPANIES, ["2", "a"], ["3", "a"]))
            at.route("companies").paused = None
            at.lane.nudge()
            await at.settled()

    run(work)


def test_an_ignored_delete_keeps_what_is_known_of_the_record(tmp_path: Path) -> None:
    """With on_delete = ignore the record stays, so the ledger goes on knowing it, also after a restart."""
    config = companies(on_delete="ignore")

    async def work() -> None:
        async with bench(tmp_path, config) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
        async with bench(tmp_path, config) as at:
            at.lane._replay = Position(1 << 40, 0)  # as after a crash: what comes may have been sent before
            at.commit(delete(COMPANIES, "1", "a"))
            at.lane._replay = START
            at.lane.nudge()
            await at.settled()
            assert "1" in await at.lane.known(at.route("companies"), ["1"])

    run(work)


def test_rows_of_the_copy_are_certain_from_the_first(tmp_path: Path) -> None:
    """A new slot's start counts as fed, so that copied rows are compared with the ledger and not sent regardless."""
    with opened(tmp_path) as state:
        state.bind(("sys", "db", "slot", 500), 500, 1)  # type: ignore[arg-type]  # an Identity's fields
        assert Pipeline(state, 1, 1, LOG).position == Position(500, 0)


def test_a_pause_is_written_with_the_truncate_that_asked_for_it(tmp_path: Path) -> None:
    """The position that leaves a TRUNCATE behind is never on disk without the pause."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            at.commit(Truncate((COMPANIES,), cascade=False, restart_identity=False))
            await at.pipeline.tick()
            assert "companies" in at.state.paused()

    run(work)


def test_a_tick_whose_asker_is_cancelled_is_written_all_the_same(tmp_path: Path) -> None:
    """A stop cancels copies in the middle of a tick: what it took is on disk before a later one moves the position."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            at.route("companies").paused = "by the test"
            at.commit(insert(COMPANIES, "1", "a"))
            busy = threading.Event()
            before = asyncio.create_task(at.pipeline.on_file(lambda _: busy.wait(10)))
            asking = asyncio.create_task(at.pipeline.after_tick(lambda _: None))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            busy.set()
            await before
            at.commit()
            await at.pipeline.tick()
            assert at.state.pending() == {"companies": 1}

    run(work)


def test_a_change_that_ends_the_daemon_comes_again(tmp_path: Path) -> None:
    """With on_drift = "fail", a tick on the way out does not leave the row of the new shape behind."""
    changed = replace(COMPANIES, columns=(*COMPANIES.columns[:1], Column("name", 23, -1, True)))

    async def work() -> None:
        async with bench(tmp_path, companies(on_drift="fail")) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            route = at.route("companies")
            route.fit(TableSight(COMPANIES, columns={"id": "1", "name": "2"}))
            before = at.pipeline.position
            with pytest.raises(SourceError, match="another type"):
                at.commit(insert(changed, "2", "5"))
            assert at.pipeline.position == before

    run(work)


def test_a_sweep_finds_rows_that_never_reached_the_crm(tmp_path: Path) -> None:
    """Rows that waited or were parked when the slot was lost, and are gone now, are neither sent nor kept."""
    crm = MemoryCrm(judge=lambda _, record: Rejected("BAD", "bad") if record.key == "parked" else None)

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            at.commit(insert(COMPANIES, "parked", "x"), insert(COMPANIES, "sent", "x"), insert(COMPANIES, "here", "x"))
            await at.settled()
            at.route("companies").paused = "by the test"
            at.commit(insert(COMPANIES, "waiting", "x"))
        with opened(tmp_path) as state:
            state.unbind()
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            copy = await at.under_way("companies")
            at.commit(update(COMPANIES, ["here", "x"], ["here", "y"]))
            await at.pipeline.copies._sweep(copy)
            await at.settled()
            assert at.crm.keys("Account") == {"here"}
            assert at.lane.rejected == 0

    run(work)


def test_a_sweep_that_nobody_was_told_of_asks_before_it_deletes_many_records(tmp_path: Path) -> None:
    """The mapping pauses and says how many; resumed they go. What a person asked for was told before."""
    crm = MemoryCrm()
    keys = [f"{number:03}" for number in range(FLOOR + 5)]

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            at.commit(*(insert(COMPANIES, key, "x") for key in keys))
            await at.settled()
        with opened(tmp_path) as state:
            state.unbind()
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            copy = await at.under_way("companies")
            with pytest.raises(Paused):
                await at.pipeline.copies._sweep(copy)
            assert f"{len(keys)} of {len(keys)} records" in (at.route("companies").paused or "")
            assert at.crm.keys("Account") == set(keys)
            at.route("companies").paused = None
            await at.pipeline.copies._sweep(copy)
            await at.settled()
            assert at.crm.keys("Account") == set()

    run(work)


def test_a_sweep_is_left_to_a_later_copy_of_all_rows(tmp_path: Path) -> None:
    """A comparison that became due meanwhile says that this copy did not meet all: it deletes nothing."""
    crm = MemoryCrm()

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "x"))
            await at.settled()
        with opened(tmp_path) as state:
            state.unbind()
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            copy = await at.under_way("companies")
            assert not await at.pipeline.copies._is_superseded(copy)
            at.pipeline.resync(at.route("companies"), "by the test")
            assert await at.pipeline.copies._is_superseded(copy)

    run(work)


def test_an_interrupted_sweep_is_done_at_the_next_start(tmp_path: Path) -> None:
    """A copy that has read all, but is not swept, goes on with what it met: what the stream brings next counts too."""
    crm = MemoryCrm()

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            at.commit(*(insert(COMPANIES, key, "x") for key in ("copied", "streamed", "later", "gone")))
            await at.settled()
        with opened(tmp_path) as state:
            state.unbind()
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            copy = await at.under_way("companies")
            at.pipeline.copies._emit(copy, [values(COMPANIES, "copied", "x")], Cursor(("copied",), 1, 4, done=True))
            at.commit(update(COMPANIES, ["streamed", "x"], ["streamed", "y"]))
            await at.pipeline.tick()
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            at.pipeline.plan_copies()
            resumed = at.pipeline.copies.of("companies")
            assert resumed is not None
            assert (resumed.entry.read, resumed.entry.started, resumed.met) == (True, True, set())
            at.commit(update(COMPANIES, ["later", "x"], ["later", "y"]))
            await at.run_copies()
            await at.settled()
            assert at.crm.keys("Account") == {"copied", "streamed", "later"}
            assert at.state.copied("companies")
            assert not at.state.met(resumed.entry.id)

    run(work)


def test_a_copied_row_is_written_down_before_it_is_sent(tmp_path: Path) -> None:
    """After a crash in a request, a row that is back to what the ledger knows is sent all the same."""
    crm = MemoryCrm()
    crashed = tmp_path / "crashed"
    crashed.mkdir()

    def crash(*_: object) -> None:
        with (
            contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as now,
            contextlib.closing(sqlite3.connect(crashed / "state.db")) as then,
        ):
            now.backup(then)

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "old"))
            await at.settled()
            copy = await at.under_way("companies")
            await at.pipeline.tick()
            crm.judge = crash
            at.pipeline.copies._emit(copy, [values(COMPANIES, "1", "new")], Cursor(("1",), 1, 1))
            await at.settled()
            crm.judge = lambda *_: None
        async with bench(crashed, companies(backfill=True), crm=crm) as at:
            at.commit(update(COMPANIES, ["1", "new"], ["1", "old"]))
            await at.settled()
            assert crm.records["Account", "1"]["Name"] == "old"

    run(work)


def test_a_paused_mapping_lets_other_copies_go_first(tmp_path: Path) -> None:
    """Its copy stops between two chunks, reads nothing, and goes on at its cursor when the pause is lifted."""

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), people(backfill=True)) as at:
            at.pipeline.plan_copies()
            first, second = at.pipeline.copies.of("companies"), at.pipeline.copies.of("people")
            assert first is not None
            assert second is not None
            first.route.paused = "by the test"
            with pytest.raises(Paused):
                await at.pipeline.copies._room(first)
            for copy in (first, second):
                copy.entry, copy.dirty = replace(copy.entry, read=True), True  # there is nothing left to read
            await at.pipeline.tick()
            await at.run_copies()
            assert at.state.copied("people")
            assert not at.state.copied("companies")
            first.route.paused = None
            await at.run_copies()
            assert at.state.copied("companies")

    run(work)


def test_a_comparison_that_is_due_is_not_given_up(tmp_path: Path) -> None:
    """Where the table cannot be read, its mapping is paused with the reason, and compared once it is resumed."""

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True)) as at:
            first = await at.under_way("companies")
            first.entry, first.dirty = replace(first.entry, read=True), True
            await at.run_copies()
            at.pipeline.resync(at.route("companies"), "by the test")
            await at.pipeline.tick()
            at.pipeline.copies.take_up([at.lane], at.state.copies())
            await at.run_copies(SourceError("permission denied", hint="grant it"))
            await at.pipeline.tick()
            assert "permission denied; grant it" in at.state.paused()["companies"]
            (waiting,) = at.state.copies()
            assert (waiting.reason, waiting.error) == ("by the test", None)
            at.route("companies").paused = None
            assert at.pipeline.copies.pending

    run(work)


@pytest.mark.parametrize("backfill", [False, True])
def test_only_a_table_whose_rows_are_wanted_is_compared(tmp_path: Path, *, backfill: bool) -> None:
    """With backfill = false, rows that nobody asked for would be sent, and others deleted."""

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=backfill)) as at:
            at.pipeline.resync(at.route("companies"), "by the test")
            await at.pipeline.tick()
            assert bool(at.state.copies()) is backfill

    run(work)


def test_a_record_that_was_only_found_is_not_swept(tmp_path: Path) -> None:
    """A parent that the CRM held before us, and that a child of ours links to, has no row and is not ours to delete."""
    child = people(fields={"Name": "name"}, associate=[{"to": "crm.Account", "column": "company", "type": "works_at"}])
    crm = MemoryCrm(records={("Account", "theirs"): {"id": "Account-theirs"}})

    async def work() -> None:
        async with bench(tmp_path, companies(), child, crm=crm) as at:
            at.commit(insert(COMPANIES, "gone", "x"), insert(PEOPLE, "7", "x", "theirs"))
            await at.settled()
            await at.pipeline.tick()
            at.state.request_resync("companies", "by the test", 0.0)
            copy = await at.under_way("companies")
            await at.pipeline.copies._sweep(copy)
            await at.settled()
            assert at.crm.keys("Account") == {"theirs"}

    run(work)


def test_a_mapping_that_comes_back_is_copied_and_swept_anew(tmp_path: Path) -> None:
    """While a mapping was out of the config its changes went unseen; it does not go on as if nothing had been."""

    async def work() -> None:
        both = companies(backfill=True), people()
        async with bench(tmp_path, *both) as at:
            copy = await at.under_way("companies")
            at.state.finish_copy(copy.entry, 1.0)
        async with bench(tmp_path, *both) as at:
            at.pipeline.plan_copies()
            assert at.pipeline.copies.of("companies") is None
        async with bench(tmp_path, people()) as at:
            at.pipeline.plan_copies()
        async with bench(tmp_path, *both) as at:
            assert (await at.under_way("companies")).entry.sweep

    run(work)


def test_held_rows_do_not_hold_up_the_copy_that_they_wait_for(tmp_path: Path) -> None:
    """Children of parents that are still to be copied may be many; the copy goes on beside them."""

    async def work() -> None:
        async with bench(tmp_path, companies(backfill=True), people()) as at:
            copy = await at.under_way("companies")
            at.commit(*[insert(PEOPLE, str(number), "x", "1") for number in range(COPY_ROOM + 1)])
            async with asyncio.timeout(30):
                await at.pipeline.copies._room(copy)
            assert at.lane.pending > COPY_ROOM

    run(work)


def test_links_under_way_are_not_dropped_with_settled_ones(tmp_path: Path) -> None:
    """A tick that writes an older settlement down keeps the note of an association that is being made."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            books = at.lane.books
            books.link_sent("companies", "1", "slot", "first")
            books.links_settled("companies", "1")
            books.link_sent("companies", "1", "slot", "second")
            at.state.announce("crm", START, [("companies", "1", "slot", "second")])
            books.ledger["companies", "1"] = Known("id", (), b"", {}, START, 0.0)
            await at.pipeline.tick()
            assert ("1", "slot", "second") in at.state.sent_links("companies")

    run(work)


def test_a_locked_state_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    """Not only ticks can meet a full disk or a lock: every write says so in our own words."""
    with opened(tmp_path) as state, contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as other:
        state._db.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="cannot write the state file"):
            state.announce("crm", START)


def test_a_row_in_part_is_not_made_where_its_record_may_be_gone(tmp_path: Path) -> None:
    """The answer to a delete was lost, and the row comes back without its large value: it is not made in part."""
    crm = MemoryCrm()

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            crm.judge, crm.writes_before_judging = lambda *_: Retry("UNANSWERED", "nothing said"), True
            at.commit(delete(COMPANIES, "1", "a"))
            await eventually_async(lambda: not at.crm.keys("Account"))
            at.commit(Change(ChangeKind.INSERT, COMPANIES, join_tuple([b"1", ABSENT])))
            crm.judge = lambda *_: None
            await at.settled()
            assert at.crm.keys("Account") == set()
            assert at.lane.rejected == 1
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            assert at.crm.records["Account", "1"]["Name"] == "a"

    run(work)


def test_a_child_whose_parent_loses_its_place_is_looked_at(tmp_path: Path) -> None:
    """After a crash two rows had key 1, and neither has it now: a child that refers to it waits for nobody."""

    async def work() -> None:
        async with bench(tmp_path, companies(), people()) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.lane._replay = Position(1 << 40, 0)
            asked = threading.Event()
            find = at.crm.find

            def slow(target: Target, keys: Sequence[str]) -> dict[str, str]:
                asked.wait(10)
                return find(target, keys)

            at.crm.find = slow  # type: ignore[method-assign]  # so that the child comes to wait meanwhile
            at.commit(
                update(COMPANIES, ["1", "a"], ["2", "a"]),
                insert(COMPANIES, "1", "b"),
                update(COMPANIES, ["1", "b"], ["3", "b"]),
                insert(PEOPLE, "7", "x", "1"),
            )
            at.crm.records["Account", "2"] = at.crm.records.pop(("Account", "1"))
            at.crm.records["Account", "3"] = {"id": "Account-b", "Name": "b"}
            at.lane._replay = START
            at.lane.nudge()
            await eventually_async(lambda: at.route("people").backlog.held)
            asked.set()
            await at.settled()
            assert at.crm.keys("Account") == {"2", "3"}

    run(work)


class Refusing(RowFilter):
    """A filter that no row meets; the server is out of reach at the first question."""

    def __init__(self) -> None:
        self.asked = 0

    async def judge(self, relation: Relation, images: Mapping[str, bytes]) -> dict[str, bool | Rejected]:
        del relation
        self.asked += 1
        if self.asked == 1:
            raise SourceUnavailableError("gone")
        return dict.fromkeys(images, False)

    async def close(self) -> None:
        """There is no connection."""


def test_records_of_others_stay_whatever_where_leaves_out(tmp_path: Path) -> None:
    """A row outside the condition, of which the CRM has a record that we did not write, is none of our business."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            route = at.route("companies")
            route.row_filter, route.whole = Refusing(), True
            at.crm.records["Account", "1"] = {"id": "theirs-1"}
            at.crm.records["Account", "2"] = {"id": "theirs-2"}
            at.commit(update(COMPANIES, ["1", "a"], ["1", "b"]), delete(COMPANIES, "2", "a"))
            await at.settled()
            assert at.crm.keys("Account") == {"1", "2"}

    run(work)


def test_a_ledger_beside_rows_that_wait_does_not_fill_the_journal(tmp_path: Path) -> None:
    """With a row that waits for long, what the ledger takes is measured, and does not stop reading."""

    async def work() -> None:
        async with bench(tmp_path, companies(), people()) as at:
            at.pipeline.max_journal = 1 << 20
            at.route("people").paused = "for long"
            at.commit(insert(PEOPLE, "7", "x", None))
            at.commit(*[insert(COMPANIES, str(number), "a" * 100) for number in range(20_000)])
            await eventually_async(lambda: not len(at.route("companies").backlog))
            await at.pipeline.tick()
            at.pipeline._file_size = await at.pipeline.on_file(State.size)
            assert at.pipeline._file_size > at.pipeline.max_journal
            await at.pipeline._tell_rest_apart()
            at.pipeline._watch_budgets()
            assert not at.pipeline.full

    run(work)
