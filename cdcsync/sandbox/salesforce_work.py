"""The work of Bulk 2.0 jobs as time goes on (facts 3, 4 and 5).

A job's work is laid out on the clock: it starts a quarter of ``job_seconds`` after the close, the first chunk of 200
rows is written after half of it, and the rest follows at ``rows_per_second``. ``advance`` catches up with the clock, so
records change at their time whether or not anybody polls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from cdcsync.sandbox.faults import Faults
from cdcsync.sandbox.salesforce_errors import RowError
from cdcsync.sandbox.salesforce_ids import canonical
from cdcsync.sandbox.salesforce_jobs import BATCH, CHUNK, Job
from cdcsync.sandbox.salesforce_quota import Quota
from cdcsync.sandbox.salesforce_rest import Writing
from cdcsync.sandbox.salesforce_rows import HeaderError, read_cells, read_header
from cdcsync.sandbox.salesforce_store import index_key
from cdcsync.sandbox.salesforce_values import Stored
from cdcsync.sandbox.salesforce_writes import Transaction, repeated


@dataclass(slots=True)
class Work:
    """The jobs that are closed and not yet finished."""

    writing: Writing
    faults: Faults
    batches: Quota
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    _running: list[Job] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all jobs."""
        self._running.clear()

    def drop(self, job: Job) -> None:
        """Forget a job that has not begun, or has ended."""
        if job in self._running:
            self._running.remove(job)

    def begin(self, job: Job, now: float) -> None:
        """Take on a job whose upload is complete."""
        job.state = "UploadComplete"
        job.clock = job.modified = now
        job.stuck = self.faults.strike({"stuck_job"}, "PATCH", job.path, {job.entity.name.lower()})
        self._running.append(job)

    def advance(self, now: float) -> None:
        """Do all jobs' work that is due by ``now``, in the order of its times."""
        for job in self._running:
            if job.stuck and job.stuck in self.faults.rules:
                job.clock = now - self._overhead / 4 - job.done * CHUNK / self._pace
        while True:
            due = min(((self._due(job), number) for number, job in enumerate(self._running)), default=None)
            if due is None or due[0] > now:
                return
            self._step(self._running[due[1]], due[0])

    @property
    def _overhead(self) -> float:
        return float(self.writing.settings["job_seconds"])

    @property
    def _pace(self) -> float:
        return max(float(self.writing.settings["rows_per_second"]), 0.001)

    def _due(self, job: Job) -> float:
        """Tell the Unix time of a job's next step."""
        if job.state == "UploadComplete":
            return job.clock + self._overhead / 4
        if not job.chunks and not job.header:
            return job.clock + self._overhead / 2
        worked = (
            sum(map(len, job.chunks[: job.done + 1])) if job.done + 1 >= len(job.chunks) else (job.done + 1) * CHUNK
        )
        share = 0.5 if job.done < len(job.chunks) else 1.0
        return job.clock + self._overhead * share + worked / self._pace

    def _step(self, job: Job, now: float) -> None:
        job.modified = now
        if job.state == "UploadComplete":
            job.state = "InProgress"
        elif not job.header:
            self._open(job, now)
        elif job.done < len(job.chunks):
            chunk = job.chunks[job.done]
            self._work(job, chunk, now)
            job.done += 1
        else:
            self.finish(job, "JobComplete", now)

    def _open(self, job: Job, now: float) -> None:
        """Read the upload; what is wrong with the file or its header fails the job before any row."""
        try:
            job.read()
            job.columns = read_header(self.writing.store, job.entity, job.header)
        except HeaderError as refused:
            job.error = str(refused)
        if job.operation == "delete" and [name.lower() for name in job.header] != ["id"]:
            job.error = "InvalidBatch : The 'delete' batch must contain only ids"
        if not job.error and not self.batches.take(now, max(1, -(-len(job.rows) // BATCH))):
            job.error = "ExceededQuota : ApiBatchItems Limit exceeded."
        job.cut(self.dice)
        if job.error:
            self.finish(job, "Failed", now)

    def finish(self, job: Job, state: Literal["JobComplete", "Failed", "Aborted"], now: float) -> None:
        """End a job; the rows not reached are its unprocessed records."""
        job.state = state
        job.modified = now
        self.drop(job)
        if state == "Aborted" and job.data is not None and not job.header:
            self._read_unprocessed(job)
        job.data = None

    def _read_unprocessed(self, job: Job) -> None:
        """Have the rows of an aborted job that was never begun ready for ``unprocessedrecords``."""
        try:
            job.read()
        except HeaderError:
            return
        job.cut(self.dice)

    def _work(self, job: Job, chunk: range, now: float) -> None:
        """Write one chunk: a transaction in which each row succeeds or fails alone."""
        writes = self.writing.for_job(job.id, job.path, job.user, now, now + len(chunk) / self._pace)
        parsed = [self._parse(job, number) for number in chunk]
        doubled = repeated(_identity(job, row) for row in parsed)
        overtaxed = self.writing.overtaxed(job.entity.name, len(chunk))
        for number, row in zip(chunk, parsed, strict=True):
            identity = _identity(job, row)
            try:
                if isinstance(row, RowError):
                    raise row
                if identity in doubled:
                    raise _doubled(job, row)
                if overtaxed:
                    raise overtaxed
                job.successes.append((*_write(job, writes, row), number))
            except RowError as refused:
                job.failures.append((self._known_id(job, row), refused.as_cell(), number))
        writes.commit()

    def _parse(self, job: Job, number: int) -> dict[str, Stored] | RowError:
        cells = job.rows[number]
        if cells is None or len(cells) != len(job.header):
            return RowError("INVALID_FIELD", "The row is not well-formed CSV, or has not as many cells as the header")
        try:
            return read_cells(self.writing.store, job.columns, cells)
        except RowError as refused:
            return refused

    def _known_id(self, job: Job, row: dict[str, Stored] | RowError) -> str:
        if isinstance(row, RowError) or job.operation == "insert":
            return ""
        if job.key_field is None:
            return str(row.get("Id") or "")
        key = row.get(job.key_field.name)
        found = self.writing.store.find(job.entity, job.key_field, key) if key is not None else []
        return found[0] if len(found) == 1 else ""


def _identity(job: Job, row: dict[str, Stored] | RowError) -> str | None:
    """Give what must not be repeated within a transaction: the key of an upsert, the id of an update or delete."""
    if isinstance(row, RowError) or job.operation == "insert":
        return None
    if job.key_field is None or job.key_field.type == "id":
        return canonical(row.get("Id"))
    key = row.get(job.key_field.name)
    return None if key is None else index_key(job.key_field, key)


def _doubled(job: Job, row: dict[str, Stored]) -> RowError:
    if job.key_field is None or job.key_field.type == "id":
        return RowError("DUPLICATE_VALUE", f"Duplicate id specified: {row.get('Id')}")
    shown = row[job.key_field.name]
    return RowError("DUPLICATE_VALUE", f"Duplicate external id specified: {shown}", [job.key_field.name])


def _write(job: Job, writes: Transaction, row: dict[str, Stored]) -> tuple[str, bool]:
    """Write one row; returns the record's id, and whether it was created."""
    given = row.get("Id")
    values = {name: value for name, value in row.items() if name != "Id"}
    if job.operation == "insert":
        if given is not None:
            raise RowError("INVALID_FIELD_FOR_INSERT_UPDATE", "cannot specify Id in an insert call", ["Id"])
        return writes.insert(job.entity, values), True
    if job.operation == "upsert" and job.key_field and job.key_field.type != "id":
        if given is not None:
            raise RowError("INVALID_FIELD", "cannot specify both an external ID reference Id and a salesforce id")
        key = values.pop(job.key_field.name, None)
        return writes.upsert(job.entity, job.key_field, key, values)
    if given is None and job.operation == "upsert":
        return writes.insert(job.entity, values), True
    if given is None:
        raise RowError("MISSING_ARGUMENT", f"Id not specified in an {job.operation} call")
    record_id = canonical(given)
    if record_id is None:
        raise RowError("MALFORMED_ID", f"malformed id {given}")
    if job.operation == "delete":
        writes.delete(job.entity, record_id)
    else:
        writes.update(job.entity, record_id, values)
    return record_id, False
