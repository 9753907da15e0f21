"""Reader, lanes and ticker: changes flow from the source into every lane, and an LSN flows back.

The source calls ``receive`` with what it drained from the socket. A change's identity is its ``Position``; what comes
again after a reconnect or a restart is recognised by it and dropped, so each change is fed exactly once into what the
state file holds. A tick writes everything that changed, and only then confirms the LSN to PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import structlog

from cdcsync.coalesce import Event, complete_from_old
from cdcsync.entries import BackfillState, Tick
from cdcsync.lane import Lane
from cdcsync.model import (
    ABSENT,
    Begin,
    Change,
    ChangeKind,
    Commit,
    LogicalMessage,
    Position,
    Progress,
    Truncate,
)
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.wal.decode import split_tuple
from cdcsync.wal.snapshot import Backfill, Connect, Cursor

T = TypeVar("T")
StreamEvent: TypeAlias = Begin | Change | Truncate | Commit | LogicalMessage | Progress

TICK_SECONDS = 1.0
COPY_ROOM = 20_000
"""Rows that a lane may have pending before a backfill waits."""
RESUME_SHARE = 0.8
"""Of the budgets for memory and disk: below it, reading goes on."""


class Reader(Protocol):
    """What the pipeline needs of ``wal.source.Source``."""

    timeline: int | None
    """The server's timeline, on which everything so far was received."""

    def confirm(self, lsn: int) -> None:
        """Report an LSN as durable."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Go on reading."""

    def request_progress(self) -> None:
        """Ask the server how far it is."""


@dataclass(slots=True)
class _Transaction:
    """The transaction that is being received."""

    commit_lsn: int = 0
    xid: int = 0
    time: float = 0.0
    ordinal: int = 0
    open: bool = False


@dataclass(slots=True, eq=False)
class Copy:
    """A backfill under way. ``seen`` are the keys it met (or the stream did), where it has to sweep at its end."""

    lane: Lane
    route: Route
    backfill: Backfill
    seen: set[str] | None = None

    def key_of(self, row: bytes) -> str | None:
        """Return the external key of a row that was read in the table's present shape."""
        return self.route.mapper(self.backfill.relation).key_of(row)


