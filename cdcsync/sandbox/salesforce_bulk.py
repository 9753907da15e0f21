"""Bulk 2.0 ingest (facts 3): the jobs' HTTP side, and their work as time goes on.

A job's work is laid out on the clock: it starts a quarter of ``job_seconds`` after the close, the first chunk of 200
rows is written after half of it, and the rest follows at ``rows_per_second``. ``advance`` catches up with the clock, so
records change at their time whether or not anybody polls.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from cdcsync.sandbox.books import Books
from cdcsync.sandbox.crm import Response, json_response
from cdcsync.sandbox.faults import Faults
from cdcsync.sandbox.salesforce_errors import ApiError, RowError, not_found
from cdcsync.sandbox.salesforce_ids import SHORT, canonical
from cdcsync.sandbox.salesforce_jobs import BATCH, CHUNK, DELIMITERS, ENDINGS, FINISHED, Job
from cdcsync.sandbox.salesforce_locks import RowLocks
from cdcsync.sandbox.salesforce_quota import Quota
from cdcsync.sandbox.salesforce_rows import HeaderError, read_cells, read_header
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Store, index_key
from cdcsync.sandbox.salesforce_values import Stored
from cdcsync.sandbox.salesforce_writes import Transaction, repeated

PREFIX: Final = "750"
OPERATIONS: Final = ("insert", "update", "upsert", "delete", "hardDelete")
JOBS_PAGE: Final = 1_000
RESULTS: Final = frozenset({"successfulResults", "failedResults", "unprocessedrecords"})


class Bulk:
    """All ingest jobs of the org."""

    def __init__(
        self,
        store: Store,
        books: Books,
        faults: Faults,
        settings: Mapping[str, Any],
        *,
        locks: RowLocks,
        batches: Quota,
        version_field: Callable[[str], str | None],
    ) -> None:
        self._store = store
        self._books = books
        self._faults = faults
        self._settings = settings
        self._locks = locks
        self._batches = batches
        self._version_field = version_field
        self._jobs: dict[str, Job] = {}
        self._running: list[Job] = []
        self._dice = random.Random(0)

    def clear(self) -> None:
        """Forget all jobs."""
        self._jobs.clear()
        self._running.clear()

    def reseed(self, seed: int) -> None:
        """Restart the dice that order batches and results."""
        self._dice.seed(seed)

    def object_of(self, job_id: str) -> str | None:
        """Name the object of a job, lower case."""
        job = self._jobs.get(canonical(job_id) or "")
        return job.entity.name.lower() if job else None

    # The HTTP side.

    def create(self, raw: Any, user: str, version: float, now: float) -> Response:
        """``POST /jobs/ingest``."""
        if not isinstance(raw, dict):
            raise ApiError(400, "JSON_PARSER_ERROR", "Can not deserialize: unexpected array")
        operation = _choice(raw, "operation", OPERATIONS, None)
        ending = _choice(raw, "lineEnding", tuple(ENDINGS), "LF")
        delimiter = _choice(raw, "columnDelimiter", tuple(DELIMITERS), "COMMA")
        _choice(raw, "contentType", ("CSV",), "CSV")
        entity = self._store.schema.entity(str(raw.get("object", "")))
        if entity is None:
            raise ApiError(400, "INVALIDJOB", f"InvalidJob : Unable to find object: {raw.get('object')}")
        if operation == "hardDelete":
            message = "hardDelete operation requires special user profile permission, please contact your administrator"
            raise ApiError(400, "FEATURENOTENABLED", f"FeatureNotEnabled : {message}")
        key_field = _key_field(entity, raw.get("externalIdFieldName")) if operation == "upsert" else None
        if not self._batches.remaining(now):
            raise ApiError(400, "EXCEEDEDQUOTA", "ExceededQuota : ApiBatchItems Limit exceeded.")
        job = Job(self._store.new_id(PREFIX), entity, operation, key_field, ending, delimiter, version, user, now)
        self._jobs[job.id] = job
        return json_response(200, job.as_json(full=False) | job.format())

    def upload(self, job_id: str, body: bytes) -> Response:
        """``PUT /jobs/ingest/{id}/batches``: the content is not looked at."""
        job = self._job(job_id)
        if job.state != "Open":
            raise ApiError(400, "INVALIDJOBSTATE", f"InvalidJobState : Job state {job.state} does not allow an upload")
        if job.data is not None:
            message = (
                f"Found multiple contents for job: <{job.id[:SHORT]}>, please 'Close' / 'Abort' / 'Delete' the current "
                "Job then create a new Job and make sure you only do 'PUT' once on a given Job."
            )
            raise ApiError(400, "BULK_API_ERROR", message)
        job.data = body
        return Response(201, records=max(0, body.count(b"\n") - 1))

    def change(self, job_id: str, raw: Any, now: float) -> Response:
        """``PATCH /jobs/ingest/{id}``: close or abort."""
        job = self._job(job_id)
        match raw.get("state") if isinstance(raw, dict) else None:
            case "UploadComplete":
                self._close(job, now)
            case "Aborted":
                if job.state in FINISHED:
                    raise ApiError(400, "INVALIDJOBSTATE", "Aborting already Completed Job not allowed")
                self._finish(job, "Aborted", now)
            case state:
                raise ApiError(400, "API_ERROR", f"Invalid value: '{state or ''}' supplied for property: 'state'")
        return json_response(200, job.as_json(full=False))

    def show(self, job_id: str) -> Response:
        """``GET /jobs/ingest/{id}``."""
        return json_response(200, self._job(job_id).as_json(full=True))

    def list(self, query: Mapping[str, str], root: str) -> Response:
        """``GET /jobs/ingest``: jobs of all users, a page at a time."""
        locator = query.get("queryLocator", "0")
        start = int(locator) if locator.isdigit() else 0
        wanted = [job for job in self._jobs.values() if query.get("jobType", "V2Ingest") == "V2Ingest"]
        done = start + JOBS_PAGE >= len(wanted)
        shown = [
            job.as_json(full=False) | job.format() | {"jobType": "V2Ingest"}
            for job in wanted[start : start + JOBS_PAGE]
        ]
        more = None if done else f"{root}/jobs/ingest?jobType=V2Ingest&queryLocator={start + JOBS_PAGE}"
        return json_response(200, {"done": done, "records": shown, "nextRecordsUrl": more})

    def delete(self, job_id: str) -> Response:
        """``DELETE /jobs/ingest/{id}``."""
        job = self._job(job_id)
        if job.state in {"Open", "InProgress"}:
            raise ApiError(400, "INVALIDJOBSTATE", f"InvalidJobState : Deleting a job in state {job.state} not allowed")
        if job in self._running:
            self._running.remove(job)
        del self._jobs[job.id]
        return Response(204)

    def results(self, job_id: str, kind: str) -> Response:
        """``GET /jobs/ingest/{id}/successfulResults`` and its two sisters."""
        job = self._job(job_id)
        if kind not in RESULTS:
            raise not_found()
        if job.state not in FINISHED:
            raise ApiError(400, "INVALIDJOBSTATE", f"InvalidJobState : results are not available in state {job.state}")
        return Response(200, job.results(kind, self._dice), {"Content-Type": "text/csv"})

    def _job(self, job_id: str) -> Job:
        job = self._jobs.get(canonical(job_id) or "")
        if job is None:
            raise not_found()
        return job

    def _close(self, job: Job, now: float) -> None:
        if job.state != "Open":
            raise ApiError(400, "INVALIDJOBSTATE", "Closing already Completed Job not allowed")
        job.state = "UploadComplete"
        job.clock = job.modified = now
        job.stuck = self._faults.strike({"stuck_job"}, "PATCH", job.path, {job.entity.name.lower()})
        self._running.append(job)

    # The work.

    def advance(self, now: float) -> None:
        """Do all jobs' work that is due by ``now``, in the order of its times."""
        for job in self._running:
            if job.stuck and job.stuck in self._faults.rules:
                job.clock = now - self._overhead / 4 - job.done * CHUNK / self._pace
        while True:
            due = min(((self._due(job), number) for number, job in enumerate(self._running)), default=None)
            if due is None or due[0] > now:
                return
            self._step(self._running[due[1]], due[0])

    @property
    def _overhead(self) -> float:
        return float(self._settings["job_seconds"])

    @property
    def _pace(self) -> float:
        return max(float(self._settings["rows_per_second"]), 0.001)

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
            self._finish(job, "JobComplete", now)

    def _open(self, job: Job, now: float) -> None:
        """Read the upload; what is wrong with the file or its header fails the job before any row."""
        try:
            job.read()
            job.columns = read_header(self._store, job.entity, job.header)
        except HeaderError as refused:
            job.error = str(refused)
        if job.operation == "delete" and [name.lower() for name in job.header] != ["id"]:
            job.error = "InvalidBatch : The 'delete' batch must contain only ids"
        if not job.error and not self._batches.take(now, max(1, -(-len(job.rows) // BATCH))):
            job.error = "ExceededQuota : ApiBatchItems Limit exceeded."
        job.cut(self._dice)
        if job.error:
            self._finish(job, "Failed", now)

    def _finish(self, job: Job, state: Literal["JobComplete", "Failed", "Aborted"], now: float) -> None:
        job.state = state
        job.modified = now
        if job in self._running:
            self._running.remove(job)
        if state == "Aborted" and job.data is not None and not job.header:
            self._read_unprocessed(job)
        job.data = None

    def _read_unprocessed(self, job: Job) -> None:
        """Have the rows of an aborted job that was never begun ready for ``unprocessedrecords``."""
        try:
            job.read()
        except HeaderError:
            return
        job.cut(self._dice)

    def _work(self, job: Job, chunk: range, now: float) -> None:
        """Write one chunk: a transaction in which each row succeeds or fails alone."""
        lock = self._locks.of(job.id, "PATCH", job.path, now, now + len(chunk) / self._pace)
        writes = Transaction(self._store, self._books, self._version_field, now, job.user, lock)
        parsed = [self._parse(job, number) for number in chunk]
        doubled = repeated(_identity(job, row) for row in parsed)
        for number, row in zip(chunk, parsed, strict=True):
            identity = _identity(job, row)
            try:
                if isinstance(row, RowError):
                    raise row
                if identity in doubled:
                    raise _doubled(job, row)
                job.successes.append((*_write(job, writes, row), number))
            except RowError as refused:
                job.failures.append((self._known_id(job, row), refused.as_cell(), number))
        writes.commit()

    def _parse(self, job: Job, number: int) -> dict[str, Stored] | RowError:
        cells = job.rows[number]
        if cells is None or len(cells) != len(job.header):
            return RowError("INVALID_FIELD", "The row is not well-formed CSV, or has not as many cells as the header")
        try:
            return read_cells(self._store, job.columns, cells)
        except RowError as refused:
            return refused

    def _known_id(self, job: Job, row: dict[str, Stored] | RowError) -> str:
        if isinstance(row, RowError) or job.operation == "insert":
            return ""
        if job.key_field is None:
            return str(row.get("Id") or "")
        key = row.get(job.key_field.name)
        found = self._store.find(job.entity, job.key_field, key) if key is not None else []
        return found[0] if len(found) == 1 else ""


def _choice(raw: Mapping[str, Any], name: str, known: tuple[str, ...], default: str | None) -> str:
    value = raw.get(name, default)
    if value not in known:
        raise ApiError(400, "API_ERROR", f"Invalid value: '{value or ''}' supplied for property: '{name}'")
    return str(value)


def _key_field(entity: Entity, name: object) -> Field:
    member = entity.field(name) if isinstance(name, str) else None
    if not name:
        message = f"InvalidJob : External ID was blank for {entity.name}. An External ID must be specified for upsert."
        raise ApiError(400, "INVALIDJOB", message)
    if member is None or not member.matchable:
        message = f"InvalidJob : Field name provided, {name} does not match an External ID for {entity.name}"
        raise ApiError(400, "INVALIDJOB", message)
    return member


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
