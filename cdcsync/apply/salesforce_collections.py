"""sObject Collections: up to 200 records in a request, each judged for itself.

Results come in the order sent. A request that cannot be parsed is refused as a whole. Upsert by an external id, update
and delete by id may all be repeated after a lost answer.
Source: REST API Developer Guide, "Use sObject Collections".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from cdcsync.apply.bisect import isolate
from cdcsync.apply.salesforce_errors import result
from cdcsync.apply.salesforce_objects import Objects
from cdcsync.apply.salesforce_query import Finder
from cdcsync.apply.salesforce_session import SalesforceSession
from cdcsync.apply.salesforce_values import JsonForm, unsendable
from cdcsync.errors import DestinationError, FatalError, TransientError
from cdcsync.model import Batch, Missing, Op, Outcome, Record, Rejected, Retry

BATCH: Final = 200
"""Records of one request."""
PATH: Final = "composite/sobjects"


class Collections:
    """Writes batches."""

    def __init__(self, session: SalesforceSession, objects: Objects, finder: Finder) -> None:
        self._session = session
        self._objects = objects
        self._finder = finder

    def send(self, batch: Batch) -> list[Outcome]:
        """Write at most 200 records, in one request as far as Salesforce lets us; what has no form is not sent."""
        outcomes: list[Outcome | None] = [unsendable(record) for record in batch.records]
        sent = tuple(record for record, outcome in zip(batch.records, outcomes, strict=True) if outcome is None)
        answers = iter(isolate(self._write, replace(batch, records=sent)))
        return self.confirmed(batch, [outcome or next(answers) for outcome in outcomes])

    def send_rest(self, batch: Batch) -> list[Outcome]:
        """Send records after others that belong with them: an error would have to mean that nothing was done.

        Raises TransientError, which does not mean that.
        """
        try:
            return self.send(batch)
        except TransientError:
            raise
        except DestinationError as error:
            return [Retry(error.code, error.message)] * len(batch.records)

    def confirmed(self, batch: Batch, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Tell records that are not there from those that refer to something that is not; both are reported alike."""
        missing = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, Missing)}
        judged = list(outcomes)
        if not missing:
            return judged
        try:
            there = self._finder.existing(batch.target.object, [batch.records[place].crm_id or "" for place in missing])
        except TransientError:
            raise
        except DestinationError as error:  # other records of the batch are written
            judged[:] = [Retry(error.code, error.message) if place in missing else o for place, o in enumerate(judged)]
            return judged
        for place, outcome in missing.items():
            if batch.records[place].crm_id in there:
                judged[place] = Rejected("INVALID_CROSS_REFERENCE_KEY", outcome.message)
        return judged

    def _write(self, batch: Batch) -> list[Outcome]:
        try:
            return self._delete(batch) if batch.op is Op.DELETE else self._patch(batch)
        except FatalError:
            self._objects.forget(batch.target.object)  # a field may have come or gone
            raise

    def _patch(self, batch: Batch) -> list[Outcome]:
        target = batch.target
        form = JsonForm(target, self._objects.shape(target.object), self._objects.key_field)
        if batch.op is Op.UPSERT:
            path, write = f"{PATH}/{target.object}/{target.key_field}", form.upsert
        else:
            path, write = PATH, form.update
        return self._request("PATCH", path, batch, _body(batch.records, write))

    def _delete(self, batch: Batch) -> list[Outcome]:
        ids = ",".join(record.crm_id or "" for record in batch.records)
        return self._request("DELETE", f"{PATH}?ids={ids}&allOrNone=false", batch, None)

    def _request(self, method: str, path: str, batch: Batch, body: str | None) -> list[Outcome]:
        entries = self._session.call(method, path, body, records=True).json()
        if not isinstance(entries, list) or len(entries) != len(batch.records):
            raise TransientError("Salesforce did not answer with one result for each record")
        return [result(batch.op, entry) for entry in entries]


def _body(records: Sequence[Record], write: Callable[[Record], str]) -> str:
    return f'{{"allOrNone":false,"records":[{",".join(map(write, records))}]}}'
