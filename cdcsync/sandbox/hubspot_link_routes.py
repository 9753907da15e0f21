"""The routes of the associations API v4: ``/crm/v4/associations`` and ``/crm/v4/objects``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.hubspot_answers import VALIDATION, RefusedError, bad_json, missing_fields
from cdcsync.sandbox.hubspot_association_types import AssociationType
from cdcsync.sandbox.hubspot_inputs import as_objects, as_text, read_batch, read_object, record_id
from cdcsync.sandbox.hubspot_links import Links
from cdcsync.sandbox.hubspot_portal import Portal, answer_multi
from cdcsync.sandbox.hubspot_schema import ObjectType
from cdcsync.sandbox.hubspot_store import Stored

MAX_WRITES: Final = 2000
MAX_READS: Final = 1000
PAGE: Final = 500


class LinkRoutes:
    """Answers requests about associations."""

    def __init__(self, portal: Portal, links: Links) -> None:
        self._portal = portal
        self._links = links

    def answer_pairs(self, request: Request, parts: Sequence[str], now: float) -> Response | None:
        """Answer ``/crm/v4/associations/{parts}``; None for a path or method that does not exist."""
        match (request.method, *parts):
            case ("POST", source, target, "batch", "create"):
                return self._batch_create(request, *self._kinds(request, source, target), now)
            case ("POST", source, target, "batch", "associate", "default"):
                return self._batch_default(request, *self._kinds(request, source, target), now)
            case ("POST", source, target, "batch", "archive"):
                return self._batch_archive(request, *self._kinds(request, source, target), now)
            case ("POST", source, target, "batch", "labels", "archive"):
                return self._batch_unlabel(request, *self._kinds(request, source, target), now)
            case ("POST", source, target, "batch", "read"):
                return self._batch_read(request, *self._kinds(request, source, target, "read"), now)
            case ("GET", source, target, "labels"):
                types = self._links.types(*self._kinds(request, source, target, "read"))
                return json_response(200, {"results": [one.as_label() for one in types]})
            case ("POST", source, target, "labels"):
                return self._add_label(request, *self._kinds(request, source, target))
        return None

    def answer_records(self, request: Request, parts: Sequence[str], now: float) -> Response | None:
        """Answer ``/crm/v4/objects/{parts}``; None for a path or method that does not exist."""
        match (request.method, *parts):
            case ("GET", source, one, "associations", target):
                return self._list(request, *self._kinds(request, source, target, "read"), one)
            case ("PUT", source, one, "associations", "default", target, other):
                kinds = self._kinds(request, source, target)
                results = self._default(self._links.record(kinds[0], one), self._links.record(kinds[1], other), now)
                return answer_multi(results, [], now, success=200, records=1)
            case ("PUT", source, one, "associations", target, other):
                kinds = self._kinds(request, source, target)
                types = self._links.types_of(*kinds, read_list(request.body))
                ends = self._links.record(kinds[0], one), self._links.record(kinds[1], other)
                return json_response(201, self._connect(*ends, types, now), records=1)
            case ("DELETE", source, one, "associations", target, other):
                kinds = self._kinds(request, source, target)
                self._unlink(self._links.record(kinds[0], one), kinds[1], other, now)
                return Response(204, records=1)
        return None

    def _kinds(self, request: Request, source: str, target: str, mode: str = "write") -> tuple[ObjectType, ObjectType]:
        kinds = self._portal.kind(source, mode), self._portal.kind(target, mode)
        if mode == "write":
            self._portal.check_locks(request, kinds[0])
        return kinds

    def _batch_create(self, request: Request, source: ObjectType, target: ObjectType, now: float) -> Response:
        _, raw = read_batch(request.body, MAX_WRITES)
        pairs = [_ends(one) for one in raw]
        types = [self._links.types_of(source, target, one.get("types") or []) for one in raw]
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for (one, other), wanted in zip(pairs, types, strict=True):
            ends, wrong = self._find(source, target, one, other)
            errors.extend(wrong)
            if ends:
                results.append(self._connect(*ends, wanted, now))
        self._portal.random.shuffle(results)
        return answer_multi(results, errors, now, success=201, records=len(raw))

    def _connect(self, record: Stored, other: Stored, types: Sequence[AssociationType], now: float) -> dict[str, Any]:
        changed = self._links.connect(record, other.kind, other.id, types)
        self._portal.store.linked(record, other.kind, now, changed=changed)
        return {
            "fromObjectTypeId": record.kind.type_id,
            "fromObjectId": int(record.id),
            "toObjectTypeId": other.kind.type_id,
            "toObjectId": int(other.id),
            "labels": [one.label for one in types if one.label],
        }

    def _find(
        self, source: ObjectType, target: ObjectType, one: str, other: str
    ) -> tuple[tuple[Stored, Stored] | None, list[dict[str, Any]]]:
        """Return the two records that are to be associated, or what is wrong with their ids."""
        record, second = self._portal.store.get(source, one), self._portal.store.get(target, other)
        if record is not None and second is not None:
            if record is second:
                message = f"Object {record.id} cannot be associated to itself ({record.id})"
                return None, [{"status": "error", "category": VALIDATION, "message": message}]
            return (record, second), []
        return None, [_invalid_id(text) for text, found in ((one, record), (other, second)) if found is None]

    def _batch_default(self, request: Request, source: ObjectType, target: ObjectType, now: float) -> Response:
        _, raw = read_batch(request.body, MAX_WRITES)
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        self._links.types(source, target)
        for one, other in [_ends(each) for each in raw]:
            ends, wrong = self._find(source, target, one, other)
            errors.extend(wrong)
            if ends:
                results.extend(self._default(*ends, now))
        self._portal.random.shuffle(results)
        return answer_multi(results, errors, now, success=200, records=len(raw))

    def _default(self, record: Stored, other: Stored, now: float) -> list[dict[str, Any]]:
        plain = [one for one in self._links.types(record.kind, other.kind) if one.label is None][:1]
        self._connect(record, other, plain, now)
        both = [(record.id, other.id, one.spec) for one in plain]
        both += [(other.id, record.id, one.inverse_spec) for one in plain]
        return [
            {
                "from": {"id": first},
                "to": {"id": second},
                "associationSpec": {"associationCategory": category, "associationTypeId": type_id},
            }
            for first, second, (category, type_id) in both
        ]

    def _batch_archive(self, request: Request, source: ObjectType, target: ObjectType, now: float) -> Response:
        _, raw = read_batch(request.body, MAX_WRITES)
        wanted = [(record_id(one.get("from")), [record_id(to) for to in as_objects(one.get("to"))]) for one in raw]
        for one, others in wanted:
            record = self._portal.store.get(source, one)
            for other in others if record else ():
                self._unlink(record, target, other, now)
        return Response(204, records=len(raw))

    def _unlink(self, record: Stored | None, target: ObjectType, other: str, now: float) -> None:
        store = self._portal.store
        second = store.get(target, other)
        if record is not None:
            ends = (record.kind.name, record.id), (target.name, second.id if second else other)
            store.linked(record, target, now, changed=store.associations.unlink(*ends))

    def _batch_unlabel(self, request: Request, source: ObjectType, target: ObjectType, now: float) -> Response:
        _, raw = read_batch(request.body, MAX_WRITES)
        types = [self._links.types_of(source, target, one.get("types") or []) for one in raw]
        store = self._portal.store
        for (one, other), wanted in zip([_ends(each) for each in raw], types, strict=True):
            ends, _ = self._find(source, target, one, other)
            if ends:
                changed = [store.associations.unlabel(each, ends[0].id, ends[1].id) for each in wanted]
                store.linked(ends[0], target, now, changed=any(changed))
        return Response(204, records=len(raw))

    def _batch_read(self, request: Request, source: ObjectType, target: ObjectType, now: float) -> Response:
        _, raw = read_batch(request.body, MAX_READS)
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for one in raw:
            text, after = record_id(one), as_text(one.get("after")) or "0"
            if not text.isdecimal() or not after.isdecimal():
                errors.append(_invalid_id(text))
                continue
            record = self._portal.store.get(source, text)
            page = self._page(record, target, int(after), PAGE) if record else {"results": []}
            if page["results"]:
                paging = {"paging": page["paging"]} if "paging" in page else {}
                results.append({"from": {"id": text}, "to": page["results"], **paging})
            else:
                errors.append(_no_associations(source, target, text))
        self._portal.random.shuffle(results)
        return answer_multi(results, errors, now, success=200, records=len(raw))

    def _list(self, request: Request, source: ObjectType, target: ObjectType, one: str) -> Response:
        record = self._links.record(source, one)
        try:
            limit, after = int(request.query.get("limit") or PAGE), int(request.query.get("after") or 0)
        except ValueError as error:
            raise RefusedError(400, "limit and after must be numbers", VALIDATION) from error
        return json_response(200, self._page(record, target, after, min(max(limit, 1), PAGE)), records=1)

    def _page(self, record: Stored, target: ObjectType, after: int, limit: int) -> dict[str, Any]:
        linked = self._portal.store.associations.of(record.kind.name, record.id).get(target.name, {})
        later = sorted(int(other) for other in linked if int(other) >= after)
        page = list(itertools.islice(later, limit))
        results = [
            {"toObjectId": other, "associationTypes": self._links.print_types(record, target, linked[str(other)])}
            for other in page
        ]
        following = {"paging": {"next": {"after": str(later[limit])}}} if len(later) > limit else {}
        return {"results": results, **following}

    def _add_label(self, request: Request, source: ObjectType, target: ObjectType) -> Response:
        body = read_object(request.body)
        missing = [name for name in ("label", "name") if not body.get(name)]
        if missing:
            raise missing_fields(*missing)
        inverse = body.get("inverseLabel")
        made = self._portal.association_types.add_label(
            source.name, target.name, str(body["label"]), str(inverse) if inverse else None
        )
        return json_response(200, {"results": [one.as_label() for one in made]})


def read_list(body: bytes) -> Sequence[Mapping[str, Any]]:
    """Parse a body that must be a JSON list of objects."""
    wrapped = b'{"list":' + body + b"}" if body.strip() else b"{}"
    parsed = read_object(wrapped).get("list")
    if parsed is None:
        raise bad_json("Cannot deserialize value of type `java.util.ArrayList` from this token")
    return as_objects(parsed)


def _ends(raw: Mapping[str, Any]) -> tuple[str, str]:
    return record_id(raw.get("from")), record_id(raw.get("to"))


def _invalid_id(text: str) -> dict[str, Any]:
    return {
        "status": "error",
        "category": VALIDATION,
        "subCategory": "crm.associations.INVALID_IDENTIFIER",
        "message": f"{text} is not a valid ID",
        "context": {"id": [text]},
    }


def _no_associations(source: ObjectType, target: ObjectType, text: str) -> dict[str, Any]:
    return {
        "status": "error",
        "category": "OBJECT_NOT_FOUND",
        "subCategory": "crm.associations.NO_ASSOCIATIONS_FOUND",
        "message": f"No {target.singular} is associated with {source.singular} {text}.",
        "context": {
            "fromObjectId": [text],
            "fromObjectType": [source.singular],
            "toObjectType": [target.singular],
        },
    }
