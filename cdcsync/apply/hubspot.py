"""HubSpot as a destination: batches of 100 records through the vendor's client, and their associations.

How a batch can fail decides the shape of this: an upsert whose inputs carry distinct trace ids reports bad rows one by
one (207); updates, conflicts of unique values and duplicate ids refuse the whole batch (400, 409), which is then halved
until the bad row stands alone. Upsert by a unique property, update, archive and associations may all be repeated
after a lost answer, so nothing here remembers anything. Sources: HubSpot's error handling page and recorded traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from cdcsync.apply.base import Finding, Gate, Limits, Wanted
from cdcsync.apply.hubspot_check import Checker
from cdcsync.apply.hubspot_links import Linker, changes
from cdcsync.apply.hubspot_rows import NOT_FOUND, found, sort
from cdcsync.apply.hubspot_session import HubspotSession
from cdcsync.apply.hubspot_values import comparable, is_date, properties
from cdcsync.config import HubspotConfig
from cdcsync.errors import BatchRejectedError
from cdcsync.model import Applied, Batch, Missing, Op, Outcome, Record, Rejected, Retry, Target

BATCH: Final = 100
"""Inputs of an object batch call."""


class HubspotDestination:
    """One HubSpot account; implements ``apply.base.Destination``. ``open`` before anything else."""

    def __init__(self, name: str, config: HubspotConfig, gate: Gate) -> None:
        self.name = name
        self.limits = Limits(batch=dict.fromkeys(Op, BATCH), max_parallel=config.max_parallel)
        self._session = HubspotSession(config, gate)
        self._linker = Linker(self._session)
        self._datetimes: dict[str, frozenset[str]] = {}

    def open(self) -> None:
        """Log in: get a token (OAuth), or try the one that was given.

        Raises CredentialsError, FatalError, TransientError or RateLimitedError.
        """
        self._session.authenticate()

    def close(self) -> None:
        """Drop connections."""
        self._session.close()

    def check(self, wanted: Sequence[Wanted]) -> list[Finding]:
        """Compare the mappings with HubSpot's properties and association types. Writes nothing."""
        return Checker(self._session, self._linker.types).findings(wanted)

    def find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Look up records by their unique property, consistently at once; answers key → record id."""
        ids: dict[str, str] = {}
        distinct = list(dict.fromkeys(comparable(target.key_field, key) for key in keys if key))
        for start in range(0, len(distinct), BATCH):
            ids |= self._find(target, distinct[start : start + BATCH])
        return {key: ids[name] for key in keys if (name := comparable(target.key_field, key)) in ids}

    def send(self, batch: Batch) -> list[Outcome]:
        """Write one batch, then the association changes of the records that were written."""
        if not batch.records:
            return []
        if batch.op is Op.DELETE:
            return self._archive(batch)
        outcomes = self._write(batch)
        for change in changes(batch.records, outcomes):
            for place, rejected in self._linker.carry_out(batch.target.object, change).items():
                outcomes[place] = rejected
        return outcomes

    def _write(self, batch: Batch) -> list[Outcome]:
        method = self._session.objects.upsert if batch.op is Op.UPSERT else self._session.objects.update
        instants = self._instants(batch)
        inputs = [_input(batch, record, place, instants) for place, record in enumerate(batch.records)]
        try:
            answer = self._session.call(method, batch.target.object, {"inputs": inputs})
        except BatchRejectedError as refusal:
            if len(batch.records) == 1:
                return [Rejected(refusal.reason, refusal.message, refusal.field)]
            first, second = _halves(batch)
            return self._write(first) + self._write(second)
        sorted_ = sort(batch, answer)
        return [
            sorted_.outcomes.get(place) or self._unanswered(batch, record, stray=sorted_.stray)
            for place, record in enumerate(batch.records)
        ]

    def _instants(self, batch: Batch) -> frozenset[str]:
        """Name the object's datetime properties; HubSpot is asked once for each object, if a date is to be written."""
        name = batch.target.object
        if name not in self._datetimes and any(is_date(v) for record in batch.records for v in record.fields.values()):
            answer = self._session.call(self._session.properties.get_all, name)
            self._datetimes[name] = frozenset(
                entry["name"] for entry in answer.get("results", []) if entry.get("type") == "datetime"
            )
        return self._datetimes.get(name, frozenset())

    def _unanswered(self, batch: Batch, record: Record, *, stray: bool) -> Outcome:
        """Settle a record that the answer does not name: alone, its answer can only be its own."""
        if stray:
            return self._write(replace(batch, records=(record,)))[0]
        if batch.op is Op.UPDATE and not self._exists(batch.target, record):
            return Missing(f"HubSpot has no record {record.crm_id} (any more)")
        return Retry("UNANSWERED", "HubSpot's answer to the batch says nothing about this record")

    def _archive(self, batch: Batch) -> list[Outcome]:
        inputs = [{"id": record.crm_id} for record in batch.records]
        try:
            self._session.call(self._session.objects.archive, batch.target.object, {"inputs": inputs})
        except BatchRejectedError as refusal:
            if len(batch.records) == 1:
                return [_gone_or_rejected(refusal)]
            first, second = _halves(batch)
            return self._archive(first) + self._archive(second)
        return [Applied(record.crm_id) for record in batch.records]

    def _exists(self, target: Target, record: Record) -> bool:
        body = {"inputs": [{"id": record.crm_id}], "properties": [target.key_field]}
        return bool(self._session.call(self._session.objects.read, target.object, body).get("results"))

    def _find(self, target: Target, keys: Sequence[str]) -> dict[str, str]:
        """Read by unique property; a contact found by another of its addresses answers with its first one."""
        body = {
            "idProperty": target.key_field,
            "inputs": [{"id": key} for key in keys],
            "properties": [target.key_field],
        }
        ids = found(self._session.call(self._session.objects.read, target.object, body), target.key_field)
        known = {key: ids[key] for key in keys if key in ids}
        if target.key_field != "email" or known.keys() == ids.keys():
            return known
        if len(keys) == 1:
            return {keys[0]: next(iter(ids.values()))}
        for key in keys:
            if key not in known:
                known |= self._find(target, [key])
        return known


def _input(batch: Batch, record: Record, place: int, instants: frozenset[str]) -> dict[str, Any]:
    fields = properties(batch.target, record, instants)
    if batch.op is Op.UPDATE:
        return {"id": record.crm_id, "properties": fields, "objectWriteTraceId": str(place)}
    return {
        "id": record.key,
        "idProperty": batch.target.key_field,
        "properties": fields,
        "objectWriteTraceId": str(place),
    }


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    middle = len(batch.records) // 2
    return replace(batch, records=batch.records[:middle]), replace(batch, records=batch.records[middle:])


def _gone_or_rejected(refusal: BatchRejectedError) -> Outcome:
    """Count a delete of what is not there as done."""
    return Applied(None) if refusal.reason == NOT_FOUND else Rejected(refusal.reason, refusal.message, refusal.field)
