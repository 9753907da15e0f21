"""Single rows over REST: ``/sobjects/…`` by id and by external key, and describe (facts 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.salesforce_auth import Session
from cdcsync.sandbox.salesforce_describe import describe, describe_global
from cdcsync.sandbox.salesforce_errors import ApiError, RowError, not_found
from cdcsync.sandbox.salesforce_ids import canonical
from cdcsync.sandbox.salesforce_rest import Writing, read_object, root_of
from cdcsync.sandbox.salesforce_rows import read_json
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Record
from cdcsync.sandbox.salesforce_values import from_json
from cdcsync.sandbox.salesforce_writes import Transaction

UPSERT_BODY_SINCE = "v46.0"  # before, an upsert that updated answered 204 without a body

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request for one object."""

    request: Request
    session: Session
    entity: Entity
    now: float

    @property
    def base(self) -> str:
        """The object's URL path."""
        return f"{root_of(self.request)}/sobjects/{self.entity.name}"


class Sobjects:
    """The ``sobjects`` resource."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing

    def answer(self, request: Request, parts: Sequence[str], session: Session, now: float) -> Response:
        """Answer a request; ``parts`` are the decoded path segments after ``sobjects``. Raises ApiError."""
        schema, root = self._writing.store.schema, root_of(request)
        if not parts:
            return json_response(200, describe_global(schema, root))
        entity = self._writing.entity(parts[0])
        call = Call(request, session, entity, now)
        match request.method, list(parts[1:]):
            case "GET", []:
                return json_response(200, {"objectDescribe": describe(schema, entity, root), "recentItems": []})
            case "GET", ["describe"]:
                return json_response(200, describe(schema, entity, root))
            case "POST", []:
                return self._create(call)
            case _, [record_id]:
                return self._by_id(call, record_id)
            case _, [key_field, key]:
                return self._by_key(call, self._writing.key_field(entity, key_field), key)
        raise not_found()

    def _create(self, call: Call) -> Response:
        raw = read_object(call.request.body)
        record_id = self._alone(call, lambda writes: self._writing.insert(writes, call.entity, raw))
        headers = {"Location": f"{call.base}/{record_id}"}
        return json_response(201, {"id": record_id, "success": True, "errors": []}, headers, records=1)

    def _by_id(self, call: Call, given: str) -> Response:
        record_id = canonical(given)
        if record_id is None:
            raise ApiError(404, "NOT_FOUND", f"Provided external ID field does not exist or is not accessible: {given}")
        match call.request.method:
            case "GET":
                record = self._writing.store.records.get(record_id)
                if record is None or record.entity is not call.entity or record.deleted:
                    raise not_found()
                return _shown(call, record)
            case "PATCH":
                raw = read_object(call.request.body)
                if any(name.lower() == "id" for name in raw):
                    raise ApiError(400, "INVALID_FIELD", "The Id field should not be specified in the sobject data.")
                self._alone(call, lambda writes: self._writing.update(writes, call.entity, {**raw, "Id": record_id}))
                return Response(204, records=1)
            case "DELETE":
                self._alone(call, lambda writes: writes.delete(call.entity, record_id))
                return Response(204, records=1)
        raise _not_allowed(call)

    def _by_key(self, call: Call, member: Field, text: str) -> Response:
        try:
            key = from_json(member, text)
        except RowError as refused:
            raise refused.as_api_error() from refused
        found = self._writing.store.find(call.entity, member, key) if key is not None else []
        if len(found) > 1:
            return json_response(300, [f"{call.base}/{record_id}" for record_id in found])
        if call.request.method == "PATCH":
            return self._upsert(call, member, text)
        if call.request.method not in {"GET", "DELETE"}:
            raise _not_allowed(call)
        if not found:
            raise not_found()
        return self._by_id(call, found[0])

    def _upsert(self, call: Call, member: Field, text: str) -> Response:
        raw = read_object(call.request.body)
        for name in raw:
            if name.lower() in {"id", member.name.lower()}:
                message = f"The {name} field should not be specified in the sobject data."
                raise ApiError(400, "INVALID_FIELD", message)
        create = call.request.query.get("updateOnly", "false") != "true"

        def write(writes: Transaction) -> tuple[str, bool]:
            values = read_json(self._writing.store, call.entity, raw)
            return writes.upsert(call.entity, member, from_json(member, text), values, create=create)

        record_id, created = self._alone(call, write)
        if not created and call.request.segments[2] < UPSERT_BODY_SINCE:
            return Response(204, records=1)
        answer = {"id": record_id, "success": True, "errors": [], "created": created}
        return json_response(201 if created else 200, answer, records=1)

    def _alone(self, call: Call, write: Callable[[Transaction], T]) -> T:
        """Do one write as a transaction of its own; a refused row is a refused request."""
        writes = self._writing.transaction(call.request, call.session, call.now)
        try:
            done = write(writes)
        except RowError as refused:
            raise refused.as_api_error() from refused
        writes.commit()
        return done


def _not_allowed(call: Call) -> ApiError:
    message = f"HTTP Method '{call.request.method}' not allowed. Allowed are HEAD,GET,PATCH,DELETE"
    return ApiError(405, "METHOD_NOT_ALLOWED", message)


def _shown(call: Call, record: Record) -> Response:
    asked = call.request.query.get("fields")
    members = list(record.entity.fields.values())
    if asked:
        members = []
        for name in asked.split(","):
            member = record.entity.field(name.strip())
            if member is None:
                raise ApiError(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type {record.entity.name}")
            members.append(member)
    shown = {member.name: record.present(member) for member in members}
    attributes = {"type": record.entity.name, "url": f"{call.base}/{record.id}"}
    return json_response(200, {"attributes": attributes, **shown, "Id": record.id})
