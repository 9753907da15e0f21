"""Bulk API 2.0 ingest jobs, step by step. Every step may be repeated: what was done already is recognised.

A second upload is refused ("Found multiple contents"), as is a second close; then the job's own state says where it
is. Source: Bulk API 2.0 and Bulk API Developer Guide, chapter 2.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from cdcsync.apply.salesforce_csv import CREATED, ERROR, Result, read
from cdcsync.apply.salesforce_errors import BATCHES, refusal
from cdcsync.apply.salesforce_session import SalesforceSession
from cdcsync.errors import TransientError
from cdcsync.model import JobStatus, Op, Target

INGEST: Final = "jobs/ingest"
CSV: Final = "text/csv; charset=UTF-8"
ROWS_PER_BATCH: Final = 10_000
"""Salesforce cuts a job into batches of this many rows; an org has 15,000 batches in 24 hours."""
SKEW: Final = 5.0
"""Seconds that a job may seem older than the moment before it was made: clocks differ, and its time is a whole one."""
USER_ID: Final = 15
"""Characters of an id that tell it from others; the three more of the long form are a checksum."""
REFUSED: Final = 400
NO_SUCH: Final = 404
SEVERAL: Final = "Found multiple contents"
STATES: Final[Mapping[str, Literal["open", "running", "done", "failed", "aborted"]]] = {
    "Open": "open",
    "UploadComplete": "running",
    "InProgress": "running",
    "JobComplete": "done",
    "Failed": "failed",
    "Aborted": "aborted",
}
PASSING: Final = (
    "ExceededQuota",
    "TooManyLockFailure",
    "Timeout",
    "InvalidSessionId",
    "InternalServerError",
    "Unknown",
)
"""What a failed job's message starts with if its rows may be sent again as they are."""


class IngestJobs:
    """The jobs of one org."""

    def __init__(self, session: SalesforceSession) -> None:
        self._session = session

    def create(self, target: Target, op: Op) -> str:
        """Create a job; returns its id."""
        body = {**_kind(target, op), "contentType": "CSV", "lineEnding": "LF", "columnDelimiter": "COMMA"}
        answer = self._session.call("POST", INGEST, json.dumps(body)).object()
        if not answer.get("id"):
            raise TransientError("Salesforce created a bulk job without an id")
        return str(answer["id"])

    def find(self, target: Target, op: Op, since: float) -> str | None:
        """Find the newest open job like that which our user made at or after ``since`` (Unix time)."""
        kind = {name: value.lower() for name, value in _kind(target, op).items()}
        user = self._session.user_id[:USER_ID]
        found: list[tuple[float, str]] = []
        for job in self._listed():
            same = all(str(job.get(name, "")).lower() == value for name, value in kind.items())
            ours = str(job.get("createdById", ""))[:USER_ID] == user and bool(user)
            created = _created(job)
            if same and ours and job.get("state") == "Open" and created >= since - SKEW:
                found.append((created, str(job["id"])))
        return max(found, default=(0.0, None))[1]

    def upload(self, job: str, content: bytes, rows: int) -> None:
        """Upload the CSV; a job that has it, or is not there any more (see ``poll``), is left as it is.

        Raises BatchRejectedError if the content is refused.
        """
        self._session.batches_sent(-(-rows // ROWS_PER_BATCH))
        accept = frozenset({REFUSED, NO_SUCH})
        path = f"{INGEST}/{job}/batches"
        answer = self._session.call("PUT", path, content, content_type=CSV, accept=accept, records=True)
        if answer.status == REFUSED and SEVERAL not in answer.text and self._is_open(job):
            raise refusal(answer)

    def close(self, job: str) -> None:
        """Start the work on what was uploaded."""
        self._set_state(job, "UploadComplete")

    def abort(self, job: str) -> None:
        """Give up a job that was not closed; one that is beyond that is left as it is."""
        self._set_state(job, "Aborted")

    def poll(self, job: str) -> JobStatus:
        """Ask for a job's state."""
        answer = self._session.call("GET", f"{INGEST}/{job}", accept=frozenset({NO_SUCH}))
        if answer.status == NO_SUCH:
            return JobStatus("missing")
        body = answer.object()
        state, message = STATES.get(str(body.get("state"))), str(body.get("errorMessage") or "")
        if state is None:
            raise TransientError(f"Salesforce answered a job's state with {body.get('state')!r}")
        processed, failed = (int(body.get(f"numberRecords{what}") or 0) for what in ("Processed", "Failed"))
        if state == "failed" and message.startswith(PASSING):
            state = "aborted"  # nothing is wrong with the job or its rows
            if BATCHES in message:
                self._session.batches_used_up()
        return JobStatus(state, processed, failed, message)

    def successes(self, job: str, match: str) -> Iterator[Result]:
        """Read the rows that were written; ``match`` names the column that identifies them."""
        return read(self._session.call("GET", f"{INGEST}/{job}/successfulResults").content, match, CREATED)

    def failures(self, job: str, match: str) -> Iterator[Result]:
        """Read the rows that were refused."""
        return read(self._session.call("GET", f"{INGEST}/{job}/failedResults").content, match, ERROR)

    def _set_state(self, job: str, state: str) -> None:
        accept = frozenset({REFUSED, NO_SUCH})
        answer = self._session.call("PATCH", f"{INGEST}/{job}", json.dumps({"state": state}), accept=accept)
        if answer.status == REFUSED and self._is_open(job):
            error = refusal(answer)  # which cannot be about rows
            raise TransientError(f"Salesforce refuses to set job {job} to {state}: {error.message}") from error

    def _is_open(self, job: str) -> bool:
        """Tell whether a step was refused for another reason than that the job is beyond it."""
        return self.poll(job).state == "open"

    def _listed(self) -> Iterator[Mapping[str, Any]]:
        path: str | None = f"{INGEST}?jobType=V2Ingest"
        while path is not None:
            page = self._session.call("GET", path).object()
            yield from (job for job in page.get("records", ()) if isinstance(job, dict))
            path = None if page.get("done", True) else str(page["nextRecordsUrl"])


def _kind(target: Target, op: Op) -> dict[str, str]:
    kind = {"object": target.object, "operation": op.value}
    return kind | {"externalIdFieldName": target.key_field} if op is Op.UPSERT else kind


def _created(job: Mapping[str, Any]) -> float:
    """Read ``2018-12-10T17:50:19.000+0000`` as Unix time; 0 if it is something else."""
    try:
        return dt.datetime.fromisoformat(str(job.get("createdDate"))).timestamp()
    except ValueError:
        return 0.0
