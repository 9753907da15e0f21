"""A lane's bulk jobs. Each step is written down before it is taken, so a crash at any point costs no row and no double.

A job is planned by a tick that journals its rows under the job's number; from then on they are in flight until its
results are read. After a start the job goes on with the step that follows the last one known: an open job whose id
was lost is looked for first, an upload or a close that was done already is recognised by the adapter.

A job whose mapping has changed since (``digest``) is not uploaded; if it was, its end is awaited and its rows are
sent once more under the new mapping.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cdcsync.apply.base import BulkDestination
from cdcsync.backlog import IN_BATCH
from cdcsync.backoff import Backoff
from cdcsync.coalesce import PendingRow
from cdcsync.entries import Job, Tick
from cdcsync.errors import BatchRejectedError, DestinationError, FatalError, TransientError
from cdcsync.mappers.compile import Mapped
from cdcsync.model import Batch, JobState, JobStatus, Op, Outcome
from cdcsync.plan import Draft, Facts, asks_for, map_rows, redraft
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its jobs; here only for its type

T = TypeVar("T")

FIRST_POLL = 0.5
LONGEST_POLL = 20.0
POLL_GROWTH = 1.5
AT_LEAST = 0.1
"""Seconds between two attempts of a step."""
PAUSE_POLL = 0.5
SETTLED_AT_ONCE = 1_000
"""Rows; some 20 ms during which nothing else happens."""


class JobRunner:
    """The bulk jobs of one lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._jobs: dict[int, Job] = {}
        self._status: dict[int, JobStatus] = {}
        self._unwritten: dict[int, Job | None] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._lost: dict[tuple[str, Op], float] = {}
        """Since when an open job may be there whose creation got no answer, by mapping and operation."""

    @property
    def active(self) -> list[tuple[Job, JobStatus | None]]:
        """The jobs in hand, with the CRM's last word on each."""
        return [(job, self._status.get(number)) for number, job in self._jobs.items()]

    @property
    def dirty(self) -> bool:
        """Whether a tick has anything to write."""
        return bool(self._unwritten)

    def collect(self, tick: Tick) -> None:
        """Add the jobs that began or ended to a tick."""
        tick.jobs.extend(self._unwritten.items())
        self._unwritten = {}

    def restore(self, jobs: Iterable[Job]) -> None:
        """Load this lane's part of the jobs that were not settled at the last tick."""
        names = {route.name: route for route in self._lane.routes}
        for job in jobs:
            if job.mapping in names:
                self._jobs[job.id] = job
                names[job.mapping].jobs += 1

    def resume(self, tasks: asyncio.TaskGroup) -> None:
        """Take up the restored jobs; later ones run in the same task group."""
        self._tasks = tasks
        for job in self._jobs.values():
            route = next(route for route in self._lane.routes if route.name == job.mapping)
            rows = [flight.row for flight in route.backlog.in_flight.values() if flight.job == job.id]
            mapped, _ = map_rows(route.mapper, rows)
            self._lane.parents.refer(route, rows, mapped)  # before anything else can be sent
            self._spawn_job(self._resume(route, job, rows, mapped))

    def stop(self) -> None:
        """Leave the jobs alone; they are taken up at the next start."""
        for task in self._running:
            task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the batches, within the lane's task group."""
        if self._tasks is not None:
            self._tasks.create_task(work)

    async def start(self, route: Route, op: Op, drafts: list[Draft]) -> None:
        """Write a new job down with its rows, and set it going."""
        number = self._lane.around.next_job()
        job = Job(
            number, route.name, op, JobState.PLANNED, None, self._lane.clock.time(), len(drafts), route.config.meaning
        )
        for draft in drafts:
            route.backlog.assign(draft.row, number)
        self._jobs[number] = self._unwritten[number] = job
        route.jobs += 1
        await self._lane.around.tick()
        self._spawn_job(self._run(route, job, drafts))

    def _spawn_job(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None  # noqa: S101 — the lane runs
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _resume(self, route: Route, job: Job, rows: list[PendingRow], mapped: dict[str, Mapped]) -> None:
        facts = Facts(await self._lane.known(route, asks_for(rows)), ids=await self._lane.parents.ids(mapped))
        await self._run(route, job, redraft(rows, job.op, mapped, facts, route.shape), resumed=True)

    async def _run(self, route: Route, job: Job, drafts: list[Draft], *, resumed: bool = False) -> None:
        batch = Batch(route.target, job.op, tuple(draft.record for draft in drafts))
        changed = job.digest != route.config.meaning
        uncertain = True
        try:
            if changed and job.state in (JobState.PLANNED, JobState.CREATED):
                await self._give_up(job)
            else:
                job = await self._submit(job, batch, resumed=resumed)
                outcomes = await self._outcomes(job, batch, await self._await_end(job))
                if outcomes is not None and not changed:
                    await self._settle(route, drafts, outcomes)
                    self._lane.log.info(
                        "job settled", map=route.name, op=job.op.value, job=job.crm_job, rows=job.records
                    )
        except BatchRejectedError as error:
            # Sent in requests, each record has an answer of its own.
            self._lane.log.warning("bulk upload refused", map=route.name, job=job.crm_job, error=error.message)
            route.bulk_refused = True
            await self._give_up(job)
            uncertain = False
        except DestinationError as error:
            self._lane.failed(error, route.backoff)
            await self._give_up(job)
            uncertain = self._jobs[job.id].state is JobState.CLOSED
        await self._end(route, job, uncertain=uncertain)

    async def _settle(self, route: Route, drafts: list[Draft], outcomes: list[Outcome]) -> None:
        """Settle a job's rows piece by piece; a crash between two leaves the rest in the job."""
        for start in range(0, len(drafts), SETTLED_AT_ONCE):
            piece = slice(start, start + SETTLED_AT_ONCE)
            self._lane.settle(route, drafts[piece], outcomes[piece])
            await asyncio.sleep(0)  # others have their turn

    async def _give_up(self, job: Job) -> None:
        """Abort a job that was not closed: an open one must not be found later and taken for another's."""
        job = self._jobs[job.id]
        if job.crm_job is not None and job.state is not JobState.CLOSED:
            with contextlib.suppress(DestinationError):
                await self._try(self._crm.bulk_abort, job.crm_job)

    async def _submit(self, job: Job, batch: Batch, *, resumed: bool) -> Job:
        """Take the steps that are left until the CRM works on a job; a pause holds them up, and nothing after them."""
        crm = self._crm
        if job.state is JobState.PLANNED:
            await self._unpaused(job)
            crm_job = await self._created(job, batch, resumed=resumed)
            job = await self._save(replace(job, state=JobState.CREATED, crm_job=crm_job))
        crm_job = job.crm_job or ""
        if job.state is JobState.CREATED:
            await self._unpaused(job)
            await self._step(crm.bulk_upload, crm_job, batch)
            job = await self._save(replace(job, state=JobState.UPLOADED))
        if job.state is JobState.UPLOADED:
            await self._unpaused(job)
            await self._ask(crm.bulk_close, crm_job)
            job = await self._save(replace(job, state=JobState.CLOSED))
        return job

    async def _unpaused(self, job: Job) -> None:
        while self._lane.by_name[job.mapping].paused:  # noqa: ASYNC110 — a pause is followed by looking
            await asyncio.sleep(PAUSE_POLL)

    async def _created(self, job: Job, batch: Batch, *, resumed: bool) -> str:
        """Create the job; where an earlier attempt may have done so, look for that one first.

        Raises the error of an attempt that failed: nothing was uploaded, so the rows are better off in the backlog,
        where their next changes fold over them.
        """
        crm = self._crm
        since = self._lost.get((job.mapping, job.op), job.planned if resumed else None)
        try:
            if since is not None:
                found = await self._try(crm.bulk_find, batch.target, job.op, since)
                if found is not None and not self._is_ours_already(found):
                    self._lost.pop((job.mapping, job.op), None)
                    return found
            created = await self._try(crm.bulk_create, batch.target, job.op)
        except TransientError:
            self._lost[job.mapping, job.op] = since or job.planned
            raise
        self._lost.pop((job.mapping, job.op), None)
        return created

    def _is_ours_already(self, crm_job: str) -> bool:
        return any(job.crm_job == crm_job for job in self._jobs.values())

    async def _await_end(self, job: Job) -> JobStatus:
        delay = FIRST_POLL
        while True:
            status = await self._ask(self._crm.bulk_poll, job.crm_job or "")
            self._status[job.id] = status
            if status.state == "open":
                await self._ask(self._crm.bulk_close, job.crm_job or "")
            elif status.state != "running":
                return status
            await asyncio.sleep(delay)
            delay = min(LONGEST_POLL, delay * POLL_GROWTH)

    async def _outcomes(self, job: Job, batch: Batch, status: JobStatus) -> list[Outcome] | None:
        """Read the results; None where the CRM has none, so that what it did is not known."""
        if status.state == "missing":
            return None
        if status.state == "failed" and status.processed == 0:
            raise FatalError(
                f"bulk job {job.crm_job} of {job.mapping} failed: {status.message}",
                hint="The CRM looked at no row: a field or the object is not there for this user. Run `cdcsync check`.",
            )
        return await self._ask(self._crm.bulk_results, job.crm_job or "", batch)

    async def _end(self, route: Route, job: Job, *, uncertain: bool) -> None:
        """Forget a job; rows that it did not settle are sent again.

        Not before that is written down: after a crash the job would be taken up with their older state.
        """
        rows = [flight.row for flight in route.backlog.in_flight.values() if flight.job == job.id]
        for row in rows:
            route.backlog.assign(row, IN_BATCH)
        self._jobs.pop(job.id, None)
        self._status.pop(job.id, None)
        self._unwritten[job.id] = None
        if rows:
            await self._lane.around.tick()
        self._lane.give_back(route, rows, uncertain=uncertain)
        route.jobs -= 1
        self._lane.nudge()

    async def _step(self, work: Callable[..., T], *arguments: object) -> T:
        """Take a step until it succeeds; every step may be repeated. Raises BatchRejectedError or FatalError."""
        return await self._insist((BatchRejectedError, FatalError), work, *arguments)

    async def _ask(self, work: Callable[..., T], *arguments: object) -> T:
        """Ask about a job that was set going until there is an answer, whatever stands against it.

        It runs on meanwhile: of rows that were sent beside it, it could write an older state over the newer one.
        """
        return await self._insist((), work, *arguments)

    async def _insist(self, final: tuple[type[DestinationError], ...], work: Callable[..., T], *arguments: object) -> T:
        backoff = Backoff()
        while True:
            try:
                return await self._try(work, *arguments)
            except final:
                raise
            except DestinationError as error:
                self._lane.failed(error, backoff)
                await asyncio.sleep(max(AT_LEAST, backoff.until - self._lane.clock.monotonic()))

    async def _try(self, work: Callable[..., T], *arguments: object) -> T:
        """Take a step when a request may be sent."""
        with await self._lane.limiter.acquire():
            try:
                result = await self._lane.call(work, *arguments)
            except DestinationError as error:
                self._lane.blame(error)
                raise
            self._lane.limiter.worked()
        return result

    async def _save(self, job: Job) -> Job:
        self._jobs[job.id] = job
        await self._lane.around.on_file(lambda state: state.save_job(job))
        return job

    @property
    def _crm(self) -> BulkDestination:
        return cast("BulkDestination", self._lane.destination)
