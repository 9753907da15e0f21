"""A CRM that is only read: what would be written is told, and answered as if it had been.

The adapter behind it is asked to log in, to check and to look records up, and for nothing else: ``Reads`` has no more.
What the CRM would refuse is therefore not seen. A record that would be made gets an id that no CRM gives.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol, TypeAlias

from cdcsync.apply.base import Finding, Limits, Wanted
from cdcsync.model import Applied, Batch, JobStatus, Op, Outcome, Record, Target

Kind: TypeAlias = Literal["create", "update", "delete"]

MADE: Final = "shadow:"
"""Begins the id of a record that would have been made; no CRM has a colon in its ids."""
CALLS_A_JOB: Final = 10
"""Requests of one bulk job: made, uploaded, closed, looked at some times, three lists of results."""


class Reads(Protocol):
    """The part of an adapter that writes nothing."""

    name: str
    limits: Limits

    def open(self) -> None:
        """Log in."""

    def close(self) -> None:
        """Drop connections."""

    def check(self, wanted: Sequence[Wanted]) -> list[Finding]:
        """Compare what the mappings need with the CRM's own description of its objects."""

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Look up which keys exist."""

    def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read fields by CRM id."""


@dataclass(frozen=True, slots=True)
class Would:
    """What one request, or one bulk job, would have done; ``kinds`` says for each record what it would have been."""

    crm: str
    target: Target
    kinds: Sequence[Kind]
    records: Sequence[Record]
    calls: int


@dataclass(slots=True)
class Tally:
    """What would have been done to an object."""

    kinds: Counter[Kind] = field(default_factory=Counter)
    links: int = 0
    calls: int = 0

    def add(self, would: Would) -> None:
        """Count a request."""
        self.kinds.update(would.kinds)
        self.links += sum(len(record.links) for record in would.records)
        self.calls += would.calls


class DryRun:
    """Implements ``BulkDestination``. ``tell`` is called from the lane's threads, one at a time."""

    def __init__(self, reads: Reads, tell: Callable[[Would], None]) -> None:
        self.name = reads.name
        # The CRM has no record that would have been made: it is not asked whose one is before that would go.
        self.limits = replace(reads.limits, ids_merge=False)
        self.open = reads.open
        self.close = reads.close
        self.check = reads.check
        self.find = reads.find
        self._read = reads.read
        self._tell = tell
        self._turn = threading.Lock()
        self._jobs: dict[str, list[Outcome]] = {}
        self._made = 0

    def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read fields by CRM id; a record that would have been made is not there."""
        real = [crm_id for crm_id in crm_ids if not crm_id.startswith(MADE)]
        return self._read(target, real, fields) if real else {}

    def send(self, batch: Batch) -> list[Outcome]:
        """Tell what would be written, and say that it was."""
        links = {(link.to_object, link.type) for record in batch.records for link in record.links}
        return self._answer(batch, calls=1 + len(links))

    def bulk_create(self, target: Target, op: Op) -> str:
        """Give a job a number."""
        with self._turn:
            self._made += 1
            return f"shadow-{self._made} ({op.value} {target.object})"

    def bulk_find(self, target: Target, op: Op, since: float) -> str | None:  # noqa: ARG002 — a Destination's
        """Find nothing: no job was ever made."""
        return None

    def bulk_upload(self, job: str, batch: Batch) -> None:
        """Tell what would be written."""
        self._jobs[job] = self._answer(batch, calls=CALLS_A_JOB)

    def bulk_close(self, job: str) -> None:
        """Do nothing."""

    def bulk_abort(self, job: str) -> None:
        """Forget a job."""
        self._jobs.pop(job, None)

    def bulk_poll(self, job: str) -> JobStatus:
        """Say that a job is done."""
        return JobStatus("done", processed=len(self._jobs.get(job, ())))

    def bulk_results(self, job: str, batch: Batch) -> list[Outcome]:  # noqa: ARG002 — a Destination's
        """Say what the upload was answered with."""
        return self._jobs.pop(job)

    def _answer(self, batch: Batch, calls: int) -> list[Outcome]:
        ids = self._ids(batch)
        kinds: list[Kind] = [_kind(batch.op, record, ids) for record in batch.records]
        with self._turn:
            self._tell(Would(self.name, batch.target, kinds, batch.records, calls))
        return [
            Applied(record.crm_id or ids.get(record.key) or f"{MADE}{record.key}", created=kind == "create")
            for record, kind in zip(batch.records, kinds, strict=True)
        ]

    def _ids(self, batch: Batch) -> dict[str, str]:
        """Look up the records that we do not know: the CRM may hold some of them."""
        unknown = [record.key for record in batch.records if batch.op is Op.UPSERT and record.crm_id is None]
        return self.find(batch.target, unknown) if unknown else {}


def _kind(op: Op, record: Record, ids: dict[str, str]) -> Kind:
    if op is Op.DELETE:
        return "delete"
    return "create" if op is Op.UPSERT and record.crm_id is None and record.key not in ids else "update"
