"""Salesforce as a destination: Collections for up to 200 records a request, Bulk 2.0 jobs for thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cdcsync.apply import salesforce_csv as form
from cdcsync.apply.base import Finding, Gate, Limits, Wanted
from cdcsync.apply.salesforce_check import Checker
from cdcsync.apply.salesforce_collections import BATCH, Collections
from cdcsync.apply.salesforce_errors import failed, read_cell
from cdcsync.apply.salesforce_jobs import IngestJobs
from cdcsync.apply.salesforce_objects import Objects
from cdcsync.apply.salesforce_query import Finder
from cdcsync.apply.salesforce_session import SalesforceSession
from cdcsync.config import SalesforceConfig
from cdcsync.model import Applied, Batch, JobStatus, Op, Outcome, Retry, Target

BULK_FROM: Final = 2_000
"""Rows from which Salesforce advises Bulk 2.0; counted in requests it is cheaper from about 1,200."""


class SalesforceDestination:
    """One Salesforce org; implements ``apply.base.BulkDestination``. ``open`` before anything else."""

    def __init__(self, name: str, config: SalesforceConfig, gate: Gate) -> None:
        self.name = name
        self.limits = Limits(
            batch=dict.fromkeys(Op, BATCH),
            max_parallel=config.max_parallel,
            bulk_from=config.bulk_from or BULK_FROM,
        )
        self._session = SalesforceSession(config, gate)
        self._objects = Objects(self._session)
        self._finder = Finder(self._session, self._objects)
        self._collections = Collections(self._session, self._objects, self._finder)
        self._jobs = IngestJobs(self._session)

    def open(self) -> None:
        """Log in. Raises CredentialsError, ConfigError (a secret is not there), TransientError or RateLimitedError."""
        self._session.log_in()

    def close(self) -> None:
        """Drop connections."""
        self._session.close()

    def check(self, wanted: Sequence[Wanted]) -> list[Finding]:
        """Compare the mappings with Salesforce's description of its objects. Writes nothing."""
        return Checker(self._objects).findings(wanted)

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Look up records by their external key, letter by letter; answers key → record id."""
        return self._finder.by_key(target, keys)

    def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read fields by id, 2,000 records a request; a checkbox is never empty."""
        return self._finder.values(target.object, crm_ids, fields)

    def send(self, batch: Batch) -> list[Outcome]:
        """Write one batch."""
        return self._collections.send(batch)

    def bulk_create(self, target: Target, op: Op) -> str:
        """Create a job and return its id."""
        return self._jobs.create(target, op)

    def bulk_find(self, target: Target, op: Op, since: float) -> str | None:
        """Find an open job of our user's, created at or after ``since`` (Unix time, less 5 s for the clocks)."""
        return self._jobs.find(target, op, since)

    def bulk_upload(self, job: str, batch: Batch) -> None:
        """Upload what CSV can say, up to 100 MB; ``bulk_results`` looks after the rest."""
        rows = sum(form.fits(batch.op, record) for record in batch.records)
        if rows:
            self._jobs.upload(job, form.write(batch, self._objects.shape(batch.target.object)), rows)
        else:
            self._jobs.abort(job)

    def bulk_close(self, job: str) -> None:
        """Start the job's work."""
        self._jobs.close(job)

    def bulk_abort(self, job: str) -> None:
        """Give up a job that was not closed."""
        self._jobs.abort(job)

    def bulk_poll(self, job: str) -> JobStatus:
        """Ask for the job's state. A job that failed for a passing reason, such as a quota, counts as aborted."""
        return self._jobs.poll(job)

    def bulk_results(self, job: str, batch: Batch) -> list[Outcome]:
        """Read the results; what CSV cannot say is sent by Collections now, and has its outcome from there.

        Rows in neither result file were not processed (or did not fit into the upload), and may be sent again; the
        file of unprocessed rows would say no more.
        """
        fitting = [form.fits(batch.op, record) for record in batch.records]
        places = {form.match_of(batch, record): place for place, record in enumerate(batch.records) if fitting[place]}
        outcomes: dict[int, Outcome] = self._job_outcomes(job, batch, places) if places else {}
        unfit = [place for place, fits in enumerate(fitting) if not fits]
        for start in range(0, len(unfit), BATCH):
            part = unfit[start : start + BATCH]
            records = tuple(batch.records[place] for place in part)
            outcomes.update(zip(part, self._collections.send_rest(replace(batch, records=records)), strict=True))
        unprocessed = Retry("NOT_PROCESSED", "the bulk job ended without this record")
        whole = [outcomes.get(place, unprocessed) for place in range(len(batch.records))]
        return self._collections.confirmed(batch, whole)

    def _job_outcomes(self, job: str, batch: Batch, places: dict[str, int]) -> dict[int, Outcome]:
        column = form.matches_by(batch)
        outcomes: dict[int, Outcome] = {}
        for row in self._jobs.successes(job, column):
            if row.match in places:
                outcomes[places[row.match]] = Applied(row.crm_id or None, created=row.said == "true")
        if len(outcomes) < len(places):
            for row in self._jobs.failures(job, column):
                if row.match in places:
                    outcomes[places[row.match]] = failed(batch.op, read_cell(row.said))
        return outcomes
