"""What the batch endpoints do: create, update, upsert, archive, read; and when part of a batch may fail alone.

Rules (from recorded answers; see the error handling page of the vendor's documentation):

* without a distinct, non-empty trace id on every input a write is all or nothing;
* with them, create and upsert leave the bad inputs out, and answer 207;
* a unique value that collides inside an upsert, and two inputs for one record, fail the whole batch all the same;
* an update leaves out unknown ids, in one grouped entry of a 207.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdcsync.sandbox.hubspot_answers import VALIDATION, Complaint, RefusedError, objects_not_found, refusal_of
from cdcsync.sandbox.hubspot_inputs import Input
from cdcsync.sandbox.hubspot_schema import EMAIL, MORE_EMAILS, ObjectType
from cdcsync.sandbox.hubspot_store import Store, Stored
from cdcsync.sandbox.hubspot_writes import Planned, Planner


@dataclass(frozen=True, slots=True)
class Result:
    """A record as written or read; ``names`` are the properties to show (None: all), ``new`` is set by upserts only."""

    record: Stored
    names: tuple[str, ...] | None = None
    new: bool | None = None


@dataclass(slots=True)
class BatchAnswer:
    """Results in input order, and entries of ``errors``."""

    results: list[Result] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Batches:
    """The batch operations on one store. ``first_stage`` is the life cycle stage of new records, if any."""

    store: Store
    first_stage: str | None = "lead"
    partial_by_email: bool = False

    def create(self, kind: ObjectType, inputs: Sequence[Input], now: float) -> BatchAnswer:
        """Create records."""
        planner = Planner(self.store, kind, self.first_stage, now)
        planned = [planner.plan(None, one.properties) for one in inputs]
        twins = [one.complaint for one in planned if one.complaint and _is_twin(one.complaint)]
        if twins:
            raise refusal_of(twins)
        errors = _row_errors(planned, inputs, partial=_traced(inputs))
        return BatchAnswer([self._write(kind, one, now, show_all=True) for one in planned if not one.complaint], errors)

    def update(self, kind: ObjectType, inputs: Sequence[Input], now: float) -> BatchAnswer:
        """Change records by id, or by a custom unique property."""
        found = [self._addressed(kind, one, "update") for one in inputs]
        _refuse_duplicates(kind, inputs, found)
        planner = Planner(self.store, kind, self.first_stage, now)
        planned = [planner.plan(record, one.properties) for one, record in zip(inputs, found, strict=True) if record]
        complaints = [one.complaint for one in planned if one.complaint]
        if complaints:
            raise refusal_of(complaints)
        answer = BatchAnswer([self._write(kind, one, now) for one in planned])
        unknown = [one.id for one, record in zip(inputs, found, strict=True) if record is None]
        if unknown:
            answer.errors.append(objects_not_found(kind.singular, unknown))
        return answer

    def upsert(self, kind: ObjectType, inputs: Sequence[Input], now: float) -> BatchAnswer:
        """Change the records that have a unique property's value, and create those that are missing."""
        found = [self._addressed(kind, one, "upsert") for one in inputs]
        _refuse_duplicates(kind, inputs, found)
        planner = Planner(self.store, kind, self.first_stage, now)
        planned = [planner.plan(record, _keyed(one, record)) for one, record in zip(inputs, found, strict=True)]
        conflicts = [one.complaint for one in planned if one.complaint and one.complaint.conflict]
        if conflicts:
            raise refusal_of(conflicts)
        by_email = kind.name == "contacts" and any(one.id_property in {EMAIL, MORE_EMAILS} for one in inputs)
        partial = _traced(inputs) and (self.partial_by_email or not by_email)
        errors = _row_errors(planned, inputs, partial=partial)
        return BatchAnswer(
            [self._write(kind, one, now, upsert=True) for one in planned if not one.complaint],
            errors,
        )

    def archive(self, kind: ObjectType, ids: Sequence[str], now: float) -> int:
        """Put records into the recycle bin; unknown ids are ignored. Returns how many there were."""
        count = 0
        for record_id in ids:
            record = self.store.get(kind, record_id)
            if record:
                self.store.archive(record, now)
                count += 1
        return count

    def read(
        self, kind: ObjectType, ids: Sequence[str], id_property: str | None, names: tuple[str, ...], *, archived: bool
    ) -> BatchAnswer:
        """Look records up by id or by a unique property."""
        answer = BatchAnswer()
        unknown: list[str] = []
        seen: set[str] = set()
        for one in ids:
            record = self.lookup(kind, one, id_property, "read", archived=archived)
            if record is None:
                unknown.append(one)
            elif record.id not in seen:
                seen.add(record.id)
                answer.results.append(Result(record, names))
        if unknown:
            answer.errors.append(objects_not_found(kind.singular, unknown))
        return answer

    def lookup(
        self, kind: ObjectType, text: str, id_property: str | None, verb: str, *, archived: bool = False
    ) -> Stored | None:
        """Find a record by id or unique property. Raises RefusedError for a property that is not unique."""
        if archived:
            return self.store.table(kind).bin.get(text)
        if id_property in {None, "hs_object_id"}:
            return self.store.get(kind, text)
        one = kind.properties.get(str(id_property))
        if one is None or not one.unique:
            raise _not_unique(kind, str(id_property), verb)
        return self.store.find(kind, one.name, text)

    def _addressed(self, kind: ObjectType, one: Input, verb: str) -> Stored | None:
        """Find the record that an input means. An upsert needs a unique property, an update a custom one if any."""
        if verb == "upsert":
            one_property = kind.properties.get(one.id_property or "hs_object_id")
            if one_property is None or not one_property.unique:
                raise _not_unique(kind, one.id_property or "hs_object_id", verb)
        elif one.id_property not in {None, "hs_object_id"}:
            one_property = kind.properties.get(str(one.id_property))
            if one_property is None or not (one_property.unique and one_property.custom):
                raise _not_unique(kind, str(one.id_property), verb)
        return self.lookup(kind, one.id, one.id_property, verb)

    def _write(
        self, kind: ObjectType, planned: Planned, now: float, *, upsert: bool = False, show_all: bool = False
    ) -> Result:
        new = planned.record is None
        if planned.record is None:
            record = self.store.insert(kind, planned.values, now)
        else:
            record = planned.record
            self.store.change(record, planned.values, now)
        meta = ("hs_object_id", kind.created_property, kind.modified_property)
        names = None if show_all else tuple(dict.fromkeys((*planned.sent, *meta)))
        return Result(record, names, new if upsert else None)


