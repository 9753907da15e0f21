"""A simulated CRM behind a simulated network, and the books that say what was done to it.

It keeps records by id with one external key each, resolves references as Salesforce does (a reference is to the record,
whatever its key is called later), and refuses what a CRM refuses. Whatever must never happen goes to ``books.wrong``.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdcsync.apply.base import Limits
from cdcsync.apply.bisect import isolate
from cdcsync.apply.limiter import Limiter
from cdcsync.errors import BatchRejectedError, FatalError, RateLimitedError, TransientError
from cdcsync.model import (
    Applied,
    Batch,
    JobStatus,
    Missing,
    Op,
    Outcome,
    Record,
    Ref,
    Rejected,
    Retry,
    Target,
    Value,
    Window,
)
from tests.simulation.database import BAD

ACCOUNT, CONTACT = "Account", "Contact"
KEY = "Key"
TRACED = "CDCSYNC_TRACE" in os.environ


@dataclass(slots=True)
class Weather:
    """What may happen to a request, each with its probability; ``slow`` is the longest way there or back (seconds)."""

    unreachable: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    partly: float = 0.0
    locked: float = 0.0
    fatal: float = 0.0
    unsaid: float = 0.0
    """An answer that leaves out the record's id."""
    slow: float = 0.2

    @property
    def calm(self) -> Weather:
        """The same network on a quiet day."""
        return Weather(slow=self.slow)


@dataclass(slots=True)
class Held:
    """A record."""

    object: str
    key: str
    fields: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return str(self.fields.get("Uid"))


@dataclass(slots=True)
class Books:
    """What was done, and what should not have been."""

    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    versions: dict[str, str] = field(default_factory=dict)
    """The newest version of each row that was ever written, by uid."""


@dataclass(slots=True)
class Job:
    """A bulk job as the CRM has it."""

    target: Target
    op: Op
    created: float
    state: str = "open"
    records: tuple[Record, ...] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    done_at: float = 0.0


