"""The sandbox HubSpot: a portal behind tokens and quotas, answering CRM v3 and associations v4 requests.

Written from HubSpot's documentation and from recorded answers. Where neither says what happens, the module that decides
says so.

Settings of its own (see also ``crm.Crm``):

* ``tokens``: accepted private-app tokens (None: any that begins with ``pat-``); ``refresh_tokens`` (None: any);
  ``token_lifetime``: seconds that an OAuth access token lives; ``scopes``: those granted (None: all);
* ``ten_secondly``, ``ten_secondly_oauth``, ``daily``, ``search_per_second``: quotas; ``utc_offset``: the account's time
  zone in hours, whose midnight resets the day;
* ``search_delay``: seconds until a write can be searched; ``touch_delay``: seconds until background calculations touch
  a contact's ``lastmodifieddate`` (0: never);
* ``partial_upsert_by_email``: whether trace ids make an upsert of contacts by e-mail partial (documented: no);
* ``archived_unique_hold``: seconds that an archived record keeps its unique values (not documented; 0: none);
* ``first_stage``: the life cycle stage of new contacts and companies (None: none);
* ``properties``: {object: [property definition as in the API]}, ``objects``: [custom object definition as in the API],
  ``required``: {object: [properties that a create must set]}; all add to the schema, or redefine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from cdcsync.sandbox.crm import Crm, Request, Response, SettingsError, json_response
from cdcsync.sandbox.faults import Rule
from cdcsync.sandbox.hubspot_access import Access, Caller
from cdcsync.sandbox.hubspot_answers import RefusedError
from cdcsync.sandbox.hubspot_definitions import DefinitionRoutes, read_names
from cdcsync.sandbox.hubspot_inputs import read_properties
from cdcsync.sandbox.hubspot_link_routes import LinkRoutes
from cdcsync.sandbox.hubspot_links import Links
from cdcsync.sandbox.hubspot_portal import Portal, locked
from cdcsync.sandbox.hubspot_quotas import Limits, refusal_body
from cdcsync.sandbox.hubspot_records import RecordRoutes
from cdcsync.sandbox.hubspot_schema import ObjectType
from cdcsync.sandbox.hubspot_store import Stored
from cdcsync.sandbox.hubspot_writes import Planner

DEFAULTS: Final[Mapping[str, Any]] = {
    "version_field": "row_version",
    "tokens": None,
    "refresh_tokens": None,
    "token_lifetime": 1800.0,
    "scopes": None,
    "ten_secondly": 190,
    "ten_secondly_oauth": 110,
    "daily": 1_000_000,
    "search_per_second": 5,
    "utc_offset": 0.0,
    "search_delay": 10.0,
    "touch_delay": 5.0,
    "partial_upsert_by_email": False,
    "archived_unique_hold": 0.0,
    "first_stage": "lead",
    "properties": {},
    "objects": [],
    "required": {},
}
_TOKEN_PATHS: Final = frozenset({"oauth/v1/token", "oauth/v3/token", "oauth/2026-03/token"})
_DATED: Final = re.compile(r"^/crm/(\w+)/20\d\d-\d\d(?=/)")
_MISSING_PAGE: Final = (
    b"<html><head><title>Error 404 Not Found</title></head><body><h2>HTTP ERROR 404</h2></body></html>"
)
_GATEWAY_PAGE: Final = "<html><head><title>{0}</title></head><body><center><h1>{0}</h1></center></body></html>"
_GATEWAY_STATUSES: Final = frozenset({502, 504, 520, 521, 522, 523, 524, 525, 526})
_PAGE_HEADERS: Final = {"Content-Type": "text/html;charset=utf-8"}


class Hubspot(Crm):
    """The sandbox HubSpot."""

    name: ClassVar[str] = "hubspot"

    def __init__(self) -> None:
        super().__init__(DEFAULTS)
        self._portal = Portal(self.books, self.faults)
        links = Links(self._portal)
        self._records = RecordRoutes(self._portal, links)
        self._links = LinkRoutes(self._portal, links)
        self._definitions = DefinitionRoutes(self._portal)
        self._now = 0.0
        self.settings_changed(set(self.settings))

    def handle(self, request: Request, now: float) -> Response:
        """Answer one request: token, quota, work."""
        self._now = now
        try:
            if "/".join(request.segments) in _TOKEN_PATHS and request.method == "POST":
                return json_response(200, self._portal.access.exchange(request.body, now))
            caller = self._portal.access.caller(request.headers.get("authorization", ""), now)
        except RefusedError as error:
            return self._refuse(error)
        return self._admitted(request, caller, now)

    def _admitted(self, request: Request, caller: Caller, now: float) -> Response:
        """Work, if the quotas allow it; every answer shows them."""
        admission = self._portal.quotas.admit(caller.app, now, search=_is_search(request), oauth=caller.oauth)
        if admission.refused_by:
            body = refusal_body(admission.refused_by, self._portal.correlation())
            return json_response(429, body, admission.headers, limited=True)
        try:
            response = self._route(request, now)
        except RefusedError as error:
            response = self._refuse(error)
        if response is None:
            response = Response(404, _MISSING_PAGE, _PAGE_HEADERS)
        headers = {**response.headers, **admission.headers}
        return Response(response.status, response.body, headers, response.records, response.limited)

    def _refuse(self, error: RefusedError) -> Response:
        return json_response(error.status, error.body(self._portal.correlation()))

    def _route(self, request: Request, now: float) -> Response | None:
        match _undated(request).segments:
            case ["crm", "v3", "objects", *parts]:
                return self._records.answer(request, parts, now)
            case ["crm", "v4", "associations", *parts]:
                return self._links.answer_pairs(request, parts, now)
            case ["crm", "v4", "objects", *parts]:
                return self._links.answer_records(request, parts, now)
            case ["crm", "v3", *parts] | ["crm-object-schemas", "v3", *parts]:
                return self._definitions.answer(request, parts, now)
            case ["account-info", "v3", "details"] if request.method == "GET":
                return self._definitions.account()
        return None

    def refusal(self, rule: Rule, request: Request, now: float) -> Response:
        """HubSpot's own words for the status of a fault rule."""
        if rule.status == 429:  # noqa: PLR2004 - Too Many Requests
            policy = "SECONDLY" if _is_search(request) else "TEN_SECONDLY_ROLLING"
            headers = self._portal.quotas.refused(now, search=_is_search(request))
            return json_response(429, refusal_body(policy, self._portal.correlation()), headers, limited=True)
        if rule.status in _GATEWAY_STATUSES:
            return Response(rule.status, _GATEWAY_PAGE.format(rule.status).encode(), _PAGE_HEADERS)
        return self._refuse(_words(rule.status))

    def expire_tokens(self) -> None:
        """End every OAuth access token, and every private-app token that was used (those have no new login)."""
        self._portal.access.expire(self._now)

    def objects_of(self, request: Request) -> set[str]:
        """Return the object types in the path, by all their names."""
        found: set[str] = set()
        for segment in request.segments:
            found.add(segment.lower())
            try:
                kind = self._portal.schema.resolve(segment)
            except RefusedError:
                continue
            found |= {kind.name.lower(), kind.singular.lower(), kind.type_id}
        return found

    def settings_changed(self, names: set[str]) -> None:
        """Hand the settings to the parts that they are about."""
        settings, portal = self.settings, self._portal
        self._set_access(portal.access)
        portal.quotas.limits = Limits(
            int(settings["ten_secondly"]),
            int(settings["ten_secondly_oauth"]),
            int(settings["daily"]),
            int(settings["search_per_second"]),
            float(settings["utc_offset"]),
        )
        portal.touch_delay = float(settings["touch_delay"])
        portal.store.index.delay = float(settings["search_delay"])
        portal.store.archived_unique_hold = float(settings["archived_unique_hold"])
        portal.batches.first_stage = settings["first_stage"]
        portal.batches.partial_by_email = bool(settings["partial_upsert_by_email"])
        if "seed" in names:
            portal.random.seed(int(settings["seed"]))
        try:
            self._extend_schema(names)
        except RefusedError as error:
            raise SettingsError(error.message) from error
        fields = {kind.name: self.version_field(kind.name) for kind in portal.schema.objects.values()}
        portal.store.use_version_fields(fields)

    def _set_access(self, access: Access) -> None:
        access.tokens = _names(self.settings["tokens"])
        access.refresh_tokens = _names(self.settings["refresh_tokens"])
        access.scopes = _names(self.settings["scopes"])
        access.lifetime = float(self.settings["token_lifetime"])

    def _extend_schema(self, names: set[str]) -> None:
        schema = self._portal.schema
        if "objects" in names:
            known = {kind.name for kind in schema.objects.values()}
            for raw in self.settings["objects"]:
                if raw.get("name") not in known:
                    schema.add_object(raw)
        if "properties" in names:
            for name, definitions in self.settings["properties"].items():
                kind = schema.resolve(name)
                for raw in definitions:
                    schema.add_property(kind, {"groupName": f"{kind.singular}information", **raw}, redefine=True)
        if "required" in names:
            for name, required in self.settings["required"].items():
                schema.resolve(name).required = read_names(required)

    def records(self, object_name: str | None) -> Sequence[Mapping[str, Any]]:
        """All records (of one object); besides the members of every CRM: ``associations`` {object: [ids]}."""
        schema = self._portal.schema
        kinds = [self._kind(object_name)] if object_name else list(schema.objects.values())
        return [self._shown(record) for kind in kinds for record in self._portal.store.each(kind)]

    def _kind(self, name: str) -> ObjectType:
        try:
            return self._portal.schema.resolve(name)
        except RefusedError as error:
            raise SettingsError(error.message) from error

    def _shown(self, record: Stored) -> dict[str, Any]:
        linked = self._portal.store.associations.of(record.kind.name, record.id)
        return {
            "object": record.kind.name,
            "id": record.id,
            "key": self._portal.store.key(record),
            "fields": dict(record.properties),
            "archived": record.archived is not None,
            "writes": record.writes,
            "created": record.created,
            "modified": record.modified,
            "associations": {name: sorted(others) for name, others in linked.items() if others},
        }

    def _live(self, object_name: str, record_id: str) -> Stored:
        record = self._portal.store.get(self._kind(object_name), record_id)
        if record is None:
            raise SettingsError(f"no {object_name} {record_id}")
        return record

    def edit(self, object_name: str, record_id: str, fields: Mapping[str, Any], now: float) -> None:
        """Change a record as a person would: the same checks, but not counted as a write of the API."""
        record = self._live(object_name, record_id)
        planner = Planner(self._portal.store, record.kind, None, now)
        try:
            planned = planner.plan(record, read_properties(dict(fields)))
        except RefusedError as error:
            raise SettingsError(error.message) from error
        if planned.complaint:
            raise SettingsError(planned.complaint.message)
        self._portal.store.change(record, planned.values, now, by_person=True)

    def remove(self, object_name: str, record_id: str, now: float) -> None:
        """Archive a record as a person would."""
        self._portal.store.archive(self._live(object_name, record_id), now, by_person=True)

    def merge(self, object_name: str, record_id: str, other_id: str, now: float) -> str:
        """Merge two records as a person would; returns the survivor's new id."""
        primary, other = self._live(object_name, record_id), self._live(object_name, other_id)
        if primary is other:
            raise SettingsError("a record cannot be merged with itself")
        return self._portal.store.merge(primary, other, now).id

    def reset(self) -> None:
        """Forget records, tokens, quotas and books; keep schema and settings."""
        self._portal.store.clear()
        self._portal.access.clear()
        self._portal.quotas.clear()
        self.books.clear()


