"""One CRM's life: its mappings' rows are taken, planned, sent and settled here, within its limits.

A lane never makes the reader wait, and nothing flows back from it but what the next tick writes. Several batches are
under way at once, no two with a common key. Where a row stands is always one of: waiting or held or in flight (its
``Backlog`` knows), parked (rejected), or settled (the ledger knows).

* Before anything is sent, the *horizon* is written down: the position up to which changes may have reached the CRM.
  After a crash nothing is sent until the stream has come past it again, and everything up to it is ``uncertain``.
* A request that failed as a whole makes its rows uncertain and ready again; the lane backs off, for ever, visibly.
* An answer per record settles the row: applied (ledger), rejected (parked), or ready again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import structlog

from cdcsync.apply.base import Destination
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.permit import Permit
from cdcsync.apply.sizing import BatchSizes
from cdcsync.apply.turns import WEIGHTS, Priority
from cdcsync.backlog import IN_BATCH
from cdcsync.backoff import QUICK, Backoff
from cdcsync.books import Books
from cdcsync.clock import Clock
from cdcsync.coalesce import Event, PendingRow
from cdcsync.deferral import Deferral
from cdcsync.delete_guard import DeleteGuard
from cdcsync.entries import Known, Pause, PausedBy, Tick
from cdcsync.errors import (
    CredentialsError,
    DestinationError,
    FatalError,
    RateLimitedError,
    SourceUnavailableError,
    TransientError,
)
from cdcsync.jobs import JobRunner
from cdcsync.model import (
    START,
    Applied,
    Batch,
    Missing,
    Op,
    Outcome,
    Position,
    Rejected,
    Relation,
    Retry,
)
from cdcsync.parents import Parents
from cdcsync.plan import Draft, Facts, Plan, asks_for, decide, map_rows, slot
from cdcsync.rejects import Rejects
from cdcsync.route import Route
from cdcsync.shares import Shares
from cdcsync.spill import Spill
from cdcsync.state import State
from cdcsync.status import LaneState
from cdcsync.wal.row_filter import RowFilter

T = TypeVar("T")
Candidate: TypeAlias = tuple[str, bool]
"""A mapping's rows that wait for their turn: its name, and whether it is those that only a copy has brought."""

FATAL_BACKOFF = 60.0
"""A person has to act on a fatal answer; look once a minute whether it has happened."""
LONGEST_ROW_BACKOFF = 1_800.0
"""Seconds after which, at the latest, a row is sent again that the CRM never takes nor refuses."""

MANY_ROWS = 1_000
FOUND_OURS = Position(0, 1)
"""Position of a record that is a row's, of which nothing else is known; START is for what was only found to link to."""
FRUITLESS = 20
"""Batches, of which no row may go, that are looked at before others have their turn."""
THREAD_PREFIX = "crm-"


class Surroundings(Protocol):
    """What a lane needs of the pipeline."""

    clock: Clock

    @property
    def position(self) -> Position:
        """The stream's position: every change up to it was fed."""

    async def on_file(self, work: Callable[[State], T]) -> T:
        """Run ``work`` on the state file, in the file's thread."""

    async def tick(self) -> None:
        """Write everything down now."""

    def reread(self, route: Route, key: str) -> None:
        """Let a row be read from its table, if the config allows that."""

    def pause(self, route: Route, reason: str, by: PausedBy = "daemon") -> None:
        """Pause a mapping until a person resumes it."""

    def pause_of(self, route: Route) -> Pause | None:
        """Return the pause of a mapping itself."""

    def next_job(self) -> int:
        """Return a number for a new bulk job; no two unsettled jobs of any lane share one."""


