"""The way to a simulated CRM: the account's quota, the network with its weather, and the adapter that knows both."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cdcsync.apply.base import Limits
from cdcsync.apply.bisect import isolate
from cdcsync.apply.budget import DAY
from cdcsync.apply.limiter import Limiter
from cdcsync.errors import FatalError, RateLimitedError, TransientError
from cdcsync.model import Applied, Batch, JobStatus, Op, Outcome, Record, Retry, Target, Window
from tests.simulation.crm import Crm, Job, trace
from tests.simulation.plot import Weather

T = TypeVar("T")
JOB_SECONDS = (1.0, 5.0, 60.0)
"""How long a bulk job may take."""


class Account:
    """The account's quotas as the vendor meters them: a rolling window, and the last 24 hours."""

    def __init__(self, limit: int, seconds: float, daily: int | None) -> None:
        self.limit = limit
        self.seconds = seconds
        self.daily = daily
        self._times: deque[float] = deque()
        self._day: deque[float] = deque()

    def count(self, now: float) -> bool:
        """Count a request; returns whether it may be served."""
        _forget(self._times, now - self.seconds)
        _forget(self._day, now - DAY)
        fits = len(self._times) < self.limit and (self.daily is None or len(self._day) < self.daily)
        self._times.append(now)
        self._day.append(now)
        return fits

    @property
    def windows(self) -> tuple[Window, ...]:
        """What an answer's headers show."""
        burst = Window("burst", self.limit, max(0, self.limit - len(self._times)), self.seconds)
        if self.daily is None:
            return (burst,)
        return burst, Window("daily", self.daily, max(0, self.daily - len(self._day)), DAY)


def _forget(times: deque[float], before: float) -> None:
    while times and times[0] <= before:
        times.popleft()


class Adapter:
    """``apply.base.BulkDestination`` of the simulated CRM: one of these per life of the daemon.

    Its methods are coroutines, which the virtual loop runs where a thread would block. ``outage``: until when nothing
    gets through (the loop's time). ``passed`` is told of each request that the gate let through.
    """

    name = "crm"

    def __init__(
        self,
        crm: Crm,
        account: Account,
        limiter: Limiter,
        limits: Limits,
        weather: Weather,
        *,
        rng: random.Random,
        outage: float,
        passed: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.weather = weather
        self._crm = crm
        self._account = account
        self._gate = limiter
        self._rng = rng
        self._outage = outage
        self._passed = passed

    async def open(self) -> None:
        """Log in."""
        await self._request(lambda: None)

    def close(self) -> None:
        """Do nothing."""

    async def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Look up by key."""
        return await self._request(lambda: self._crm.find(target, keys))

    async def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read by id."""
        del target
        return await self._request(lambda: self._crm.read(crm_ids, fields, self._now))

    async def send(self, batch: Batch) -> list[Outcome]:
        """Write a batch."""
        assert 0 < len(batch.records) <= self.limits.batch[batch.op]
        return await self._request(lambda: self._write(batch))

    def _write(self, batch: Batch) -> list[Outcome]:
        locked = [self._happens(self.weather.locked) for _ in batch.records]
        free = tuple(record for record, is_locked in zip(batch.records, locked, strict=True) if not is_locked)
        if free and self._happens(self.weather.partly):
            self._write_all(replace(batch, records=free[: self._rng.randrange(len(free))]))
            msg = "the CRM broke off"
            raise TransientError(msg)
        answers = iter(self._write_all(replace(batch, records=free)))
        return [Retry("LOCKED", "row lock") if is_locked else self._said(next(answers)) for is_locked in locked]

    def _write_all(self, batch: Batch) -> list[Outcome]:
        return isolate(self._crm.write, batch)

    def _said(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Applied) and self._happens(self.weather.unsaid):
            return Retry("UNANSWERED", "nothing said")
        return outcome

    # --- bulk

    async def bulk_create(self, target: Target, op: Op) -> str:
        """Create a job."""
        return await self._request(lambda: self._new_job(target, op))

    def _new_job(self, target: Target, op: Op) -> str:
        number = f"J{len(self._crm.jobs)}"
        self._crm.jobs[number] = Job(target, op)
        return number

    async def bulk_find(self, target: Target, op: Op, since: float) -> str | None:
        """Find an open job."""
        del since
        return await self._request(lambda: self._open_job(target, op))

    def _open_job(self, target: Target, op: Op) -> str | None:
        for number, job in reversed(self._crm.jobs.items()):
            if job.state == "open" and job.records is None and (job.target, job.op) == (target, op):
                return number
        return None

    async def bulk_upload(self, job: str, batch: Batch) -> None:
        """Upload, once."""
        await self._request(lambda: self._upload(self._crm.jobs[job], batch.records))

    @staticmethod
    def _upload(job: Job, records: tuple[Record, ...]) -> None:
        if job.state == "open" and job.records is None:
            job.records = records

    async def bulk_close(self, job: str) -> None:
        """Set the job going, once."""
        await self._request(lambda: self._close(self._crm.jobs[job]))

    def _close(self, job: Job) -> None:
        if job.state == "open":
            job.state = "running"
            job.done_at = self._now + self._rng.random() * self._rng.choice(JOB_SECONDS)

    async def bulk_abort(self, job: str) -> None:
        """Give the job up."""
        await self._request(lambda: self._abort(self._crm.jobs[job]))

    @staticmethod
    def _abort(job: Job) -> None:
        if job.state in {"open", "running"}:
            job.state = "aborted"

    async def bulk_poll(self, job: str) -> JobStatus:
        """Look at the job."""
        return await self._request(lambda: self._poll(self._crm.jobs[job]))

    @staticmethod
    def _poll(job: Job) -> JobStatus:
        state: Any = job.state
        return JobStatus(state, processed=len(job.outcomes))

    async def bulk_results(self, job: str, batch: Batch) -> list[Outcome]:
        """Read the results, by key."""
        await self._request(lambda: None)
        held = self._crm.jobs[job]
        by_key = {record.key: said for record, said in zip(held.records or (), held.outcomes, strict=False)}
        return [by_key.get(record.key, Retry("NOT_PROCESSED", "not there")) for record in batch.records]

    # --- the network

    async def _request(self, work: Callable[[], T]) -> T:
        await self._gate.admit()
        self._passed()
        await self._travel()
        self._mishap_before()
        self._crm.run_jobs(self._now, lambda: self._happens(self.weather.locked))
        if not self._account.count(self._now):
            self._crm.books.counts["refused"] += 1
            self._gate.refused("burst", None)
            msg = "too many requests"
            raise RateLimitedError(msg)
        result = work()
        self._crm.books.counts["requests"] += 1
        await self._travel()
        trace("done", self._now)
        if self._happens(self.weather.lost):
            msg = "no answer"
            raise TransientError(msg)
        self._gate.seen(self._account.windows)
        return result

    def _mishap_before(self) -> None:
        weather = self.weather
        if self._now < self._outage or self._happens(weather.unreachable):
            msg = "no connection"
            raise TransientError(msg)
        if self._happens(weather.refused):
            self._gate.refused("burst", None)
            msg = "too many requests, they say"
            raise RateLimitedError(msg)
        if self._happens(weather.fatal):
            msg = "no such object"
            raise FatalError(msg)

    async def _travel(self) -> None:
        await asyncio.sleep(self._rng.random() * self.weather.slow)

    def _happens(self, chance: float) -> bool:
        if chance and self._rng.random() < chance:
            self._crm.books.counts["faults"] += 1
            return True
        return False

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()
