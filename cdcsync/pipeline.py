"""Reader, lanes and ticker: changes flow from the source into every lane, and an LSN flows back.

The source calls ``receive`` with what it drained from the socket. A change's identity is its ``Position``; what comes
again after a reconnect or a restart is recognised by it and dropped, so each change is fed exactly once into what the
state file holds. A tick writes everything that changed, and only then confirms the LSN to PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import structlog

from cdcsync.clock import Clock, SystemClock
from cdcsync.coalesce import Event, complete_from_old, is_partial
from cdcsync.copies import Copies
from cdcsync.drift import Drift
from cdcsync.entries import DriftMark, Pause, PausedBy, Seen, Tick
from cdcsync.lane import Lane
from cdcsync.model import (
    Begin,
    Change,
    ChangeKind,
    Commit,
    LogicalMessage,
    Position,
    Progress,
    Relation,
    Truncate,
)
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.state_pauses import Standing
from cdcsync.wal.catalog import Ancestor
from cdcsync.wal.sight import TableSight

T = TypeVar("T")
StreamEvent: TypeAlias = Begin | Change | Truncate | Commit | LogicalMessage | Progress

TICK_SECONDS = 1.0
FENCE_SECONDS = 5.0
"""With a mirror: no request starts later than this after the mirror was last seen to be this daemon's."""
RESUME_SHARE = 0.8
"""Of the budgets for memory and disk: below it, reading goes on."""
MEASURE_SECONDS = 60.0
"""How often the rows in the journal are measured, at most."""
MAX_UNWRITTEN = 50_000
"""Journal entries that a tick may find: it holds all of them in memory once more. With as many, it comes at once."""


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


