"""sObject Collections: up to 200 records written in one request and one transaction (facts 6); reads, too."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.salesforce_auth import Session
from cdcsync.sandbox.salesforce_errors import ApiError, RowError, not_found
from cdcsync.sandbox.salesforce_ids import canonical
from cdcsync.sandbox.salesforce_rest import Writing, read_object, root_of, sent_id
from cdcsync.sandbox.salesforce_retrieve import retrieve
from cdcsync.sandbox.salesforce_rows import read_json
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import index_key
from cdcsync.sandbox.salesforce_values import from_json
from cdcsync.sandbox.salesforce_writes import Transaction, repeated

LIMIT: Final = 200
RUNS: Final = 10
PREFIX: Final = 3
_ROLLED_BACK: Final = "Record rolled back because not all records were valid and the request was using AllOrNone header"

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One record's turn: ``write`` does it and gives the members that its result has on success.

    ``object_name`` is what it is a record of. ``identity`` must not be repeated within the request; ``doubled`` is the
    error of those that are.
    """

    object_name: str
    write: Callable[[Transaction], Result]
    identity: str | None = None
    doubled: RowError | None = None


class Collections:
    """The ``composite/sobjects`` resource."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing

    def answer(self, request: Request, parts: Sequence[str], session: Session, now: float) -> Response:
        """Answer a request; ``parts`` are the decoded path segments after ``composite/sobjects``. Raises ApiError."""
        body = read_object(request.body) if request.method in {"POST", "PATCH"} else {}
        match request.method, list(parts):
            case "POST", []:
                rows = [self._insertion(entity, raw) for entity, raw in self._records(body)]
            case "PATCH", []:
                rows = [self._change(entity, raw) for entity, raw in self._records(body)]
            case "PATCH", [object_name, key_name]:
                entity = self._writing.entity(object_name)
                member = self._writing.key_field(entity, key_name)
                rows = [self._upsertion(member, own, raw) for own, raw in self._records(body, entity)]
            case "POST", [object_name]:
                found = retrieve(self._writing.store, self._writing.entity(object_name), body, root_of(request))
                return json_response(200, found, records=len(found))
            case "DELETE", []:
                rows = [self._deletion(given) for given in _asked_ids(request)]
            case _:
                raise not_found()
        rows = self._within_limits(rows)
        asked = body.get("allOrNone", request.query.get("allOrNone", "false"))
        writes = self._writing.transaction(request, session, now, undoable=str(asked).lower() == "true")
        return _run(writes, rows, upsert=bool(parts))

    def _records(self, body: Mapping[str, Any], only: Entity | None = None) -> list[tuple[Entity, dict[str, Any]]]:
        """Take the records out of the body. Raises ApiError."""
        raw = body.get("records")
        if not isinstance(raw, list) or not all(isinstance(record, dict) for record in raw):
            raise ApiError(400, "JSON_PARSER_ERROR", "Can not deserialize: records must be an array of objects")
        _check_count(len(raw))
        records = []
        for record in raw:
            name = (record.get("attributes") or {}).get("type")
            entity = self._writing.store.schema.entity(str(name))
            if entity is None or (only is not None and entity is not only):
                raise ApiError(400, "INVALID_TYPE", f"sObject type '{name}' is not supported.")
            records.append((entity, record))
        if sum(1 for _ in itertools.groupby(entity.name for entity, _ in records)) > RUNS:
            message = f"Cannot have more than {RUNS} chunks in a single operation. Please rearrange the data to reduce"
            raise ApiError(400, "LIMIT_EXCEEDED", f"{message} chunking.")
        return records

    def _within_limits(self, rows: Sequence[Row]) -> list[Row]:
        """Let the rows fail that are too many for their object's triggers."""
        counts = Counter(row.object_name for row in rows)
        errors = {name: self._writing.overtaxed(name, count) for name, count in counts.items()}
        return [
            row if (error := errors[row.object_name]) is None else replace(row, write=_refusal(error)) for row in rows
        ]

    def _insertion(self, entity: Entity, raw: Mapping[str, Any]) -> Row:
        return Row(entity.name, lambda writes: {"id": self._writing.insert(writes, entity, raw)})

    def _change(self, entity: Entity, raw: Mapping[str, Any]) -> Row:
        try:
            identity = sent_id(raw)
        except RowError:
            identity = None
        doubled = RowError("DUPLICATE_VALUE", f"Duplicate id specified: {identity}")
        return Row(entity.name, lambda writes: {"id": self._writing.update(writes, entity, raw)}, identity, doubled)

    def _upsertion(self, member: Field, entity: Entity, raw: Mapping[str, Any]) -> Row:
        by_id = member.type == "id"
        keys = {name: value for name, value in raw.items() if name.lower() == member.name.lower()}
        rest = {name: value for name, value in raw.items() if name not in keys}
        given = next(iter(keys.values()), None)
        try:
            key = from_json(member, given)
        except RowError:
            key = None  # the row's turn raises it again

        def write(writes: Transaction) -> Result:
            if not by_id and any(name.lower() == "id" for name in rest):
                raise RowError("INVALID_FIELD", "The Id field should not be specified in the sobject data.", ["Id"])
            wanted = sent_id(raw) if by_id and given else from_json(member, given)
            record_id, created = writes.upsert(entity, member, wanted, read_json(self._writing.store, entity, rest))
            return {"id": record_id, "created": created}

        identity = None if key is None else canonical(key) if by_id else index_key(member, key)
        doubled = RowError("DUPLICATE_VALUE", f"Duplicate external id specified: {given}", [member.name])
        return Row(entity.name, write, identity, doubled)

    def _deletion(self, given: str) -> Row:
        record_id = canonical(given)
        entity = self._writing.store.schema.by_prefix.get((record_id or "")[:PREFIX])

        def write(writes: Transaction) -> Result:
            if record_id is None:
                raise RowError("MALFORMED_ID", f"malformed id {given}")
            if entity is None:
                raise RowError("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")
            writes.delete(entity, record_id)
            return {"id": record_id}

        doubled = RowError("DUPLICATE_VALUE", f"Duplicate id specified: {given}")
        return Row(entity.name if entity else "", write, record_id, doubled)


