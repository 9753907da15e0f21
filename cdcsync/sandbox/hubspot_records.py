"""The routes under ``/crm/v3/objects``: batches, single records, lists, search, merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.hubspot_answers import VALIDATION, RefusedError, missing_fields, not_found
from cdcsync.sandbox.hubspot_batches import Result
from cdcsync.sandbox.hubspot_inputs import (
    Input,
    as_text,
    read_batch,
    read_input,
    read_object,
    read_properties,
    record_id,
    too_many,
)
from cdcsync.sandbox.hubspot_links import Links
from cdcsync.sandbox.hubspot_portal import Portal
from cdcsync.sandbox.hubspot_schema import ObjectType
from cdcsync.sandbox.hubspot_search import search

PAGE: Final = 10
MAX_PAGE: Final = 100
MAX_HISTORIES: Final = 50


class RecordRoutes:
    """Answers requests about records."""

    def __init__(self, portal: Portal, links: Links) -> None:
        self._portal = portal
        self._links = links

    def answer(self, request: Request, parts: Sequence[str], now: float) -> Response | None:
        """Answer ``/crm/v3/objects/{parts}``; None for a path or method that does not exist."""
        match (request.method, *parts):
            case ("POST", name, "batch", "read"):
                return self._batch_read(request, name, now)
            case ("POST", name, "batch", "archive"):
                return self._batch_archive(request, name, now)
            case ("POST", name, "batch", ("create" | "update" | "upsert") as verb):
                return self._batch_write(request, name, verb, now)
            case ("POST", name, "search"):
                return self._search(request, name, now)
            case ("POST", name, "merge"):
                return self._merge(request, name, now)
            case ("GET", name):
                return self._list(request, name, now)
            case ("POST", name):
                return self._create(request, name, now)
            case ("GET", name, one):
                return self._get(request, name, one, now)
            case ("PATCH", name, one):
                return self._update(request, name, one, now)
            case ("DELETE", name, one):
                return self._delete(request, name, one, now)
        return None

    def _batch_write(self, request: Request, name: str, verb: str, now: float) -> Response:
        kind = self._portal.kind(name, "write")
        _, raw = read_batch(request.body)
        inputs = [read_input(one, needs_id=verb != "create") for one in raw]
        self._portal.check_locks(request, kind)
        batches = self._portal.batches
        if verb == "create":
            return self._batch_create(kind, inputs, now)
        answer = (batches.update if verb == "update" else batches.upsert)(kind, inputs, now)
        return self._portal.answer_batch(answer, now, success=200, records=len(inputs))

    def _batch_create(self, kind: ObjectType, inputs: Sequence[Input], now: float) -> Response:
        planned = [self._links.plan(kind, one.associations) for one in inputs]
        answer = self._portal.batches.create(kind, inputs, now)
        written = iter(answer.results)
        failed = {trace for error in answer.errors for trace in error["context"]["objectWriteTraceId"]}
        for one, links in zip(inputs, planned, strict=True):
            if one.trace is None or one.trace not in failed:
                self._links.write(next(written).record, links)
        return self._portal.answer_batch(answer, now, success=201, records=len(inputs))

    def _batch_read(self, request: Request, name: str, now: float) -> Response:
        kind = self._portal.kind(name, "read")
        body, raw = read_batch(request.body)
        if body.get("propertiesWithHistory") and len(raw) > MAX_HISTORIES:
            raise too_many(MAX_HISTORIES, "property histories")
        names = tuple(str(one) for one in body.get("properties") or ())
        answer = self._portal.batches.read(
            kind,
            [record_id(one) for one in raw],
            as_text(body.get("idProperty")),
            (*names, *_shown(kind, names)),
            archived=_is_true(request, "archived"),
        )
        return self._portal.answer_batch(answer, now, success=200, records=len(raw))

    def _batch_archive(self, request: Request, name: str, now: float) -> Response:
        kind = self._portal.kind(name, "write")
        _, raw = read_batch(request.body)
        ids = [record_id(one) for one in raw]
        self._portal.check_locks(request, kind)
        self._portal.batches.archive(kind, ids, now)
        return Response(204, records=len(ids))

    def _search(self, request: Request, name: str, now: float) -> Response:
        kind = self._portal.kind(name, "read")
        body = read_object(request.body)
        total, records, after = search(self._portal.store, kind, body, now)
        names = tuple(str(one) for one in body.get("properties") or ())
        shown = (*names, *_shown(kind, names))
        results = [self._portal.print_record(Result(one, shown), now) for one in records]
        return json_response(200, {"total": total, "results": results, **_paging(after)})

    def _merge(self, request: Request, name: str, now: float) -> Response:
        kind = self._portal.kind(name, "write")
        body = read_object(request.body)
        names = ("primaryObjectId", "objectIdToMerge")
        missing = [one for one in names if body.get(one) is None]
        if missing:
            raise missing_fields(*missing)
        primary, other = (self._portal.store.get(kind, as_text(body[one]) or "") for one in names)
        if primary is None or other is None:
            raise not_found()
        if primary is other:
            raise RefusedError(400, "Cannot merge a record with itself", VALIDATION)
        survivor = self._portal.store.merge(primary, other, now)
        return json_response(200, self._portal.print_record(Result(survivor), now), records=2)

    def _list(self, request: Request, name: str, now: float) -> Response:
        kind = self._portal.kind(name, "read")
        limit, after = _number(request, "limit", PAGE), _number(request, "after", 0)
        if not 0 < limit <= MAX_PAGE:
            raise RefusedError(400, f"limit must be between 1 and {MAX_PAGE}", VALIDATION)
        page = self._portal.store.page(kind, after, limit + 1, archived=_is_true(request, "archived"))
        results = [self._portal.print_record(Result(one, _asked(request, kind)), now) for one in page[:limit]]
        following = page[limit].id if len(page) > limit else None
        return json_response(200, {"results": results, **_paging(following)})

    def _create(self, request: Request, name: str, now: float) -> Response:
        kind = self._portal.kind(name, "write")
        one = read_input(read_object(request.body), needs_id=False)
        self._portal.check_locks(request, kind)
        links = self._links.plan(kind, one.associations)
        result = self._portal.batches.create(kind, [Input("", one.properties)], now).results[0]
        self._links.write(result.record, links)
        return json_response(201, self._portal.print_record(result, now), records=1)

    def _get(self, request: Request, name: str, one: str, now: float) -> Response:
        kind = self._portal.kind(name, "read")
        archived = _is_true(request, "archived")
        record = self._portal.batches.lookup(kind, one, request.query.get("idProperty"), "read", archived=archived)
        if record is None:
            raise not_found()
        printed = self._portal.print_record(Result(record, _asked(request, kind)), now)
        asked = _listed(request, "associations")
        if asked:
            printed["associations"] = self._links.print_for(record, asked)
        return json_response(200, printed, records=1)

    def _update(self, request: Request, name: str, one: str, now: float) -> Response:
        kind = self._portal.kind(name, "write")
        properties = read_properties(read_object(request.body).get("properties"))
        self._portal.check_locks(request, kind)
        inputs = [Input(one, properties, request.query.get("idProperty"))]
        results = self._portal.batches.update(kind, inputs, now).results
        if not results:
            raise not_found()
        return json_response(200, self._portal.print_record(results[0], now), records=1)

    def _delete(self, request: Request, name: str, one: str, now: float) -> Response:
        kind = self._portal.kind(name, "write")
        self._portal.check_locks(request, kind)
        self._portal.batches.archive(kind, [one], now)
        return Response(204, records=1)


def _is_true(request: Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


def _number(request: Request, name: str, default: int) -> int:
    try:
        return int(request.query.get(name) or default)
    except ValueError as error:
        raise RefusedError(400, f"{name} must be a number", VALIDATION) from error


def _listed(request: Request, name: str) -> list[str]:
    """Return a list parameter: repeated, or with commas."""
    return [part for value in request.query_all(name) for part in value.split(",") if part]


def _shown(kind: ObjectType, names: Sequence[str]) -> tuple[str, ...]:
    """Return what is shown besides the properties asked for: the defaults if none were, else id and times."""
    return ("hs_object_id", kind.created_property, kind.modified_property) if names else kind.shown


def _asked(request: Request, kind: ObjectType) -> tuple[str, ...]:
    names = _listed(request, "properties")
    return (*names, *_shown(kind, names))


def _paging(after: str | None) -> Mapping[str, Any]:
    return {"paging": {"next": {"after": after, "link": f"?after={after}"}}} if after else {}