@dataclass(slots=True)
class Pipeline:
    """Feeds the lanes and keeps the state file in step with them."""

    state: State
    max_memory: int
    max_journal: int
    log: structlog.typing.FilteringBoundLogger
    clock: Clock = field(default_factory=SystemClock)
    lanes: list[Lane] = field(default_factory=list)
    position: Position = field(init=False)
    received_lsn: int = field(init=False)
    """Everything that was committed before it has been fed."""
    durable_lsn: int = field(init=False)
    reader: Reader | None = None
    partitions: Mapping[int, tuple[Ancestor, ...]] = field(default_factory=dict)
    """The source's: oid of a partition → the partitioned tables above it, which have its rows too."""
    copies: Copies = field(init=False)
    _served: dict[tuple[int, tuple[Ancestor, ...]], list[tuple[Lane, Route]]] = field(default_factory=dict)
    """Mappings by the oid of a table and those that it is a part of."""
    _transaction: _Transaction = field(default_factory=_Transaction)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last_write: asyncio.Future[None] | None = None
    _waiters: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)
    _jobs: int = 0
    _full: bool = False
    _held: bool = False
    """Whether the reader is paused: until what is unwritten is written, or until there is room."""
    _tick_due: asyncio.Event = field(default_factory=asyncio.Event)
    _file_size: int = 0
    _file_rest: int = field(init=False)
    """What the state file takes beside the rows that wait, above all the ledger; as of when none did."""
    _measure_at: float = 0.0
    _resyncs: list[tuple[str, str, float]] = field(default_factory=list)
    """Comparisons that are not written down yet: mapping, reason, Unix time."""
    _rereads: dict[str, list[str]] = field(default_factory=dict)
    """Keys of rows that are to be read from their tables, by mapping, not written down yet."""
    _requested: int = 0
    _taken_up: int = 0
    """Of the comparisons requested, those that the copies know of."""
    _file_thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="state"))
    standing: Standing = field(init=False)
    """The pauses in force, as of the last look at the state file."""
    _pauses: dict[str, Pause] = field(default_factory=dict)
    """Pauses that are not written down yet, by mapping."""
    _drifted: list[tuple[str, DriftMark]] = field(default_factory=list)
    """Drift marks that are not written down yet."""
    _seen: dict[str, Seen] = field(default_factory=dict)
    """Tables as they fit, not written down yet, by mapping."""
    _told: set[tuple[str, str]] = field(default_factory=set)
    """Drift that was logged: mapping, reason."""
    _out_of_balance: set[str] = field(default_factory=set)
    _owned: float = field(init=False)
    """When the state file and its mirror were last seen to be this daemon's."""
    _connected: bool = False

    def __post_init__(self) -> None:
        self._owned = self.clock.boottime()
        checkpoint = self.state.checkpoint()
        # A slot that is new has no last change; all that ended before its start counts as fed.
        self.position = max(checkpoint.position, Position(checkpoint.durable_lsn, 0))
        self.received_lsn = self.durable_lsn = checkpoint.durable_lsn
        self._file_rest = max(0, self.state.size() - self.state.journal_size())
        self._jobs = max((job.id for job in self.state.jobs()), default=0)
        self.copies = Copies(self, self.log)
        self.standing = self.state.pauses.standing()

    def add(self, lane: Lane) -> None:
        """Add a lane, with what the state file holds of it."""
        lane.restore(self.state)
        lane.rejects.retries.heed(self.state.parked.requests())
        for route in lane.routes:
            route.copied_to = self.state.copied_to(route.name)
        self.lanes.append(lane)
        self._check_balance()

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
        self._connected = True

    def _change(self, change: Change) -> None:
        transaction = self._transaction
        transaction.ordinal += 1
        position = Position(transaction.commit_lsn, transaction.ordinal)
        if position <= self.position:
            return
        # Judged first: drift may end the daemon, and a change that was not fed must not be left behind.
        served = [
            (lane, route) for lane, route in self._served_by(change.relation) if self._reads(route, change.relation)
        ]
        self.position = position
        for lane, route in served:
            self._feed(lane, route, change, position)

    def _reads(self, route: Route, relation: Relation) -> bool:
        """Whether rows of this shape mean something to a mapping; it is judged once."""
        if route.passes_over:
            return False
        if self._is_older(route):
            return self._reads_older(route, relation)
        if (drift := route.drift(relation)) is not None:
            self.drift(route, drift)
        return not route.passes_over

    def _is_older(self, route: Route) -> bool:
        """Whether what is received now was written before the table was seen to fit: its shape may be an older one."""
        return route.seen is not None and self._transaction.commit_lsn < route.seen.lsn

    def _reads_older(self, route: Route, relation: Relation) -> bool:
        """Read what was written before the table became what it is; compare it where that is not possible."""
        if route.reads_older(relation):
            return True
        reason = "rows were written in a shape that the mapping cannot read"
        if (route.name, reason) not in self._told:
            self._told.add((route.name, reason))
            self.resync(route, reason)
        return False

    def _served_by(self, relation: Relation) -> list[tuple[Lane, Route]]:
        """Return the mappings of a table, by whatever name, and of the partitioned tables that it is part of."""
        above = self.partitions.get(relation.oid, ())
        found = self._served.get((relation.oid, above))
        if found is None:
            found = self._served[relation.oid, above] = [
                (lane, route)
                for lane in self.lanes
                for route in lane.routes
                if route.is_of(relation.oid, relation.table) or any(route.is_of(*one) for one in above)
            ]
        return found

    def _feed(self, lane: Lane, route: Route, change: Change, position: Position) -> None:
        mapper = route.mapper(change.relation)
        old_key = mapper.key_of(change.old) if change.old is not None else None
        key = old_key
        partial = False
        if change.new is not None:
            image = complete_from_old(change)
            key = mapper.key_of(image)
            partial = is_partial(image)
        shape = None if self._is_older(route) else change.relation
        self.copies.note(route, shape, (key, old_key), self._transaction.xid, partial=partial)
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
        truncated = {route.name: (route, one) for one in truncate.relations for _, route in self._served_by(one)}
        for route, relation in truncated.values():
            self.copies.note_truncate(route, self._transaction.xid)
            if route.config.on_truncate == "pause":
                self.pause(route, f"{relation.table} was truncated; the CRM still holds its records")
            elif route.config.on_truncate == "delete":
                self._compare(route, f"{relation.table} was truncated")
            self.log.warning("table truncated", map=route.name, table=relation.table, policy=route.config.on_truncate)

    # --- a table that changes

    def drift(self, route: Route, drift: Drift) -> None:
        """Act on a change of a mapping's table as the mapping says. Raises SourceError where that is to fail."""
        if route.paused and (route.drift_mark == "passed over" or (route.drift_mark and drift.readable)):
            return  # that is why it is paused, or something worse
        policy = route.config.on_drift
        if (route.name, drift.reason) not in self._told:
            self._told.add((route.name, drift.reason))
            self.log.warning("the table has changed", map=route.name, reason=drift.reason, policy=policy)
        if policy == "fail":
            raise drift.error(route.name)
        if policy == "warn" and drift.readable:
            return
        route.drift_mark = "kept" if drift.readable else "passed over"
        self._drifted.append((route.name, route.drift_mark))
        self.pause(route, f"{drift.reason}; {drift.hint}")

    def adopt(self, route: Route, sight: TableSight, compare: str | None) -> None:
        """Take a table, as it is, for the mapping's; ``compare`` is why the CRM has to be compared with all of it."""
        # Rows count from here on; what comes before the copy has begun, it would not see otherwise.
        route.drift_mark = None
        self._drifted = [entry for entry in self._drifted if entry[0] != route.name]
        seen = route.fit(sight)
        self._served.clear()
        if compare is not None:
            self.resync(route, compare)
        self._seen[route.name] = seen

    def pause(self, route: Route, reason: str, by: PausedBy = "daemon") -> None:
        """Pause a mapping until a person lets it go on; its changes are kept."""
        route.paused = reason
        self._pauses[route.name] = Pause(reason, self.clock.time(), by)

    def pause_of(self, route: Route) -> Pause | None:
        """Return the pause of a mapping itself; that of its CRM is another matter."""
        return self._pauses.get(route.name) or self.standing.maps.get(route.name)

    def _advance(self, position: Position, lsn: int) -> None:
        self.position = max(self.position, position)
        self.received_lsn = max(self.received_lsn, lsn)
        due = [waiter for waiter in self._waiters if waiter[0] <= self.received_lsn]
        for waiter in due:
            self._waiters.remove(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)

    def _watch_budgets(self) -> None:
        """Leave the stream unread while pending rows take more memory, or more of the state file, than they may.

        As well while much is unwritten: the tick that makes room for more comes at once.
        """
        disk = self._file_size - self._file_rest
        share = max(sum(lane.size for lane in self.lanes) / self.max_memory, disk / self.max_journal)
        # A lane that has yet to catch up sends nothing, and can only do so by reading.
        if not self._full and share > 1 and all(lane.caught_up for lane in self.lanes):
            self._full = True
            self.log.warning("reading paused: pending rows fill the budget", state_file=self._file_size)
        elif self._full and share < RESUME_SHARE:
            self._full = False
            self.log.info("reading goes on")
        self._hold_reader(hold=self._full or sum(lane.unwritten for lane in self.lanes) > MAX_UNWRITTEN)

    def _hold_reader(self, *, hold: bool) -> None:
        if self.reader is None or hold == self._held:
            return
        self._held = hold
        if hold:
            self.reader.pause()
            self._tick_due.set()
        else:
            self.reader.resume()

    # --- copies

    def plan_copies(self) -> None:
        """Take up the copies that are to be done, before the stream starts: those under way must miss nothing of it."""
        now = self.clock.time()
        routes = [route for lane in self.lanes for route in lane.routes]
        for name in self.state.retire([route.name for route in routes]):
            self.log.info("mapping not configured any more", map=name)
        for name, reason, at in self._resyncs:
            self.state.request_resync(name, reason, at)
        self._resyncs = []
        for route in routes:
            if route.config.backfill:
                self.state.want_copy(route.name, now)
        self.copies.take_up(self.lanes, self.state.copies())
        self._taken_up = self._requested

    @property
    def copying(self) -> bool:
        """Whether there is a copy, or one that was asked for just now, that nothing but time keeps from its end."""
        return self.comparing or self.copies.pending

    @property
    def comparing(self) -> bool:
        """Whether a comparison was asked for just now that the copies do not know of yet."""
        return self._requested > self._taken_up

    @property
    def retrying(self) -> bool:
        """Whether parked rows are to be tried again now, or commands have asked something about them."""
        return any(lane.rejects.retries.pending for lane in self.lanes)

    def resync(self, route: Route, reason: str) -> None:
        """Let a mapping's rows be copied again, because changes of them may have been missed; ``reason`` says why.

        The request is written with the next tick, that is, with the position up to which everything was fed. Where the
        config does not want the table's rows copied, a person has to.
        """
        if route.config.backfill:
            self._compare(route, reason)
            return
        hint = f"backfill = false: it is not compared unless you run cdcsync resync {route.name}"
        self.log.error("changes may be missing in the CRM", map=route.name, reason=reason, hint=hint)

    def _compare(self, route: Route, reason: str) -> None:
        self._resyncs.append((route.name, reason, self.clock.time()))
        self._requested += 1

    def reread(self, route: Route, key: str) -> None:
        """Let a row be read from its table, if the config allows that: the stream did not carry all of it."""
        if not route.config.backfill:
            return
        if route.name not in self._rereads:
            self._rereads[route.name] = []
            self._requested += 1
        self._rereads[route.name].append(key)

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

    # --- the state file

    async def on_file(self, work: Callable[[State], T]) -> T:
        """Run ``work`` on the state file, in the file's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._file_thread, work, self.state)

    def next_job(self) -> int:
        """Return a number for a new bulk job."""
        self._jobs += 1
        return self._jobs

    async def run_ticks(self) -> None:
        """Tick once a second, and as soon as there is much to write down."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._tick_due.wait()
            self._tick_due.clear()
            await self._confirm_ownership()
            requested = self._requested
            await self.tick()
            for lane in self.lanes:
                await lane.spill.keep_within(self.max_memory / len(self.lanes))
                await lane.deletes.retell()
            if self.reader is not None and not all(lane.caught_up for lane in self.lanes):
                self.reader.request_progress()
            await self._apply_pauses()
            await self._look_at_rejects()
            self.copies.take_up(self.lanes, await self.on_file(State.copies))
            self._taken_up = requested
            self._file_size = await self.on_file(State.size)
            await self._tell_rest_apart()
            self._watch_budgets()

    async def _look_at_rejects(self) -> None:
        """Let parked rows be tried again that are due, and do what commands have asked for."""
        requests = await self.on_file(lambda state: state.parked.requests())
        for lane in self.lanes:
            lane.rejects.retries.heed(requests)
            await lane.rejects.retries.look()

    async def _tell_rest_apart(self) -> None:
        """See how much of the state file is not of rows that wait; to look at each of these is for when it matters."""
        if not any(lane.pending for lane in self.lanes):
            self._file_rest = self._file_size
            return
        now = self.clock.boottime()
        if self._file_size - self._file_rest > RESUME_SHARE * self.max_journal and now >= self._measure_at:
            self._file_rest = max(0, self._file_size - await self.on_file(State.journal_size))
            self._measure_at = now + MEASURE_SECONDS

    async def _confirm_ownership(self) -> None:
        """See that no other daemon has taken the state over; while that cannot be seen, nothing is sent for long."""
        asked = self.clock.boottime()
        await self.on_file(State.confirm)
        self._owned = asked

    def obstacle(self) -> str:
        """Say why no request may be sent now, empty if one may: the slot and the state have to be this daemon's.

        Who holds an old copy of the state learns from the slot that it is old, and only then may know what to send.
        """
        if not self._connected:
            return "the slot has not been read since the start"
        if self.state.mirrored and self.clock.boottime() - self._owned >= FENCE_SECONDS:
            return "the state's mirror does not answer"
        return ""

    async def tick(self) -> None:
        """Write down everything that changed, then confirm the LSN. Raises StateError when that cannot be done."""
        async with self._writing:
            await self._tick()

    async def after_tick(self, ask: Callable[[State], T]) -> T:
        """Ask the state file right after a tick, before anything else is written."""
        async with self._writing:
            await self._tick()
            return await self.on_file(ask)

    async def _tick(self) -> None:
        if self._last_write is not None:  # whoever asked for it may be gone: nothing is written behind one that failed
            await asyncio.shield(self._last_write)
        self._check_balance()  # of what is to be written, at the moment at which it is taken
        if self.received_lsn == self.durable_lsn and not self._dirty:
            return
        tick = Tick(self.received_lsn, self.position, timeline=self.reader.timeline if self.reader else None)
        for lane in self.lanes:
            lane.collect(tick)
        copied = self.copies.collect(tick)
        tick.pauses.extend(self._pauses.items())
        tick.resyncs, self._resyncs = self._resyncs, []
        tick.rereads = [(name, keys, self.clock.time()) for name, keys in self._rereads.items()]
        self._rereads = {}
        tick.drifted, self._drifted = self._drifted, []
        tick.seen, self._seen = list(self._seen.items()), {}
        self._last_write = asyncio.ensure_future(self._write(tick, copied))
        # What was taken is nowhere else: a stop that cancels who asked (a copy, say) must not cancel the writing.
        await asyncio.shield(self._last_write)

    async def _write(self, tick: Tick, copied: Sequence[tuple[Route, int]]) -> None:
        await self.on_file(lambda state: state.write(tick))
        self.standing = Standing({**self.standing.maps, **dict(tick.pauses)}, self.standing.crms)
        for name, pause in tick.pauses:
            if self._pauses[name] is pause:  # else it was told anew meanwhile
                del self._pauses[name]
        for lane in self.lanes:
            lane.books.written(tick)
        self.copies.written(copied)
        self.durable_lsn = tick.durable_lsn
        if self.reader is not None:
            self.reader.confirm(self.durable_lsn)

    @property
    def full(self) -> bool:
        """Whether pending rows fill the budget for memory or disk."""
        return self._full

    @property
    def _dirty(self) -> bool:
        mine = self._pauses, self._resyncs, self._rereads, self._drifted, self._seen
        return any(mine) or self.copies.dirty or any(lane.dirty for lane in self.lanes)

    async def _apply_pauses(self) -> None:
        """Follow the pauses that commands have set or lifted."""
        self.standing = await self.on_file(lambda state: state.pauses.standing())
        for lane in self.lanes:
            for route in lane.routes:
                if route.name in self._pauses:
                    continue
                reason = self.standing.of(route.name, lane.name)
                if route.paused and reason is None:
                    lane.nudge()
                route.paused = reason

    def _check_balance(self) -> None:
        for lane in self.lanes:
            missing = lane.balance()
            if missing and lane.name not in self._out_of_balance:
                self._out_of_balance.add(lane.name)
                self.log.error("the books do not balance", crm=lane.name, unaccounted=missing)

    def close(self) -> None:
        """Wait until the file's thread has ended: only then may the state file be closed."""
        self._file_thread.shutdown(wait=True, cancel_futures=True)