class Crm:
    """The CRM: it outlives every daemon."""

    def __init__(self, rng: random.Random, *, whole_batches: bool) -> None:
        self._rng = rng
        self._whole_batches = whole_batches
        """Whether a value that it does not take is refused with the whole batch, without a word on which it was."""
        self.records: dict[str, Held] = {}
        self.jobs: dict[str, Job] = {}
        self.books = Books()
        self._ids = 0

    @staticmethod
    def trace(*words: object) -> None:
        """Tell what happens, where somebody wants to know."""
        if TRACED:
            print(*words)

    def find(self, target: Target, keys: Iterable[str]) -> dict[str, str]:
        """Look records up by key."""
        found = {}
        for key in keys:
            crm_id = self._id_of(target.object, key)
            if crm_id is not None:
                found[key] = crm_id
        return found

    def write(self, batch: Batch) -> list[Outcome]:
        """Write a batch, record by record."""
        if self._whole_batches and any(_is_bad(record) for record in batch.records):
            msg = "something in there is not right"
            raise BatchRejectedError(msg, reason="INVALID")
        self._expect(len({record.key for record in batch.records}) == len(batch.records), "a key twice in a batch")
        return [self._write(batch, record) for record in batch.records]

    def _write(self, batch: Batch, record: Record) -> Outcome:
        outcome = self._judge(batch, record)
        self.trace("write", batch.target.object, batch.op.value, record, outcome)
        return outcome

    def _judge(self, batch: Batch, record: Record) -> Outcome:
        self.books.counts["writes"] += 1
        if batch.op is Op.DELETE:
            return self._delete(record)
        if _is_bad(record):
            return Rejected("BAD_NAME", "no such name", "Name")
        if batch.op is Op.UPDATE and record.crm_id not in self.records:
            return Missing("no such record")
        name = batch.target.object
        holder = self._id_of(name, record.key)
        if batch.op is Op.UPDATE and holder not in {None, record.crm_id}:
            self.books.wrong.append(f"{name} {record.key} would be taken from its record")
            return Rejected("DUPLICATE_VALUE", "another record has that key")
        fields = self._resolved(record.fields)
        if fields is None:
            return Rejected("NO_PARENT", "foreign key not found")
        crm_id = record.crm_id if batch.op is Op.UPDATE else holder
        if crm_id is None:
            crm_id = self._create(name, record)
        self._put(crm_id, record, fields)
        return Applied(crm_id, created=holder is None and batch.op is Op.UPSERT)

    def _create(self, name: str, record: Record) -> str:
        self._ids += 1
        self.books.counts["created"] += 1
        self._expect({"Name", "Big", "Uid", "Version"} <= set(record.fields), f"{name} {record.key} made from a part")
        crm_id = f"{name[0]}{self._ids:04}"
        self.records[crm_id] = Held(name, record.key)
        return crm_id

    def _put(self, crm_id: str, record: Record, fields: Mapping[str, Any]) -> None:
        held = self.records[crm_id]
        before = (held.key, dict(held.fields), dict(held.links))
        held.key = record.key
        held.fields.update(fields)
        for link in record.links:
            for was in link.was_ids:
                if held.links.get(link.type) == was:
                    del held.links[link.type]
            if link.to_id is not None:
                self._expect(link.to_id in self.records, f"a link to {link.to_id}, which is gone")
                held.links[link.type] = link.to_id
        self.books.counts["idle"] += before == (held.key, held.fields, held.links)
        version = str(held.fields.get("Version"))
        newest = self.books.versions.get(held.uid, "")
        self._expect(version >= newest, f"{held.object} {held.key} went back from {newest} to {version}")
        self.books.versions[held.uid] = max(version, newest)

    def _delete(self, record: Record) -> Outcome:
        held = self.records.pop(record.crm_id or "", None)
        if held is not None:
            self.books.counts["deleted"] += 1
            for other in self.records.values():
                for name, value in list(other.fields.items()):
                    if value == record.crm_id and name in {"Account", "Manager"}:
                        other.fields[name] = None
                other.links = {name: to for name, to in other.links.items() if to != record.crm_id}
        return Applied(record.crm_id)

    def _resolved(self, fields: Mapping[str, Value]) -> dict[str, Any] | None:
        resolved: dict[str, Any] = {}
        for name, value in fields.items():
            resolved[name] = value
            if isinstance(value, Ref):
                resolved[name] = self._id_of(value.object, value.key)
                if resolved[name] is None:
                    self.books.wrong.append(f"sent before its parent {value.object} {value.key}")
                    return None
        return resolved

    def _id_of(self, name: str, key: str) -> str | None:
        return next((i for i, held in self.records.items() if held.object == name and held.key == key), None)

    def _expect(self, condition: bool, wrong: str) -> None:
        if not condition:
            self.books.wrong.append(wrong)


def _is_bad(record: Record) -> bool:
    return str(record.fields.get("Name", "")).startswith(BAD)


class Account:
    """The quota of the account as the vendor meters it: a rolling window."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._seconds = seconds
        self._times: list[float] = []
        self.refused = 0

    def count(self, now: float) -> bool:
        """Count a request; returns whether it may be served."""
        self._times = [at for at in self._times if at > now - self._seconds]
        fits = len(self._times) < self.limit
        self._times.append(now)
        self.refused += not fits
        return fits

    @property
    def window(self) -> Window:
        """What an answer's headers show."""
        return Window("burst", self.limit, max(0, self.limit - len(self._times)), self._seconds)