class Lane:
    """One CRM with its mappings, parents first."""

    def __init__(
        self,
        name: str,
        destination: Destination,
        limiter: Limiter,
        routes: Sequence[Route],
        surroundings: Surroundings,
        *,
        max_wait: float,
        patient: bool = True,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.name = name
        self.destination = destination
        self.limiter = limiter
        self.routes = list(routes)
        self.books = Books(name)
        self.last_error: str | None = None
        self.last_error_code: str | None = None
        self.stopping = False
        self.unmapped = 0
        """Rows in the state file of mappings that are not configured now."""
        self.by_name = {route.name: route for route in routes}
        self.around = surroundings
        self.clock = surroundings.clock
        self._max_wait = max_wait
        self._patient = patient
        self.log = log.bind(crm=name)
        self._wake = asyncio.Event()
        self._asking: set[str] = set()
        """Mappings for which the CRM is being asked whose records are whose."""
        self._shares = Shares()
        self._opening = Backoff()
        self._opened = False
        self._attempts: dict[tuple[str, str], Backoff] = {}
        """Of rows that have to be sent again, each by itself: by mapping and key."""
        self._horizon = START
        self._replay = START
        self._threads = ThreadPoolExecutor(
            destination.limits.max_parallel + 2, thread_name_prefix=f"{THREAD_PREFIX}{name}"
        )
        self.jobs = JobRunner(self)
        self.spill = Spill(self)
        self.rejects = Rejects(self)
        self.parents = Parents(self)
        self.deferral = Deferral(self)
        self.deletes = DeleteGuard(self)
        self.sizes = BatchSizes(destination.limits.batch)

    # --- what comes in

    def restore(self, state: State) -> None:
        """Load what the state file holds of this lane. Called once, before anything is fed."""
        now = self.clock.monotonic()
        self.books.counters.update(state.counters(self.name))
        self._horizon = self._replay = state.horizon(self.name)
        self.unmapped = state.unmapped(self.name, self.by_name)
        if (pace := state.pace(self.name)) is not None:
            self.limiter.restore(pace)
        for route in self.routes:
            route.seen = state.seen(route.name)
            route.drift_mark = state.drift_mark(route.name)
            last = state.last_copy(route.name)
            route.whole, route.read = state.copied(route.name), last.rows if last is not None else 0
            route.applied = self.books.counters[f"applied:{route.name}"]
            route.backlog.restore(state.journal(route.name), now)
            coldest = next(iter(state.coldest(route.name, 1)), None)
            route.backlog.restore_cold(state.cold_keys(route.name), coldest, state.checkpoint().position)
            for key, name, crm_id in state.sent_links(route.name):
                self.books.link_sent(route.name, key, name, crm_id)
            self.rejects.restore(route, state)
        self.jobs.restore(state.jobs())

    def feed(self, route: Route, event: Event) -> None:
        """Take one change in."""
        route.backlog.feed(event, self.clock.monotonic(), uncertain=event.position <= self._replay)
        if event.old_key is not None and event.old_key != event.key:
            self.parents.pass_on(route, event.old_key, event.key)
        self.nudge()

    def nudge(self) -> None:
        """Look at the rows again (the stream moved on, a backfill ended, a pause was lifted)."""
        self._wake.set()

    def look_again(self, route: Route) -> None:
        """Look at all children of a mapping again: its backfill has ended, or none of its rows is cold any more."""
        for child in route.children:
            child.backlog.wake_all(self.clock.monotonic())
        self.nudge()

    # --- what a tick takes

    def collect(self, tick: Tick) -> None:
        """Add everything that changed since the last tick."""
        counters = self.books.counters
        for route in self.routes:
            backlog = route.backlog
            tick.journal.extend((route.name, key, job, row) for key, job, row in backlog.changed())
            counters["changes_in"] += backlog.fed
            counters["coalesced"] += backlog.fold.coalesced
            backlog.fed = backlog.fold.coalesced = 0
            counters[f"applied:{route.name}"] = route.applied
        self.books.collect(tick)
        self.jobs.collect(tick)
        if (pace := self.limiter.keep()) is not None:
            tick.paces.append((self.name, pace))

    @property
    def dirty(self) -> bool:
        """Whether a tick has anything to write for this lane."""
        return self.books.dirty or self.jobs.dirty or self.unwritten > 0 or self.limiter.unkept

    @property
    def unwritten(self) -> int:
        """Entries of the journal that the next tick has to write or drop."""
        return sum(route.backlog.dirty for route in self.routes)

    @property
    def pending(self) -> int:
        """Rows that are not settled."""
        return sum(len(route.backlog) for route in self.routes)

    @property
    def rejected(self) -> int:
        """Rows that are parked."""
        return sum(route.backlog.rejected for route in self.routes)

    @property
    def size(self) -> int:
        """Bytes of memory that the waiting rows take, roughly."""
        return sum(route.backlog.size for route in self.routes)

    def oldest(self) -> Position | None:
        """Return the position of the oldest change that is not settled."""
        return min((first for route in self.routes if (first := route.backlog.oldest()) is not None), default=None)

    def oldest_time(self) -> float | None:
        """Return the commit time (Unix) of the oldest change that is not settled."""
        return min((at for route in self.routes if (at := route.backlog.oldest_time()) is not None), default=None)

    @property
    def state(self) -> LaneState:
        """What the lane does, in the status's words."""
        if self.stopping:
            return "stopped"
        if self.blocked_for:
            return "backing off"
        if self.routes and all(route.paused for route in self.routes):
            return "paused"
        return "running"

    def totals(self) -> Counter[str]:
        """Return the counters as of now."""
        totals = Counter(self.books.counters)
        totals["changes_in"] += sum(route.backlog.fed for route in self.routes)
        totals["coalesced"] += sum(route.backlog.fold.coalesced for route in self.routes)
        return totals

    def balance(self) -> int:
        """Return the number of changes unaccounted for: 0, or an alarm."""
        totals = self.totals()
        settled = totals["applied"] + totals["suppressed"] + totals["coalesced"] + totals["discarded"]
        return totals["changes_in"] - (settled + self.rejected + self.pending + self.unmapped)

    # --- the loop

    async def run(self) -> None:
        """Open the CRM, take up its jobs again, and send until stopped; in-flight batches settle before it returns."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            for route in self.routes:
                if route.row_filter is not None:
                    stack.push_async_callback(route.row_filter.close)
            await self._open()
            self.jobs.resume(tasks)
            while not self.stopping:
                self._wake.clear()
                waiting, delay = self._look(tasks)
                if waiting is None:
                    await self._sleep(delay)
                else:
                    await self._serve(tasks, waiting)
            self.jobs.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Take no further rows; ``run`` returns when what is in flight has settled."""
        self.stopping = True
        self.limiter.close()
        self.nudge()

    async def _open(self) -> None:
        while not self.stopping and not self._opened:
            if self.state == "paused" and not self.jobs.active:  # nothing is sent, not even a login
                self._wake.clear()
                await self._sleep(None)
                continue
            try:
                with await self.limiter.acquire("high"):
                    await self._log_in()
            except DestinationError as error:
                self.failed(error, self._opening)
                while not self.stopping and (wait := self._opening.until - self.clock.monotonic()) > 0:
                    self._wake.clear()
                    await self._sleep(wait)

    async def _log_in(self) -> None:
        try:
            await self.call(self.destination.open)
        except DestinationError as error:
            self.blame(error)
            raise
        self._opened = True
        self.recovered(self._opening)

    async def _sleep(self, delay: float | None) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return

    def _look(self, tasks: asyncio.TaskGroup) -> tuple[Candidate | None, float | None]:
        """See who may go next; if nobody, in how many seconds to look again, None if only an event can change that."""
        if not self.caught_up:
            return None, None
        while True:
            first, delay = self._next()
            for route in self.routes:
                self._clear_up(tasks, route)
                self.spill.refill(route)
            # Rows that were held just now may have been all that others waited for.
            if not self.deferral.release():
                return first, delay

    def _next(self) -> tuple[Candidate | None, float | None]:
        """Return whose turn it is, and the seconds after which somebody else may have something to send."""
        now = self.clock.monotonic()
        delays: list[float] = []
        waiting: dict[Candidate, float] = {}
        for route in self.routes:
            if route.paused or not self._has_slot(route):
                continue
            for copied in (False, True):
                since = route.backlog.ready.since(copied=copied)
                wait = None if since is None else self._wait(route, since, now)
                if wait is not None and wait <= 0:
                    waiting[route.name, copied] = WEIGHTS[_class(route, copied=copied)]
                elif wait is not None:
                    delays.append(wait)
        return self._shares.first(waiting), min(delays, default=None)

    def _has_slot(self, route: Route) -> bool:
        """Whether a mapping may have one more batch under way; the last slot is for one that has none."""
        most = min(self.destination.limits.max_parallel, self.limiter.parallel)
        free = most - sum(other.active for other in self.routes)
        return free > 1 or (free == 1 and (not route.active or most == 1 or len(self.routes) == 1))

    def _wait(self, route: Route, since: float, now: float) -> float | None:
        """Return how long a mapping's rows are to wait still; None: for an event."""
        if route.backoff.until > now:
            return route.backoff.until - now
        ready, limits = route.backlog.ready, self.destination.limits
        bulk = self._by_bulk(route, len(ready))
        if bulk and (route.jobs or len(route.backlog.in_flight) >= (limits.bulk_from or 0)):
            return None  # a job is under way, or what may become one
        # A job is dear: it waits for all the rows that come in time.
        full = len(ready) >= (self._job_size() if bulk else limits.batch[Op.UPSERT])
        return 0.0 if full else since + self._max_wait - now

    def _by_bulk(self, route: Route, rows: int) -> bool:
        least = self.destination.limits.bulk_from
        return least is not None and rows >= least and not route.bulk_refused and self.limiter.has_room("bulk")

    async def _serve(self, tasks: asyncio.TaskGroup, waiting: Candidate) -> None:
        """Wait until a request may be sent, and only then take rows: meanwhile their changes fold on."""
        name, copied = waiting
        try:
            permit = await self.limiter.acquire(_class(self.by_name[name], copied=copied))
        except TransientError:  # the lane is stopping
            return
        first, _ = self._next()
        rows = [] if first is None or self.stopping else self._take(first)
        if first is None or not rows:
            with permit:  # which returns it
                return
        route = self.by_name[first[0]]
        route.active += 1
        tasks.create_task(self._carry(route, rows, permit))

    def _take(self, candidate: Candidate) -> list[PendingRow]:
        name, copied = candidate
        route, limits = self.by_name[name], self.destination.limits
        size = self._job_size() if self._by_bulk(route, len(route.backlog.ready)) else limits.batch[Op.UPSERT]
        self._shares.took(candidate, WEIGHTS[_class(route, copied=copied)])
        defer = partial(self.deferral.defer, route)
        for _ in range(FRUITLESS):
            rows = route.backlog.take(size, self.clock.monotonic(), defer=defer, room=limits.bulk_bytes, copied=copied)
            if rows or not route.backlog.ready:
                return rows
        self.nudge()  # others have their turn first
        return []

    @property
    def caught_up(self) -> bool:
        """Whether the stream is past everything that may have been sent before the last start."""
        return self.around.position >= self._replay

    def _job_size(self) -> int:
        """Return the rows that a bulk job may have: mappings that have one, or could, share what memory there is."""
        limits = self.destination.limits
        least = limits.bulk_from or 0
        sharing = sum(1 for route in self.routes if route.jobs or len(route.backlog.ready) >= least)
        return max(least, limits.bulk_records // max(1, sharing))

    # --- one batch

    async def _carry(self, route: Route, rows: list[PendingRow], permit: Permit) -> None:
        """Plan and send rows that were taken; each is settled, parked, or waiting again when this returns."""
        try:
            with permit:
                await self._carry_out(route, rows)
        finally:
            route.active -= 1
            self.nudge()

    async def _carry_out(self, route: Route, rows: list[PendingRow]) -> None:
        try:
            for op, drafts in await self._plan(route, rows):
                await self._send(route, op, drafts)
        except DestinationError as error:
            self.failed(error, route.backoff)
            self.give_back(route, rows, uncertain=False)

    async def _plan(self, route: Route, rows: list[PendingRow]) -> list[tuple[Op, list[Draft]]]:
        if route.row_filter is not None:
            rows = await self._leave_out(route, route.row_filter, rows)
        mapped, unmapped = await self.aside(rows, map_rows, route.mapper, rows)
        for row, rejected in unmapped:
            self.rejects.park(route, row, rejected)
        ready = [row for row in rows if row.deleted or row.key in mapped]
        if route.config.on_delete == "ignore":
            ready = self._drop_deletes(route, ready)
        standing = await self.parents.sort_out(route, ready, mapped)
        known = await self.known(route, asks_for(standing.going))
        facts = Facts(
            known,
            ids=standing.ids,
            later=standing.later,
            sent_links=self._sent_links(route, standing.going),
            ids_merge=self.destination.limits.ids_merge,
        )
        plan = await self.aside(rows, decide, standing.going, mapped, facts, route.shape)
        while plan.ask or plan.look:
            facts = await self._find_out(route, plan, facts)
            further = decide([*plan.ask, *(row for row, _ in plan.look)], mapped, facts, route.shape)
            plan = further.after(plan)
        for row, rejected in plan.rejected:
            self.rejects.park(route, row, rejected)
        for row in plan.nothing:
            self._suppress(route, row, gone=row.deleted and row.key in facts.asked)
        plan.drafts = await self.deletes.admit(route, plan.drafts)
        groups = [(op, [draft for draft in plan.drafts if draft.op is op]) for op in (Op.UPDATE, Op.UPSERT, Op.DELETE)]
        return [(op, drafts) for op, drafts in groups if drafts]

    async def _find_out(self, route: Route, plan: Plan, facts: Facts) -> Facts:
        """Ask the CRM what a plan has to know."""
        if plan.ask:
            found = await self.find(route, dict.fromkeys(asks_for(plan.ask)))
            asked = {*facts.asked, *(row.key for row in plan.ask)}
            facts = replace(facts, found={**facts.found, **found}, asked=asked)
        if plan.look:
            ids = {row.key: crm_id for row, crm_id in plan.look}
            names = sorted(route.shape.only_if_empty)
            held = await self.call(self.destination.read, route.target, list(dict.fromkeys(ids.values())), names)
            filled = {
                key: [name for name, value in held.get(crm_id, {}).items() if value is not None]
                for key, crm_id in ids.items()
            }
            facts = replace(facts, filled={**facts.filled, **filled})
        return facts

    async def _leave_out(self, route: Route, row_filter: RowFilter, rows: list[PendingRow]) -> list[PendingRow]:
        """Let rows that do not meet the mapping's ``where`` be deletes, as a publication's row filter would.

        What we never wrote needs no delete, once all rows that meet it were copied. Rows of which nothing can be said
        are parked.
        """
        images: defaultdict[Relation, dict[str, bytes]] = defaultdict(dict)
        for row in rows:
            if not row.deleted:
                images[row.relation][row.key] = row.image
        verdicts: dict[str, bool | Rejected] = {}
        try:
            for relation, those in images.items():
                verdicts |= await row_filter.judge(relation, those)
        except SourceUnavailableError as error:
            raise TransientError(error.message, hint=error.hint) from error
        known = await self.known(route, asks_for(rows))
        # What was only found, because a row refers to it, is not ours to delete.
        known = {key: entry for key, entry in known.items() if entry.position != START}
        staying = []
        for row in rows:
            verdict = verdicts.get(row.key, True)
            if isinstance(verdict, Rejected):
                self.rejects.park(route, row, verdict)
            elif verdict and not row.deleted:
                staying.append(row)
            elif row.uncertain or known.keys() & row.keys or (row.deleted and not route.whole):
                route.backlog.refit(row, _gone, self.clock.monotonic())
                staying.append(row)
            else:
                self._suppress(route, row)
        return staying

    async def _send(self, route: Route, op: Op, drafts: list[Draft]) -> None:
        whole = [draft for draft in drafts if not draft.unfinished]
        if self._by_bulk(route, len(whole)):
            await self.jobs.start(route, op, whole)
            # A job that goes on after a restart would not know what was left for later.
            drafts = [draft for draft in drafts if draft.unfinished]
        while drafts:
            size = self.sizes.size(route.target.object, op)
            await self._send_chunk(route, op, drafts[:size])
            drafts = drafts[size:]

    async def _send_chunk(self, route: Route, op: Op, chunk: list[Draft]) -> None:
        """Send what fits into one request, and act on the answer."""
        await self._announce(route, chunk)
        batch = Batch(route.target, op, tuple(draft.record for draft in chunk))
        try:
            outcomes = await self.call(self.destination.send, batch)
        except DestinationError as error:
            # Whatever the error says of its own request: others of the same batch may have been answered before.
            for draft in chunk:
                draft.row.doubt()
            if isinstance(error, TransientError):
                self._lighten(route, op, chunk, error)
            raise
        self.recovered(route.backoff)
        self._size_up(route, op, outcomes)
        self.settle(route, chunk, outcomes)
        self.log.info("sent", map=route.name, op=op.value, records=len(chunk), **_tally(outcomes))

    def _lighten(self, route: Route, op: Op, chunk: list[Draft], error: TransientError) -> None:
        """Make the next batches smaller where that may help; a row that fails all alone waits by itself."""
        if error.shrink:
            self.limiter.overloaded()
        if len(chunk) == 1:
            self._again(route, chunk[0].row, error.code)
        elif error.shrink or route.backoff.failures >= len(QUICK):
            self.sizes.shrink(route.target.object, op, len(chunk))

    def _size_up(self, route: Route, op: Op, outcomes: Sequence[Outcome]) -> None:
        if any(isinstance(outcome, Retry) and outcome.shrink for outcome in outcomes):
            self.sizes.shrink(route.target.object, op, len(outcomes))
        else:
            self.sizes.grow(route.target.object, op, len(outcomes))

    async def _announce(self, route: Route, drafts: Sequence[Draft]) -> None:
        """Write down what is about to be sent, as far as it has not been."""
        if route.emitted > route.written:
            # Copied rows have no position of their own that would make them uncertain after a crash.
            await self.around.tick()
        links = [
            (route.name, draft.row.key, slot(link), link.to_id)
            for draft in drafts
            for link in draft.record.links
            if link.to_id is not None and self.books.link_sent(route.name, draft.row.key, slot(link), link.to_id)
        ]
        links += [
            (route.name, draft.row.key, name, crm_id)
            for draft in drafts
            for name, crm_id in draft.doubted.items()
            if self.books.link_sent(route.name, draft.row.key, name, crm_id)
        ]
        position = self.around.position
        if position > self._horizon or links:
            await self.around.on_file(lambda state: state.announce(self.name, position, links))
            self._horizon = max(position, self._horizon)

    # --- looking up

    def _clear_up(self, tasks: asyncio.TaskGroup, route: Route) -> None:
        """Take up the rejected states of rows, and ask the CRM where it is not clear which row's record it holds."""
        ready = not route.paused and route.backoff.until <= self.clock.monotonic()
        if ready and route.backlog.hindered and route.name not in self._asking:
            self._asking.add(route.name)
            tasks.create_task(self._resolve(route))

    async def _resolve(self, route: Route) -> None:
        backlog = route.backlog
        try:
            taken: set[str] = set()
            while parked := backlog.recalled() - taken:
                taken |= parked
                await self.rejects.readmit(route, parked)
            keys = backlog.in_doubt()
            if taken:
                self.nudge()
            if not keys:
                return
            with await self.limiter.acquire(_class(route)):
                try:
                    found = await self.find(route, sorted(keys))
                except DestinationError as error:
                    self.blame(error)
                    raise
            known = await self.known(route, keys)
            await self._spread_links(route, keys)
            for key, there in backlog.resolve(found, known, self.clock.monotonic()).items():
                self.books.ledger[route.name, key] = None if there is None else _relocated(*there, self.clock.time())
                self.parents.wake_waiters(route, [key])
        except DestinationError as error:
            self.failed(error, route.backoff)
        finally:
            backlog.forget_doubts()
            self._asking.discard(route.name)
        self.nudge()

    async def _spread_links(self, route: Route, keys: Iterable[str]) -> None:
        """Let links that may have been made for a record be known under each key that it may turn out to have."""
        noted = [self.books.sent_links.get((route.name, key), {}) for key in keys]
        made = {(name, crm_id) for slots in noted for name, ids in slots.items() for crm_id in ids}
        links = [
            (route.name, key, *link) for key in keys for link in made if self.books.link_sent(route.name, key, *link)
        ]
        if links:
            horizon = self._horizon
            await self.around.on_file(lambda state: state.announce(self.name, horizon, links))

    async def find(self, route: Route, keys: Iterable[str]) -> dict[str, str]:
        """Ask the CRM which of these keys it holds; returns the records' ids by key."""
        await self._announce(route, ())
        found = await self.call(self.destination.find, route.target, list(keys))
        self.recovered(route.backoff)
        return found

    async def known(self, route: Route, keys: Iterable[str]) -> dict[str, Known]:
        """Look records up in the ledger, as it will be after the next tick."""
        wanted = set(keys)
        known: dict[str, Known] = {}
        asked = []
        for key in wanted:
            if (route.name, key) in self.books.ledger:
                fresh = self.books.ledger[route.name, key]
                if fresh is not None:
                    known[key] = fresh
            else:
                asked.append(key)
        if asked:
            stored = await self.around.on_file(lambda state: state.known(route.name, asked))
            for key in asked:
                # What was settled while the file was read is newer than what the file said.
                latest = self.books.ledger.get((route.name, key), stored.get(key))
                if latest is not None:
                    known[key] = latest
        return known

    def _sent_links(self, route: Route, rows: list[PendingRow]) -> dict[tuple[str, str], frozenset[str]]:
        found: dict[tuple[str, str], frozenset[str]] = {}
        for row in rows:
            for key in row.keys:
                for name, ids in self.books.sent_links.get((route.name, key), {}).items():
                    found[row.key, name] = frozenset(ids) | found.get((row.key, name), frozenset())
        return found

    # --- settling

    def settle(self, route: Route, drafts: Sequence[Draft], outcomes: Sequence[Outcome]) -> None:
        """Act on the answers to drafts that were sent, in the same order."""
        for draft, outcome in zip(drafts, outcomes, strict=True):
            if isinstance(outcome, Applied):
                self._applied(route, draft, outcome)
            elif isinstance(outcome, Rejected):
                # Associations are requests of their own: the record may have been written, and only they refused.
                if draft.record.links:
                    draft.row.doubt()
                self.rejects.park(route, draft.row, outcome)
            elif isinstance(outcome, Retry):
                self._again(route, draft.row, outcome.code)
            else:
                self._missing(route, draft.row, outcome)

    def _applied(self, route: Route, draft: Draft, outcome: Applied) -> None:
        row, books, now = draft.row, self.books, self.clock.time()
        for key in (row.key, *row.places):
            books.ledger[route.name, key] = None
        replaced = draft.replaced_by(outcome)
        if draft.op is Op.DELETE:
            books.counters["deleted"] += 1
        else:
            crm_id = outcome.crm_id or draft.record.crm_id
            known = Known(crm_id, draft.fields, draft.hashes, dict(draft.links), row.last, now)
            books.ledger[route.name, draft.record.key] = _relocated(crm_id, known, now) if replaced else known
            books.counters["created"] += outcome.created
        if draft.unfinished or replaced:  # of what is left, the second pass has to know what may have been linked
            self._go_on(route, row, _written_elsewhere if replaced else _written)
            return
        for key in row.keys:
            books.links_settled(route.name, key)
        books.counters["applied"] += 1
        route.applied += 1
        self.rejects.accepted(route, row)
        self._settled(route, row)

    def _go_on(self, route: Route, row: PendingRow, written: Callable[[PendingRow], PendingRow]) -> None:
        """Let a row that was written in part go once more: with what it refers to, or to what is another record now."""
        now = self.clock.monotonic()
        route.backlog.refit(row, written, now)
        route.backlog.give_back(row, now)
        self.parents.settled(route, row)

    def _suppress(self, route: Route, row: PendingRow, *, gone: bool = False) -> None:
        """Settle a row for which nothing is to be sent; ``gone``: the CRM was asked, and has no record of it."""
        if gone:
            for place in row.places:
                self.books.ledger[route.name, place] = None
        self.books.counters["suppressed"] += 1
        self._settled(route, row)
        if row.deleted:
            for key in row.keys:
                if not route.backlog.knows(key):  # else its record may have come to another row, which undoes them
                    self.books.links_settled(route.name, key)

    def forget_attempts(self, route: Route, row: PendingRow) -> None:
        """Forget how often a row was tried in vain."""
        self._attempts.pop((route.name, row.key), None)

    def _settled(self, route: Route, row: PendingRow) -> None:
        self.forget_attempts(route, row)
        route.backlog.settle(row, self.clock.monotonic())
        self.parents.settled(route, row)

    def _again(self, route: Route, row: PendingRow, code: str) -> None:
        """Let a row alone be sent again after a while, the longer the more often it was tried in vain."""
        self.books.counters["retries"] += 1
        row.doubt()  # a CRM may have written a record about which its answer says nothing
        now = self.clock.monotonic()
        attempts = self._attempts.pop((route.name, row.key), None) or Backoff()
        key = route.backlog.give_back(row, now, hold=f"{code}: will be sent again")
        self._attempts[route.name, key] = attempts
        delay = attempts.failed(now, random.random(), LONGEST_ROW_BACKOFF)  # noqa: S311 — spreads retries
        asyncio.get_running_loop().call_later(delay, self._retry_row, route, key)

    def _retry_row(self, route: Route, key: str) -> None:
        route.backlog.wake(key, self.clock.monotonic())
        self.nudge()

    def _missing(self, route: Route, row: PendingRow, outcome: Missing) -> None:
        """Write under the new key what was to update a record that is gone."""
        self.log.warning("record gone", map=route.name, message=outcome.message)
        # A row that was inserted may have been written to a record that the ledger knew under its key.
        for place in row.places if row.base is not None else (row.key, *row.places):
            self.books.ledger[route.name, place] = None
            if place != row.key:
                self.parents.pass_on(route, place, row.key)
        route.backlog.refit(row, _without_record, self.clock.monotonic())
        route.backlog.give_back(row, self.clock.monotonic())

    def _drop_deletes(self, route: Route, rows: list[PendingRow]) -> list[PendingRow]:
        for row in rows:
            if row.deleted:  # the ledger stays as it is, and so does the record
                self.books.counters["suppressed"] += 1
                self._settled(route, row)
        return [row for row in rows if not row.deleted]

    def give_back(
        self, route: Route, rows: Iterable[PendingRow], *, uncertain: bool = True, job: int = IN_BATCH
    ) -> None:
        """Make rows ready again that are still in flight in a batch or job that did not work out."""
        now = self.clock.monotonic()
        for row in rows:
            flight = route.backlog.in_flight.get(row.key)
            if flight is not None and flight.row is row and flight.job == job:
                if uncertain:
                    row.doubt()
                self.books.counters["retries"] += 1
                route.backlog.give_back(row, now)
                self.parents.settled(route, row)

    # --- failing and recovering

    async def aside(self, rows: Sequence[PendingRow], work: Callable[..., T], *arguments: object) -> T:
        """Run pure work on rows in flight, in a thread where it would hold the event loop up."""
        if len(rows) <= MANY_ROWS:
            return work(*arguments)
        return await asyncio.to_thread(work, *arguments)

    async def call(self, work: Callable[..., T], *arguments: object) -> T:
        """Run a blocking method of the destination in this lane's threads."""
        context = contextvars.copy_context()  # it has the permit
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work, *arguments)

    def failed(self, error: DestinationError, backoff: Backoff) -> None:
        """Note that work failed as a whole, and leave its kind alone for a while; raise what nobody will mend."""
        if self.stopping:
            return
        if isinstance(error, FatalError) and not self._patient:
            raise error
        self.last_error, self.last_error_code = error.message, error.code
        if isinstance(error, RateLimitedError):
            self.blame(error)
            return  # the limiter knows
        now = self.clock.monotonic()
        delay = backoff.failed(now, random.random())  # noqa: S311 — spreads retries
        if isinstance(error, FatalError):
            backoff.until = now + FATAL_BACKOFF
            delay = FATAL_BACKOFF
        self.blame(error)
        self.log.warning("backing off", error=error.message, hint=error.hint, seconds=round(delay, 1))

    def blame(self, error: DestinationError) -> None:
        """Tell the breaker of a failure that may be the CRM's as a whole; one object's has a backoff itself.

        It has to know before the permit is returned with which the work was done: it may be its probe.
        """
        if not self.stopping and self._is_the_crm(error):
            self.limiter.failed(error)

    def _is_the_crm(self, error: DestinationError) -> bool:
        if isinstance(error, FatalError):
            return isinstance(error, CredentialsError)
        failing = [one for one in self.routes if one.backoff.failures and len(one.backlog) and not one.paused]
        several = len(failing) > 1 or len(self.routes) == 1
        return several or not self._opened or isinstance(error, RateLimitedError)

    @property
    def blocked_for(self) -> float:
        """Seconds until something may be sent again, while nothing may because of failures; else 0."""
        now = self.clock.monotonic()
        if not self._opened:
            return max(self.limiter.open_in, self._opening.until - now, 0.0)
        waits = [route.backoff.until - now for route in self.routes if len(route.backlog) and not route.paused]
        return max(self.limiter.open_in, min(waits, default=0.0), 0.0)

    @property
    def retry_at(self) -> float | None:
        """Unix time of the next attempt while backing off."""
        blocked = self.blocked_for
        return self.clock.time() + blocked if blocked else None

    @property
    def failing(self) -> bool:
        """Whether the last attempt at some work that is still to be done failed as a whole."""
        return self._opening.failures > 0 or any(len(route.backlog) and route.backoff.failures for route in self.routes)

    def recovered(self, backoff: Backoff) -> None:
        """Note that work went through."""
        backoff.ok()
        self.limiter.worked()
        self.last_error = self.last_error_code = None


def _class(route: Route, *, copied: bool = False) -> Priority:
    """Return the class of a mapping's rows; those of a copy are one class lower."""
    priority: Priority = route.config.priority
    if not copied:
        return priority
    return "normal" if priority == "high" else "low"


def _written(row: PendingRow) -> PendingRow:
    row.lies_at(row.key)
    row.uncertain = row.whole = False
    return row


def _written_elsewhere(row: PendingRow) -> PendingRow:
    """Of the record that has the key now, nothing is known: its row goes whole, with all that it refers to."""
    row.lies_at(row.key)
    row.uncertain, row.whole = True, False
    return row


def _without_record(row: PendingRow) -> PendingRow:
    row.lies_at(None)
    return row


def _gone(row: PendingRow) -> PendingRow:
    row.deleted, row.image = True, b""
    return row


def _relocated(crm_id: str | None, known: Known | None, at: float) -> Known:
    """Return the entry of a row's record that has another key than the ledger said; its values are not known."""
    if known is None:
        return Known(crm_id, (), b"", {}, FOUND_OURS, at)
    return Known(crm_id, (), b"", known.links, known.position, at)


def _tally(outcomes: Sequence[Outcome]) -> dict[str, int]:
    names = {Applied: "applied", Rejected: "rejected", Retry: "retry", Missing: "missing"}
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[names[type(outcome)]] = counts.get(names[type(outcome)], 0) + 1
    return counts
