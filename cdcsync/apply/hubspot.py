"""HubSpot as a destination: batches of 100 records through the vendor's client, and their associations.

How a batch can fail decides the shape of this: an upsert whose inputs carry distinct trace ids reports bad rows one by
one (207); updates, conflicts of unique values and duplicate ids refuse the whole batch (400, 409). Upsert by a unique
property, update, archive and associations may all be repeated after a lost answer, so nothing here remembers anything.
An id from before a merge names the survivor, which may be another row's record: an update goes by the key where it can.
Sources: HubSpot's error handling page and recorded traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cdcsync.apply.base import Finding, Gate, Limits, Wanted
from cdcsync.apply.bisect import isolate
from cdcsync.apply.hubspot_check import Checker
from cdcsync.apply.hubspot_links import Linker, changes
from cdcsync.apply.hubspot_lookup import BATCH, Lookup
from cdcsync.apply.hubspot_rows import NOT_FOUND, sort
from cdcsync.apply.hubspot_session import HubspotSession
from cdcsync.apply.hubspot_values import ADDRESS, is_date, properties
from cdcsync.config import HubspotConfig
from cdcsync.errors import BatchRejectedError
from cdcsync.model import Applied, Batch, Missing, Op, Outcome, Record, Retry, Target


class HubspotDestination:
    """One HubSpot account; implements ``apply.base.Destination``. ``open`` before anything else."""

    def __init__(self, name: str, config: HubspotConfig, gate: Gate) -> None:
        self.name = name
        self.limits = Limits(batch=dict.fromkeys(Op, BATCH), max_parallel=config.max_parallel, ids_merge=True)
        self._session = HubspotSession(config, gate)
        self._lookup = Lookup(self._session)
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
        return self._lookup.by_key(target, keys)

    def read(self, target: Target, crm_ids: Sequence[str], fields: Sequence[str]) -> dict[str, dict[str, object]]:
        """Read properties by record id; an id from before a merge is answered with what its record holds now."""
        return self._lookup.values(target, crm_ids, fields)

    def send(self, batch: Batch) -> list[Outcome]:
        """Write one batch, then the association changes of the records that were written."""
        if batch.op is Op.DELETE:
            return isolate(self._archive, batch)
        outcomes = self._update(batch) if batch.op is Op.UPDATE else isolate(self._write, batch)
        for change in changes(batch.records, outcomes):
            for place, rejected in self._linker.carry_out(batch.target.object, change).items():
                outcomes[place] = rejected
        return outcomes

    def _update(self, batch: Batch) -> list[Outcome]:
        """Update those by id whose key changes, and the others by their key, in a request of each kind."""
        outcomes: dict[int, Outcome] = {}
        records = dict(enumerate(batch.records))
        if batch.target.key_field == ADDRESS:
            records = self._by_address(batch)
        for rekeyed in (True, False):
            part = {place: record for place, record in records.items() if record.rekeyed is rekeyed}
            outcomes |= zip(part, isolate(self._write, replace(batch, records=tuple(part.values()))), strict=True)
        return [outcomes.get(place) or _missing(batch.target, record) for place, record in enumerate(batch.records)]

    def _by_address(self, batch: Batch) -> dict[int, Record]:
        """Look up which ids contacts have now, by their place: HubSpot refuses an update by address."""
        keys = [record.key for record in batch.records if not record.rekeyed]
        ids = self._lookup.by_key(batch.target, keys)
        return {
            place: record if record.rekeyed else replace(record, crm_id=ids[record.key], rekeyed=True)
            for place, record in enumerate(batch.records)
            if record.rekeyed or record.key in ids
        }

    def _write(self, batch: Batch) -> list[Outcome]:
        """Write records in one request; updates must be all ``rekeyed``, or none."""
        method = self._session.objects.upsert if batch.op is Op.UPSERT else self._session.objects.update
        instants = self._instants(batch)
        inputs = [_input(batch, record, place, instants) for place, record in enumerate(batch.records)]
        sorted_ = sort(batch, self._session.call(method, batch.target.object, {"inputs": inputs}))
        return [
            sorted_.outcomes.get(place) or self._unanswered(batch, record, stray=sorted_.stray)
            for place, record in enumerate(batch.records)
        ]

    def _instants(self, batch: Batch) -> frozenset[str]:
        """Name the object's datetime properties; HubSpot is asked once for each object, if a date is to be written."""
        name = batch.target.object
        if name not in self._datetimes and any(is_date(v) for record in batch.records for v in record.fields.values()):
            answer = self._session.ask(self._session.properties.get_all, name)
            self._datetimes[name] = frozenset(
                entry["name"] for entry in answer.get("results", []) if entry.get("type") == "datetime"
            )
        return self._datetimes.get(name, frozenset())

    def _unanswered(self, batch: Batch, record: Record, *, stray: bool) -> Outcome:
        """Settle a record that the answer does not name: alone, its answer can only be its own."""
        if stray:
            return isolate(self._write, replace(batch, records=(record,)))[0]
        if batch.op is Op.UPDATE and not self._is_there(batch.target, record):
            return _missing(batch.target, record)
        return Retry("UNANSWERED", "HubSpot's answer to the batch says nothing about this record")

    def _is_there(self, target: Target, record: Record) -> bool:
        if record.rekeyed:
            return self._lookup.exists(target, record.crm_id or "")
        return bool(self._lookup.by_key(target, [record.key]))

    def _archive(self, batch: Batch) -> list[Outcome]:
        inputs = [{"id": record.crm_id} for record in batch.records]
        try:
            self._session.call(self._session.objects.archive, batch.target.object, {"inputs": inputs})
        except BatchRejectedError as refusal:
            if len(batch.records) == 1 and refusal.reason == NOT_FOUND:
                return [Applied(None)]  # what is not there is deleted
            raise
        return [Applied(record.crm_id) for record in batch.records]


def _missing(target: Target, record: Record) -> Missing:
    name = record.crm_id if record.rekeyed else f"with {target.key_field} {record.key}"
    return Missing(f"HubSpot has no record {name} (any more)")


def _input(batch: Batch, record: Record, place: int, instants: frozenset[str]) -> dict[str, Any]:
    fields = properties(batch.target, record, instants)
    if batch.op is Op.UPDATE and record.rekeyed:
        return {"id": record.crm_id, "properties": fields, "objectWriteTraceId": str(place)}
    return {
        "id": record.key,
        "idProperty": batch.target.key_field,
        "properties": fields,
        "objectWriteTraceId": str(place),
    }