class Adapter:
    """``apply.base.BulkDestination`` of the simulated CRM: one of these per life of the daemon.

    Its methods are coroutines, which the virtual loop runs where a thread would block.
    """

    name = "crm"

    def __init__(
        self, crm: Crm, account: Account, limiter: Limiter, limits: Limits, weather: Weather, rng: random.Random
    ) -> None:
        self.limits = limits
        self.weather = weather
        self._crm = crm
        self._account = account
        self._gate = limiter
        self._rng = rng

    async def open(self) -> None:
        """Log in."""
        await self._request(lambda: None)

    def close(self) -> None:
        """Do nothing."""

    async def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Look up by key."""
        return dict(await self._request(lambda: self._crm.find(target, keys)))

    async def send(self, batch: Batch) -> list[Outcome]:
        """Write a batch."""
        assert 0 < len(batch.records) <= self.limits.batch[batch.op]
        return list(await self._request(lambda: self._write(batch)))

    def _write(self, batch: Batch) -> list[Outcome]:
        locked = [self._happens(self.weather.locked) for _ in batch.records]
        free = tuple(record for record, is_locked in zip(batch.records, locked, strict=True) if not is_locked)
        if free and self._happens(self.weather.partly):
            isolate(self._crm.write, replace(batch, records=free[: self._rng.randrange(len(free))]))
            msg = "the CRM broke off"
            raise TransientError(msg)
        answers = iter(isolate(self._crm.write, replace(batch, records=free)) if free else [])
        return [Retry("LOCKED", "row lock") if is_locked else self._said(next(answers)) for is_locked in locked]

    def _said(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Applied) and self._happens(self.weather.unsaid):
            return Retry("UNANSWERED", "nothing said")
        return outcome

    # --- bulk

    async def bulk_create(self, target: Target, op: Op) -> str:
        """Create a job."""
        return str(await self._request(lambda: self._new_job(target, op)))

    def _new_job(self, target: Target, op: Op) -> str:
        number = f"J{len(self._crm.jobs)}"
        self._crm.jobs[number] = Job(target, op, self._now)
        return number

    async def bulk_find(self, target: Target, op: Op, since: float) -> str | None:
        """Find an open job."""
        jobs = self._crm.jobs.items()
        found = [
            n for n, job in jobs if job.state == "open" and job.records is None and (job.target, job.op) == (target, op)
        ]
        await self._request(lambda: None)
        return found[-1] if found else None

    async def bulk_upload(self, job: str, batch: Batch) -> None:
        """Upload, once."""
        await self._request(lambda: self._upload(self._crm.jobs[job], batch))

    @staticmethod
    def _upload(job: Job, batch: Batch) -> None:
        if job.state == "open" and job.records is None:
            job.records = batch.records

    async def bulk_close(self, job: str) -> None:
        """Set the job going, once."""
        await self._request(lambda: self._close(self._crm.jobs[job]))

    def _close(self, job: Job) -> None:
        if job.state == "open":
            job.state = "running"
            job.done_at = self._now + self._rng.random() * 5

    async def bulk_abort(self, job: str) -> None:
        """Give the job up."""
        await self._request(lambda: setattr(self._crm.jobs[job], "state", "aborted"))

    async def bulk_poll(self, job: str) -> JobStatus:
        """Look at the job; what it does, it does when it is looked at."""
        return await self._request(lambda: self._poll(self._crm.jobs[job]))  # type: ignore[no-any-return]

    def _poll(self, job: Job) -> JobStatus:
        if job.state == "running" and self._now >= job.done_at:
            job.state = "done"
            for record in job.records or ():
                if self._happens(self.weather.locked):
                    job.outcomes.append(Retry("LOCKED", "row lock"))
                else:
                    job.outcomes += isolate(self._crm.write, Batch(job.target, job.op, (record,)))
        state: Any = job.state
        return JobStatus(state, processed=len(job.outcomes))

    async def bulk_results(self, job: str, batch: Batch) -> list[Outcome]:
        """Read the results, by key."""
        await self._request(lambda: None)
        held = self._crm.jobs[job]
        by_key = {record.key: said for record, said in zip(held.records or (), held.outcomes, strict=False)}
        return [by_key.get(record.key, Retry("NOT_PROCESSED", "not there")) for record in batch.records]

    # --- the network

    async def _request(self, work: Any) -> Any:
        await self._gate.admit()
        await self._travel()
        if not self._account.count(self._now):
            self._gate.refused("burst", None)
            msg = "too many requests"
            raise RateLimitedError(msg)
        self._mishap_before()
        result = work()
        self._crm.books.counts["requests"] += 1
        await self._travel()
        self._crm.trace("done", self._now)
        if self._happens(self.weather.lost):
            msg = "no answer"
            raise TransientError(msg)
        self._gate.seen((self._account.window,))
        return result

    def _mishap_before(self) -> None:
        weather = self.weather
        if self._happens(weather.unreachable):
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