def _keyed(one: Input, record: Stored | None) -> Mapping[str, str | None]:
    """Return the properties of an upsert, with the key that a new record needs."""
    name = str(one.id_property)
    given = {known: value for known, value in one.properties.items() if known != name or value is not None}
    return {name: one.id if record is None else record.properties.get(name), **given}


def _not_unique(kind: ObjectType, name: str, verb: str) -> RefusedError:
    return RefusedError(400, f"Unable to perform {verb} by non-unique {kind.type_id} property {name}", VALIDATION)


def _traced(inputs: Sequence[Input]) -> bool:
    traces = {one.trace for one in inputs if one.trace}
    return len(traces) == len(inputs)


def _refuse_duplicates(kind: ObjectType, inputs: Sequence[Input], found: Sequence[Stored | None]) -> None:
    """Refuse two inputs that mean the same record."""
    fold = [one.id.lower() if kind.name == "contacts" and one.id_property == EMAIL else one.id for one in inputs]
    texts = Counter((one.id_property, text) for one, text in zip(inputs, fold, strict=True))
    records = Counter(record.id for record in found if record)
    twice = {
        text: None
        for one, text, record in zip(inputs, fold, found, strict=True)
        if texts[one.id_property, text] > 1 or (record and records[record.id] > 1)
    }
    if twice:
        message = f"Duplicate IDs found in batch input: [{', '.join(twice)}]. IDs must be unique"
        raise RefusedError(400, message, VALIDATION, context={"ids": list(twice)})


def _is_twin(complaint: Complaint) -> bool:
    """Whether an e-mail is in two inputs of one create: that fails the batch, trace ids or not."""
    return complaint.category == "CONFLICT" and not complaint.context


def _row_errors(planned: Sequence[Planned], inputs: Sequence[Input], *, partial: bool) -> list[dict[str, Any]]:
    """Return the 207 entries of the bad inputs. Raises RefusedError for all of them where a batch is all or nothing."""
    bad = [(one.complaint, each.trace) for one, each in zip(planned, inputs, strict=True) if one.complaint]
    if bad and not partial:
        raise refusal_of([complaint for complaint, _ in bad])
    return [complaint.as_row(trace or "") for complaint, trace in bad]