@dataclass(slots=True)
class Pipeline:
    """Feeds the lanes and keeps the state file in step with them."""

    state: State
    max_memory: int
    max_journal: int
    log: structlog.typing.FilteringBoundLogger
    lanes: list[Lane] = field(default_factory=list)
    position: Position = field(init=False)
    received_lsn: int = field(init=False)
    """Everything that was committed before it has been fed."""
    durable_lsn: int = field(init=False)
    reader: Reader | None = None
    copies: dict[str, Copy] = field(default_factory=dict)
    _routes: dict[str, list[tuple[Lane, Route]]] = field(default_factory=dict)
    _transaction: _Transaction = field(default_factory=_Transaction)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _waiters: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)
    _jobs: int = 0
    _full: bool = False
    _file_size: int = 0
    _unwritten_backfills: dict[str, BackfillState] = field(default_factory=dict)
    _file_thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="state"))
    _pauses: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Pauses that are not written down yet: mapping → reason, Unix time."""
    _out_of_balance: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        checkpoint = self.state.checkpoint()
        # A slot that is new has no last change; all that ended before its start counts as fed.
        self.position = max(checkpoint.position, Position(checkpoint.durable_lsn, 0))
        self.received_lsn = self.durable_lsn = checkpoint.durable_lsn
        self._jobs = max((job.id for job in self.state.jobs()), default=0)

    def add(self, lane: Lane) -> None:
        """Add a lane, with what the state file holds of it."""
        lane.restore(self.state)
        self.lanes.append(lane)
        for route in lane.routes:
            self._routes.setdefault(route.config.table, []).append((lane, route))

    @property
    def touched(self) -> int:
        """How far changes were taken: all of them were committed before it."""
        return max(self.durable_lsn, self.position.commit_lsn + (self.position.ordinal > 0))

    # --- what the source delivers

    def receive(self, events: Sequence[StreamEvent]) -> None:
        """Take what was drained from the stream, in order."""
        behind = [lane for lane in self.lanes if not lane.caught_up]
        for event in events:
            if isinstance(event, Change):
                self._change(event)
            elif isinstance(event, Begin):
                self._transaction = _Transaction(event.commit_lsn, event.xid, event.commit_time.timestamp(), open=True)
            elif isinstance(event, Commit):
                self._transaction.open = False
                self._advance(Position(event.commit_lsn, self._transaction.ordinal + 1), event.end_lsn)
            elif isinstance(event, Progress):
                self._advance(Position(event.lsn, 0), event.lsn)
            elif isinstance(event, Truncate):
                self._truncate(event)
        for lane in behind:
            lane.nudge()
        self._watch_budgets()

    def connected_anew(self) -> None:
        """Forget the transaction under way: the stream starts again behind the last commit that was confirmed."""
        self._transaction = _Transaction()

    def _change(self, change: Change) -> None:
        transaction = self._transaction
        transaction.ordinal += 1
        position = Position(transaction.commit_lsn, transaction.ordinal)
        if position <= self.position:
            return
        self.position = position
        for lane, route in self._routes.get(change.relation.table, ()):
            self._feed(lane, route, change, position)

    def _feed(self, lane: Lane, route: Route, change: Change, position: Position) -> None:
        mapper = route.mapper(change.relation)
        old_key = mapper.key_of(change.old) if change.old is not None else None
        key = old_key
        partial = False
        if change.new is not None:
            image = complete_from_old(change)
            key = mapper.key_of(image)
            partial = b"u" in image and ABSENT in split_tuple(image)
        copy = self.copies.get(route.name)
        if copy is not None:
            copy.backfill.relation = change.relation
            for touched in {key, old_key} - {None}:
                copy.backfill.note(str(touched), self._transaction.xid, partial=partial)
                if copy.seen is not None:
                    copy.seen.add(str(touched))
        if key is None and old_key is not None:  # the row has lost its key: to the CRM it is gone
            change, key = Change(ChangeKind.DELETE, change.relation, None, change.old), old_key
        if key is None:
            self.log.warning("row without a key", map=route.name, table=change.relation.table)
            return
        lane.feed(route, Event(change, key, old_key, position, self._transaction.time))

    def _truncate(self, truncate: Truncate) -> None:
        self._transaction.ordinal += 1
        position = Position(self._transaction.commit_lsn, self._transaction.ordinal)
        if position <= self.position:
            return
        self.position = position
        for relation in truncate.relations:
            for _, route in self._routes.get(relation.table, ()):
                copy = self.copies.get(route.name)
                if copy is not None:
                    copy.backfill.note_truncate(self._transaction.xid)
                if route.config.on_truncate == "pause":
                    route.paused = f"{relation.table} was truncated; the CRM still holds its records"
                    self._pauses[route.name] = route.paused, time.time()
                self.log.warning("table truncated", map=route.name, policy=route.config.on_truncate)

    def _advance(self, position: Position, lsn: int) -> None:
        self.position = max(self.position, position)
        self.received_lsn = max(self.received_lsn, lsn)
        due = [waiter for waiter in self._waiters if waiter[0] <= self.received_lsn]
        for waiter in due:
            self._waiters.remove(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)

    def _watch_budgets(self) -> None:
        """Leave the stream unread while pending rows take more memory, or the state file more disk, than they may."""
        if self.reader is None:
            return
        share = max(sum(lane.size for lane in self.lanes) / self.max_memory, self._file_size / self.max_journal)
        # A lane that has yet to catch up sends nothing, and can only do so by reading.
        if not self._full and share > 1 and all(lane.caught_up for lane in self.lanes):
            self._full = True
            self.reader.pause()
            self.log.warning("reading paused: pending rows fill the budget", state_file=self._file_size)
        elif self._full and share < RESUME_SHARE:
            self._full = False
            self.reader.resume()
            self.log.info("reading goes on")

    # --- backfills

    def plan_copies(self, make: Callable[[Route], Backfill]) -> None:
        """Make the backfills that are still to be done; before the stream starts, so that they miss nothing of it."""
        for name in self.state.retire([route.name for lane in self.lanes for route in lane.routes]):
            self.log.info("mapping not configured any more", map=name)
        for lane in self.lanes:
            for route in lane.routes:
                sweeping = route.config.backfill and self.state.sweeping(route.name)
                if sweeping or not route.copied:
                    seen: set[str] | None = set() if sweeping else None
                    self.copies[route.name] = Copy(lane, route, make(route), seen)

    async def copy(self, lane: Lane, connect: Connect) -> None:
        """Run a lane's backfills, parents first, one at a time."""
        for copy in [entry for entry in self.copies.values() if entry.lane is lane]:
            route = copy.route
            stored = (copy.seen is None and route.backfill) or BackfillState()
            await copy.backfill.run(
                connect,
                reached=self.reached,
                room=partial(self._room, copy),
                emit=partial(self._emit, copy),
                key_of=copy.key_of,
                cursor=Cursor(stored.cursor, stored.rows, stored.estimate),
            )
            if copy.seen is not None:
                await self._sweep(copy, copy.seen)
            del self.copies[route.name]
            self.log.info("backfill done", map=route.name, rows=copy.backfill.rows)
            lane.copied(route)

    async def _sweep(self, copy: Copy, seen: set[str]) -> None:
        """Delete the records of rows that went away while nobody listened.

        They are known to the ledger, or wait or are parked since before; neither the copy nor the stream met them.
        """
        name, relation, backlog = copy.route.name, copy.backfill.relation, copy.route.backlog
        ledger = set(await self.on_file(lambda state: state.ledger_keys(name)))
        ledger.update(key for (mapping, key), known in copy.lane.books.ledger.items() if mapping == name and known)
        unsettled = backlog.keys
        gone = [key for key in ledger | unsettled if key not in seen and (key in unsettled or not backlog.knows(key))]
        now = time.time()
        for key in gone:
            change = Change(ChangeKind.DELETE, relation, None)
            copy.lane.feed(copy.route, Event(change, key, None, self.position, now))
        await self.tick()
        await self.on_file(lambda state: state.swept(name))
        self.log.info("sweep done", map=name, deleted=len(gone))

    async def reached(self, lsn: int) -> None:
        """Wait until everything that was committed before ``lsn`` has been fed."""
        while self.received_lsn < lsn:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((lsn, future))
            if self.reader is not None:
                self.reader.request_progress()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await future
            self._waiters = [waiter for waiter in self._waiters if waiter[1] is not future]

    async def _room(self, copy: Copy) -> None:
        """Wait until few rows can go; those that are held may wait for the very rows that are still to be copied."""
        counted = [route.backlog for route in copy.lane.routes if route is copy.route or not route.paused]
        # Sinks with every answer; no event says more.
        while self._full or sum(backlog.moving for backlog in counted) > COPY_ROOM:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _emit(self, copy: Copy, rows: list[bytes], cursor: Cursor) -> None:
        route = copy.route
        relation = copy.backfill.relation
        now = time.time()
        for row in rows:
            key = copy.key_of(row)
            if key is None:
                continue
            if copy.seen is not None:
                copy.seen.add(key)
            event = Event(Change(ChangeKind.COPY, relation, row), key, None, self.position, now)
            copy.lane.feed(route, event)
        route.backfill = BackfillState(cursor.after, cursor.rows, cursor.estimate, cursor.done)
        self._unwritten_backfills[route.name] = route.backfill

    # --- the state file

    async def on_file(self, work: Callable[[State], T]) -> T:
        """Run ``work`` on the state file, in the file's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._file_thread, work, self.state)

    def next_job(self) -> int:
        """Return a number for a new bulk job."""
        self._jobs += 1
        return self._jobs

    async def run_ticks(self) -> None:
        """Tick once a second."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.tick()
            for lane in self.lanes:
                await lane.spill.keep_within(self.max_memory / len(self.lanes))
            if self.reader is not None and not all(lane.caught_up for lane in self.lanes):
                self.reader.request_progress()
            await self._apply_pauses()
            self._file_size = await self.on_file(State.size)
            self._check_balance()
            self._watch_budgets()

    async def tick(self) -> None:
        """Write down everything that changed, then confirm the LSN. Raises StateError when that cannot be done."""
        async with self._writing:
            tick = Tick(self.received_lsn, self.position, timeline=self.reader.timeline if self.reader else None)
            if self.received_lsn == self.durable_lsn and not self._dirty:
                return
            for lane in self.lanes:
                lane.collect(tick)
            tick.backfills.extend(self._unwritten_backfills.items())
            self._unwritten_backfills = {}
            tick.pauses.extend((name, *pause) for name, pause in self._pauses.items())
            await self.on_file(lambda state: state.write(tick))
            for name, *_ in tick.pauses:
                del self._pauses[name]
            for lane in self.lanes:
                lane.books.written(tick)
            self.durable_lsn = tick.durable_lsn
            if self.reader is not None:
                self.reader.confirm(self.durable_lsn)

    @property
    def _dirty(self) -> bool:
        return bool(self._unwritten_backfills or self._pauses) or any(lane.dirty for lane in self.lanes)

    async def _apply_pauses(self) -> None:
        """Follow the pauses that commands have set or lifted."""
        paused = await self.on_file(lambda state: state.paused())
        for lane in self.lanes:
            for route in lane.routes:
                if route.name in self._pauses:
                    continue
                if route.paused and route.name not in paused:
                    lane.nudge()
                route.paused = paused.get(route.name)

    def _check_balance(self) -> None:
        for lane in self.lanes:
            missing = lane.balance()
            if missing and lane.name not in self._out_of_balance:
                self._out_of_balance.add(lane.name)
                self.log.error("the books do not balance", crm=lane.name, unaccounted=missing)

    def close(self) -> None:
        """Wait until the file's thread has ended: only then may the state file be closed."""
        self._file_thread.shutdown(wait=True, cancel_futures=True)