def _refusal(error: RowError) -> Callable[[Transaction], Result]:
    def refuse(_: Transaction) -> Result:
        raise error

    return refuse


def _run(writes: Transaction, rows: Sequence[Row], *, upsert: bool) -> Response:
    """Do the rows in order; each fails alone, or all with it if the transaction is undoable (``allOrNone``)."""
    doubled = repeated(row.identity for row in rows)
    results = [_attempt(writes, row, doubled, upsert=upsert) for row in rows]
    if writes.undoable and not all(result["success"] for result in results):
        writes.rollback()
        rolled_back = RowError("ALL_OR_NONE_OPERATION_ROLLED_BACK", _ROLLED_BACK)
        results = [_failed(rolled_back, upsert=upsert) if result["success"] else result for result in results]
    writes.commit()
    return json_response(200, results, records=len(rows))


def _attempt(writes: Transaction, row: Row, doubled: set[str], *, upsert: bool) -> Result:
    try:
        if row.identity in doubled and row.doubled:
            return _failed(row.doubled, upsert=upsert)
        done = row.write(writes)
    except RowError as refused:
        return _failed(refused, upsert=upsert)
    return {"id": done["id"], "success": True, "errors": [], **done}


def _failed(refused: RowError, *, upsert: bool) -> Result:
    result: Result = {"success": False, "errors": [refused.as_result()]}
    return {**result, "created": False} if upsert else result


def _check_count(count: int) -> None:
    if count > LIMIT:
        message = f"record limit reached. cannot submit more than {LIMIT} records into this call"
        raise ApiError(400, "EXCEEDED_ID_LIMIT", message)
    if not count:
        raise ApiError(400, "REQUIRED_FIELD_MISSING", "At least 1 record is required", [])


def _asked_ids(request: Request) -> list[str]:
    ids = [given.strip() for given in request.query.get("ids", "").split(",") if given.strip()]
    _check_count(len(ids))
    return ids
