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
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

import structlog

from cdcsync.apply.base import Destination
from cdcsync.apply.limiter import Limiter
from cdcsync.backlog import IN_BATCH
from cdcsync.books import Books
from cdcsync.clock import Clock
from cdcsync.coalesce import Event, PendingRow
from cdcsync.entries import Known, Tick
from cdcsync.errors import (
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
from cdcsync.plan import Draft, Facts, asks_for, decide, map_rows, slot
from cdcsync.rejects import Rejects
from cdcsync.route import Route
from cdcsync.spill import Spill
from cdcsync.state import State
from cdcsync.status import LaneState
from cdcsync.wal.row_filter import RowFilter

T = TypeVar("T")

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 60.0
FATAL_BACKOFF = 60.0
"""A person has to act on a fatal answer; look once a minute whether it has happened."""
ROW_RETRY = 1.0
"""Seconds after which a row that met a lock is sent again."""

MANY_ROWS = 1_000
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

    def pause(self, route: Route, reason: str) -> None:
        """Pause a mapping until a person resumes it."""

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
        self.retry_at: float | None = None
        """Unix time of the next attempt while backing off."""
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
        self._active = 0
        self._asking: set[str] = set()
        """Mappings for which the CRM is being asked whose records are whose."""
        self._turn = 0
        self._failures = 0
        self._blocked_until = 0.0
        self._opened = False
        self._horizon = START
        self._replay = START
        self._threads = ThreadPoolExecutor(
            destination.limits.max_parallel + 2, thread_name_prefix=f"{THREAD_PREFIX}{name}"
        )
        self.jobs = JobRunner(self)
        self.spill = Spill(self)
        self.rejects = Rejects(self)
        self.parents = Parents(self)

    # --- what comes in

    def restore(self, state: State) -> None:
        """Load what the state file holds of this lane. Called once, before anything is fed."""
        now = self.clock.monotonic()
        self.books.counters.update(state.counters(self.name))
        self._horizon = self._replay = state.horizon(self.name)
        self.unmapped = state.unmapped(self.name, self.by_name)
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

    @property
    def dirty(self) -> bool:
        """Whether a tick has anything to write for this lane."""
        return self.books.dirty or self.jobs.dirty or self.unwritten > 0

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
        if self.clock.monotonic() < self._blocked_until:
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
                delay = self._dispatch(tasks)
                await self._sleep(delay)
            self.jobs.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Take no further rows; ``run`` returns when what is in flight has settled."""
        self.stopping = True
        self.limiter.close()
        self.nudge()

    async def _open(self) -> None:
        while not self.stopping and not self._opened:
            try:
                await self.call(self.destination.open)
                self._opened = True
                self.recovered()
            except DestinationError as error:
                self.failed(error)
                while self.blocked_for and not self.stopping:
                    self._wake.clear()
                    await self._sleep(self.blocked_for)

    async def _sleep(self, delay: float | None) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return

    def _dispatch(self, tasks: asyncio.TaskGroup) -> float | None:
        """Start what may start now; returns the seconds until the next look, None if only an event can change that."""
        now = self.clock.monotonic()
        if now < self._blocked_until:
            return self._blocked_until - now
        if not self.caught_up:
            return None
        most = min(self.destination.limits.max_parallel, self.limiter.parallel)
        delays: list[float] = []
        while True:
            for step in range(len(self.routes)):
                route = self.routes[(self._turn + step) % len(self.routes)]
                while self._active < most:
                    rows = self._next_rows(route, now, delays)
                    if not rows:
                        break
                    self._active += 1
                    tasks.create_task(self._carry(route, rows))
                self._clear_up(tasks, route)
                self.spill.refill(route)  # last: rows that were held just now leave nothing ready
            # Rows that were held just now may have been all that deletes waited for.
            if not self._release_deferred(now):
                break
        if self._active >= most:
            self._turn = (self._turn + 1) % len(self.routes)
            return None
        return min(delays, default=None)

    @property
    def caught_up(self) -> bool:
        """Whether the stream is past everything that may have been sent before the last start."""
        return self.around.position >= self._replay

    def _next_rows(self, route: Route, now: float, delays: list[float]) -> list[PendingRow]:
        ready = route.backlog.ready
        if not ready or route.paused:
            return []
        limits = self.destination.limits
        bulk = limits.bulk_from is not None and len(ready) >= limits.bulk_from
        if bulk and (route.jobs or len(route.backlog.in_flight) >= (limits.bulk_from or 0)):
            return []  # a job is under way, or what may become one
        # A job is dear: it waits for all the rows that come in time.
        size = self._job_size() if bulk else limits.batch[Op.UPSERT]
        wait = next(iter(ready.values())) + self._max_wait - now
        if wait > 0 and len(ready) < size:
            delays.append(wait)
            return []
        rows: list[PendingRow] = []
        while not rows and ready:
            rows = route.backlog.take(size, partial(self._defer, route), limits.bulk_bytes)
        return rows

    def _job_size(self) -> int:
        """Return the rows that a bulk job may have: mappings that have one, or could, share what memory there is."""
        limits = self.destination.limits
        least = limits.bulk_from or 0
        sharing = sum(1 for route in self.routes if route.jobs or len(route.backlog.ready) >= least)
        return max(least, limits.bulk_records // max(1, sharing))

    # --- deletes after their children

    def _defer(self, route: Route, row: PendingRow) -> str | None:
        """Hold the delete or key change of a parent back while older changes of its children are under way."""
        if not self._must_wait(route, row):
            return None
        route.deferred.add(row.key)
        return "children are to be settled first"

    def _must_wait(self, route: Route, row: PendingRow) -> bool:
        """Whether a record may neither go nor get another key yet, for the sake of those that refer to it."""
        if not row.deleted and not row.origins:
            return False
        return self.parents.are_referred(route, row.keys) or (row.deleted and self._children_before(route, row.last))

    def _release_deferred(self, now: float) -> bool:
        """Look at rows again that waited for children; returns whether there were any."""
        released = False
        for route in self.routes:
            for key in list(route.deferred):
                row = route.backlog.fold.waiting.get(key)
                if row is None or not self._must_wait(route, row):
                    route.deferred.discard(key)
                    route.backlog.wake(key, now)
                    released = True
        return released

    @staticmethod
    def _children_before(route: Route, position: Position) -> bool:
        return any(child.backlog.moves_before(position) for child in route.children)

    # --- one batch

    async def _carry(self, route: Route, rows: list[PendingRow]) -> None:
        """Plan and send rows that were taken; each is settled, parked, or waiting again when this returns."""
        try:
            for op, drafts in await self._plan(route, rows):
                await self._send(route, op, drafts)
        except DestinationError as error:
            self.failed(error)
            self.give_back(route, rows, uncertain=False)
        finally:
            self._active -= 1
            self.nudge()

    async def _plan(self, route: Route, rows: list[PendingRow]) -> list[tuple[Op, list[Draft]]]:
        if route.row_filter is not None:
            rows = await self._leave_out(route, route.row_filter, rows)
        mapped, unmapped = await self.aside(rows, map_rows, route.mapper, rows)
        for row, rejected in unmapped:
            self.rejects.park(route, row, rejected)
        ready = [row for row in rows if row.deleted or row.key in mapped]
        if route.config.on_delete == "ignore":
            ready = self._drop_deletes(route, ready)
        ready, links = await self.parents.sort_out(route, ready, mapped)
        facts = Facts(
            known=await self.known(route, asks_for(ready)), links=links, sent_links=self._sent_links(route, ready)
        )
        plan = await self.aside(rows, decide, ready, mapped, facts, route.fields)
        if plan.ask:
            found = await self.find(route, dict.fromkeys(asks_for(plan.ask)))
            asked = Facts(facts.known, found, asked=True, links=links, sent_links=facts.sent_links)
            second = decide(plan.ask, mapped, asked, route.fields)
            plan.drafts += second.drafts
            plan.nothing += second.nothing
            plan.rejected += second.rejected
        for row, rejected in plan.rejected:
            self.rejects.park(route, row, rejected)
        for row in plan.nothing:
            self._suppress(route, row)
        groups = [(op, [draft for draft in plan.drafts if draft.op is op]) for op in (Op.UPDATE, Op.UPSERT, Op.DELETE)]
        return [(op, drafts) for op, drafts in groups if drafts]

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
        limits = self.destination.limits
        if limits.bulk_from is not None and op is not Op.UPDATE and len(drafts) >= limits.bulk_from:
            await self.jobs.start(route, op, drafts)
            return
        for start in range(0, len(drafts), limits.batch[op]):
            await self._send_chunk(route, op, drafts[start : start + limits.batch[op]])

    async def _send_chunk(self, route: Route, op: Op, chunk: list[Draft]) -> None:
        """Send what fits into one request, and act on the answer."""
        await self._announce(route, chunk)
        batch = Batch(route.target, op, tuple(draft.record for draft in chunk))
        try:
            outcomes = await self.call(self.destination.send, batch)
        except DestinationError:
            # Whatever the error says of its own request: others of the same batch may have been answered before.
            for draft in chunk:
                draft.row.doubt()
            raise
        self.recovered()
        self.settle(route, chunk, outcomes)
        self.log.info("sent", map=route.name, op=op.value, records=len(chunk), **_tally(outcomes))

    async def _announce(self, route: Route, drafts: Iterable[Draft]) -> None:
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
        position = self.around.position
        if position > self._horizon or links:
            await self.around.on_file(lambda state: state.announce(self.name, position, links))
            self._horizon = max(position, self._horizon)

    # --- looking up

    def _clear_up(self, tasks: asyncio.TaskGroup, route: Route) -> None:
        """Take up the rejected states of rows, and ask the CRM where it is not clear which row's record it holds."""
        if route.backlog.hindered and not route.paused and route.name not in self._asking:
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
            found = await self.find(route, sorted(keys))
            known = await self.known(route, keys)
            for key, there in backlog.resolve(found, known, self.clock.monotonic()).items():
                self.books.ledger[route.name, key] = None if there is None else _relocated(*there, self.clock.time())
                self.parents.wake_waiters(route, [key])
        except DestinationError as error:
            self.failed(error)
        finally:
            backlog.forget_doubts()
            self._asking.discard(route.name)
        self.nudge()

    async def find(self, route: Route, keys: Iterable[str]) -> dict[str, str]:
        """Ask the CRM which of these keys it holds; returns the records' ids by key."""
        await self._announce(route, ())
        found = await self.call(self.destination.find, route.target, list(keys))
        self.recovered()
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
                self._again(route, draft.row, outcome)
            else:
                self._missing(route, draft.row, outcome)

    def _applied(self, route: Route, draft: Draft, outcome: Applied) -> None:
        row, books = draft.row, self.books
        for key in (row.key, *row.places):
            books.ledger[route.name, key] = None
        if draft.op is Op.DELETE:
            books.counters["deleted"] += 1
        else:
            crm_id = outcome.crm_id or draft.record.crm_id
            books.ledger[route.name, row.key] = Known(
                crm_id, draft.fields, draft.hashes, dict(draft.links), row.last, self.clock.time()
            )
            books.counters["created"] += outcome.created
        for key in row.keys:
            books.links_settled(route.name, key)
        books.counters["applied"] += 1
        route.applied += 1
        self.rejects.accepted(route, row)
        self._settled(route, row)

    def _suppress(self, route: Route, row: PendingRow) -> None:
        if row.deleted and row.uncertain:
            for place in row.places:
                self.books.ledger[route.name, place] = None
        if row.deleted:
            for key in row.keys:
                self.books.links_settled(route.name, key)
        self.books.counters["suppressed"] += 1
        self._settled(route, row)

    def _settled(self, route: Route, row: PendingRow) -> None:
        route.backlog.settle(row, self.clock.monotonic())
        self.parents.settled(route, row)

    def _again(self, route: Route, row: PendingRow, reason: Retry) -> None:
        self.books.counters["retries"] += 1
        row.doubt()  # a CRM may have written a record about which its answer says nothing
        key = route.backlog.give_back(row, self.clock.monotonic(), hold=f"{reason.code}: will be sent again")
        delay = ROW_RETRY * random.uniform(0.5, 1.5)  # noqa: S311 — spreads retries
        asyncio.get_running_loop().call_later(delay, self._retry_row, route, key)

    def _retry_row(self, route: Route, key: str) -> None:
        route.backlog.wake(key, self.clock.monotonic())
        self.nudge()

    def _missing(self, route: Route, row: PendingRow, outcome: Missing) -> None:
        """Write under the new key what was to update a record that is gone."""
        self.log.warning("record gone", map=route.name, message=outcome.message)
        for place in row.places:
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
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def failed(self, error: DestinationError) -> None:
        """Note that a request failed as a whole, and back off; raise a fatal error where nobody will mend it."""
        if isinstance(error, FatalError) and not self._patient:
            raise error
        self.last_error = error.message
        now = self.clock.monotonic()
        if isinstance(error, RateLimitedError) or now < self._blocked_until:
            return
        longest = FATAL_BACKOFF if isinstance(error, FatalError) else LONGEST_BACKOFF
        delay = longest if isinstance(error, FatalError) else min(longest, FIRST_BACKOFF * 2**self._failures)
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 — spreads retries
        self._failures = min(self._failures + 1, 16)
        self._blocked_until = now + delay
        self.retry_at = self.clock.time() + delay
        self.log.warning("backing off", error=error.message, hint=error.hint, seconds=round(delay, 1))

    @property
    def blocked_for(self) -> float:
        """Seconds until the next attempt while backing off, else 0."""
        return max(0.0, self._blocked_until - self.clock.monotonic())

    def recovered(self) -> None:
        """Note that a request went through."""
        self._failures = 0
        self.retry_at = None
        self.last_error = None


def _without_record(row: PendingRow) -> PendingRow:
    row.lies_at(None)
    return row


def _gone(row: PendingRow) -> PendingRow:
    row.deleted, row.image = True, b""
    return row


def _relocated(crm_id: str, known: Known | None, at: float) -> Known:
    """Return the ledger's entry of a record that has another key than the ledger said; its values are not known."""
    if known is None:
        return Known(crm_id, (), b"", {}, START, at)
    return Known(crm_id, (), b"", known.links, known.position, at)


def _tally(outcomes: Sequence[Outcome]) -> dict[str, int]:
    names = {Applied: "applied", Rejected: "rejected", Retry: "retry", Missing: "missing"}
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[names[type(outcome)]] = counts.get(names[type(outcome)], 0) + 1
    return counts