def _undated(request: Request) -> Request:
    """Return the v3 or v4 form of a path with a date for a version (``/crm/objects/2026-03/contacts``)."""
    found = _DATED.match(request.path)
    if found is None:
        return request
    version = "v4" if found[1] == "associations" else "v3"
    return Request(request.method, f"/crm/{version}/{found[1]}{request.path[found.end() :]}")


def _is_search(request: Request) -> bool:
    return request.method == "POST" and request.path.rstrip("/").endswith("/search")


def _names(raw: object) -> frozenset[str] | None:
    if raw is None:
        return None
    if not isinstance(raw, list | tuple | set | frozenset):
        raise SettingsError(f"must be a list of names or null, not {raw!r}")
    return frozenset(map(str, raw))


def _words(status: int) -> RefusedError:
    """Return what HubSpot says with a status that a fault rule asks for."""
    match status:
        case 401:
            message = "The OAuth token used to make this call expired 75 second(s) ago."
            return RefusedError(401, message, "EXPIRED_AUTHENTICATION")
        case 403:
            return RefusedError(403, "One or more of the following scopes are required.", "MISSING_SCOPES")
        case 404:
            return RefusedError(404, "resource not found")
        case 423:
            return locked()
        case 477:
            return RefusedError(477, "This account is being migrated to another data center.", "MIGRATION_IN_PROGRESS")
        case _:
            return RefusedError(status, "internal error")
