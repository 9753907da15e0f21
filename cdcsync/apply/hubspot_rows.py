"""Which result or error of a batch answer belongs to which record. Pure.

Results come in any order and do not echo trace ids, so they are found by the record's id or unique property. Errors
name their row by trace id, or group ids. What belongs to nobody (a contact found by its second address answers with
its first; a merged record answers with a new id) is ``stray``: sent alone, it can only belong to the one record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdcsync.apply.hubspot_answers import PASSING_CATEGORIES, concerned, rejection
from cdcsync.apply.hubspot_values import comparable
from cdcsync.model import Applied, Batch, Missing, Op, Outcome, Record, Retry

NOT_FOUND: Final = "OBJECT_NOT_FOUND"
NOT_NOW: Final = frozenset({"423", "429", "500", "502", "503", "504"})


@dataclass(frozen=True, slots=True)
class Sorted:
    """Outcomes by the record's place; ``stray`` says that the answer holds entries that no record claims."""

    outcomes: dict[int, Outcome]
    stray: bool


def sort(batch: Batch, body: Mapping[str, Any]) -> Sorted:
    """Give each record of an upsert or update its outcome; some may have none. Raises FatalError for mapping faults.

    The records of an update are all ``rekeyed``, and so were named by id, or none is.
    """
    places = {_own(batch, record): place for place, record in enumerate(batch.records)}
    outcomes: dict[int, Outcome] = {}
    stray = False
    for result in _results(body):
        place = places.get(_theirs(batch, result))
        place = 0 if len(batch.records) == 1 else place
        if place is None:
            stray = True
        else:
            outcomes[place] = Applied(str(result["id"]), created=result.get("new") is True)
    for error in _entries(body, "errors"):
        outcome = _outcome(batch.op, error)
        concerning = _places(error, places, len(batch.records))
        stray = stray or not concerning
        for place in concerning:
            outcomes.setdefault(place, outcome)
    return Sorted(outcomes, stray)


def _by_id(batch: Batch) -> bool:
    return batch.op is Op.UPDATE and batch.records[0].rekeyed


def _own(batch: Batch, record: Record) -> str:
    return record.crm_id or "" if _by_id(batch) else comparable(batch.target.key_field, record.key)


def _theirs(batch: Batch, result: Mapping[str, Any]) -> str:
    if _by_id(batch):
        return str(result.get("id"))
    fields = result.get("properties")
    return comparable(batch.target.key_field, fields.get(batch.target.key_field) if isinstance(fields, dict) else None)


def _places(error: Mapping[str, Any], places: Mapping[str, int], size: int) -> Sequence[int]:
    if size == 1:
        return (0,)
    traces = concerned(error, "objectWriteTraceId")
    found = [int(trace) for trace in traces if trace.isdecimal() and int(trace) < size]
    return found or [places[name] for name in concerned(error, "ids", "id") if name in places]


def _outcome(op: Op, error: Mapping[str, Any]) -> Outcome:
    if str(error.get("category", "")) in PASSING_CATEGORIES or str(error.get("status", "")) in NOT_NOW:
        return Retry(str(error.get("category", "UNKNOWN")), str(error.get("message", "")))
    if op is Op.UPDATE and error.get("category") == NOT_FOUND:
        return Missing(str(error.get("message", "")))
    return rejection(error)


def _results(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (result for result in _entries(body, "results") if result.get("id"))


def _entries(body: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    listed = body.get(name)
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict):
            yield entry


def found(body: Mapping[str, Any], key_field: str) -> dict[str, str]:
    """Read a ``batch/read`` answer: comparable key → id, of the records that exist."""
    ids = {}
    for result in _results(body):
        fields = result.get("properties")
        key = fields.get(key_field) if isinstance(fields, dict) else None
        ids[comparable(key_field, key)] = str(result["id"])
    return ids


def contents(
    ids: Sequence[str], body: Mapping[str, Any], fields: Sequence[str]
) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Read a ``batch/read`` answer by id: the fields of the records found, None where empty; and ids not spoken of.

    A merged record answers with the id that it has now. A cleared property reads "", one that was never set null.
    """
    read: dict[str, dict[str, object]] = {}
    for result in _results(body):
        held = result.get("properties")
        values = held if isinstance(held, dict) else {}
        crm_id = ids[0] if len(ids) == 1 else str(result["id"])
        read[crm_id] = {name: values.get(name) or None for name in fields}
    missing = {name for error in _entries(body, "errors") for name in concerned(error, "ids", "id")}
    return (
        {crm_id: values for crm_id, values in read.items() if crm_id in ids},
        [crm_id for crm_id in ids if crm_id not in read and crm_id not in missing],
    )


def failures(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the row errors of a 207."""
    return list(_entries(body, "errors"))
