"""Bulk 2.0 ingest over HTTP (facts 3): creating, filling, closing, listing and reading jobs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

from cdcsync.sandbox.crm import Response, json_response
from cdcsync.sandbox.salesforce_errors import ApiError, not_found
from cdcsync.sandbox.salesforce_ids import SHORT, canonical
from cdcsync.sandbox.salesforce_jobs import DELIMITERS, ENDINGS, FINISHED, Job
from cdcsync.sandbox.salesforce_quota import Quota
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Store
from cdcsync.sandbox.salesforce_work import Work

PREFIX: Final = "750"
OPERATIONS: Final = ("insert", "update", "upsert", "delete", "hardDelete")
JOBS_PAGE: Final = 1_000
LARGEST_UPLOAD: Final = 150_000_000 * 3 // 4  # bytes: the limit is on their base64 form
RESULTS: Final = frozenset({"successfulResults", "failedResults", "unprocessedrecords"})


class Bulk:
    """All ingest jobs of the org."""

    def __init__(self, store: Store, batches: Quota, work: Work) -> None:
        self._store = store
        self._batches = batches
        self._work = work
        self._jobs: dict[str, Job] = {}
        self._dice = random.Random(0)

    def clear(self) -> None:
        """Forget all jobs."""
        self._jobs.clear()
        self._work.clear()

    def reseed(self, seed: int) -> None:
        """Restart the dice that order batches and results."""
        self._dice.seed(seed)
        self._work.dice.seed(seed)

    def object_of(self, job_id: str) -> str | None:
        """Name the object of a job, lower case."""
        job = self._jobs.get(canonical(job_id) or "")
        return job.entity.name.lower() if job else None

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
        if len(body) > LARGEST_UPLOAD:
            raise ApiError(413, "REQUEST_TOO_LARGE", "The upload is larger than 150 MB")  # code and words are a guess
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
                self._work.finish(job, "Aborted", now)
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
        self._work.drop(job)
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
        self._work.begin(job, now)


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
