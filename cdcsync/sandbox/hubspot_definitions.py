"""The routes that describe a portal: properties, schemas, owners, pipelines, account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.hubspot_access import schema_scopes
from cdcsync.sandbox.hubspot_answers import RefusedError, missing_fields, not_found
from cdcsync.sandbox.hubspot_inputs import read_batch, read_object
from cdcsync.sandbox.hubspot_portal import Portal, answer_multi
from cdcsync.sandbox.hubspot_schema import ObjectType, Pipeline
from cdcsync.sandbox.hubspot_values import print_time

_BORN: Final = print_time(1_577_836_800)


class DefinitionRoutes:
    """Answers requests about definitions."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def answer(self, request: Request, parts: Sequence[str], now: float) -> Response | None:
        """Answer ``/crm/v3/{parts}``; None for a path or method that does not exist."""
        match (request.method, *parts):
            case ("GET", "properties", name):
                kind = self._kind(name, "read")
                return json_response(200, {"results": [one.as_json() for one in kind.properties.values()]})
            case ("GET", "properties", name, one):
                return self._property(self._kind(name, "read"), one)
            case ("POST", "properties", name):
                kind = self._kind(name, "write")
                made = self._portal.schema.add_property(kind, read_object(request.body))
                return json_response(201, made.as_json())
            case ("POST", "properties", name, "batch", "create"):
                return self._create_properties(request, self._kind(name, "write"), now)
            case ("GET", "schemas"):
                self._portal.access.require(("crm.schemas.custom.read",))
                custom = [kind for kind in self._portal.schema.objects.values() if kind.custom]
                return json_response(200, {"results": [self._schema(kind) for kind in custom]})
            case ("POST", "schemas"):
                self._portal.access.require(("crm.schemas.custom.write",))
                return json_response(201, self._schema(self._portal.schema.add_object(read_object(request.body))))
            case ("GET", "schemas", name):
                return json_response(200, self._schema(self._kind(name, "read")))
            case ("GET", "owners", *rest):
                return self._owners(request, rest)
            case ("GET", "pipelines", name, *rest):
                return self._pipelines(self._portal.kind(name, "read"), rest)
        return None

    def account(self) -> Response:
        """Answer ``GET /account-info/v3/details``."""
        offset = self._portal.quotas.limits.utc_offset
        hours, minutes = divmod(int(abs(offset) * 60), 60)
        details = {
            "portalId": self._portal.schema.portal_id,
            "accountType": "STANDARD",
            "timeZone": "UTC" if not offset else f"Etc/GMT{-offset:+g}",
            "companyCurrency": "USD",
            "additionalCurrencies": [],
            "utcOffset": f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}",
            "utcOffsetMilliseconds": int(offset * 3_600_000),
            "uiDomain": "app.hubspot.com",
            "dataHostingLocation": "na1",
        }
        return json_response(200, details)

    def _kind(self, name: str, mode: str) -> ObjectType:
        kind = self._portal.schema.resolve(name)
        self._portal.access.require(schema_scopes(kind, mode))
        return kind

    def _property(self, kind: ObjectType, name: str) -> Response:
        if name not in kind.properties:
            raise RefusedError(404, f"Property {name} does not exist", "OBJECT_NOT_FOUND")
        return json_response(200, kind.properties[name].as_json())

    def _create_properties(self, request: Request, kind: ObjectType, now: float) -> Response:
        _, raw = read_batch(request.body)
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for one in raw:
            try:
                results.append(self._portal.schema.add_property(kind, one).as_json())
            except RefusedError as error:
                if error.status != 409:  # noqa: PLR2004 - only an existing name fails alone
                    raise
                entry = {"status": "error", "category": error.category, **error.members, "message": error.message}
                errors.append(entry)
        return answer_multi(results, errors, now, success=201, records=len(raw))

    def _schema(self, kind: ObjectType) -> dict[str, Any]:
        singular, plural = kind.labels if kind.labels[0] else (kind.singular.capitalize(), kind.name.capitalize())
        return {
            "labels": {"singular": singular, "plural": plural},
            "requiredProperties": list(kind.required),
            "searchableProperties": [],
            "primaryDisplayProperty": kind.primary,
            "secondaryDisplayProperties": [],
            "archived": False,
            "id": kind.type_id,
            "fullyQualifiedName": self._portal.schema.qualified(kind),
            "createdAt": _BORN,
            "updatedAt": _BORN,
            "objectTypeId": kind.type_id,
            "properties": [one.as_json() for one in kind.properties.values()],
            "associations": [],
            "name": kind.name,
        }

    def _owners(self, request: Request, rest: Sequence[str]) -> Response:
        self._portal.access.require(("crm.objects.owners.read",))
        printed = [
            {
                "id": owner_id,
                "email": email,
                "type": "PERSON",
                "firstName": first,
                "lastName": last,
                "userId": user_id,
                "userIdIncludingInactive": user_id,
                "createdAt": _BORN,
                "updatedAt": _BORN,
                "archived": False,
            }
            for owner_id, email, first, last, user_id in self._portal.schema.owners
        ]
        if rest:
            found = [one for one in printed if one["id"] == rest[0]]
            if not found or len(rest) > 1:
                raise not_found()
            return json_response(200, found[0])
        email = request.query.get("email")
        return json_response(200, {"results": [one for one in printed if email in {None, "", one["email"]}]})

    def _pipelines(self, kind: ObjectType, rest: Sequence[str]) -> Response:
        pipelines = self._portal.schema.pipelines.get(kind.name, [])
        if not rest:
            return json_response(200, {"results": [_print_pipeline(one) for one in pipelines]})
        found = next((one for one in pipelines if one.id == rest[0]), None)
        if found is None or rest[1:] not in ([], ["stages"]):
            raise not_found()
        printed = _print_pipeline(found)
        return json_response(200, {"results": printed["stages"]} if rest[1:] else printed)


def _print_pipeline(one: Pipeline) -> dict[str, Any]:
    times = {"createdAt": _BORN, "updatedAt": _BORN, "archived": False}
    stages = [
        {"id": stage, "label": label, "displayOrder": order, "metadata": {}, **times}
        for order, (stage, label) in enumerate(one.stages.items())
    ]
    return {"id": one.id, "label": one.label, "displayOrder": 0, "stages": stages, **times}


def read_names(raw: object) -> tuple[str, ...]:
    """Return a JSON list of names, from the settings. Raises RefusedError."""
    if not isinstance(raw, list | tuple) or not all(isinstance(one, str) for one in raw):
        raise missing_fields("names")
    return tuple(raw)
