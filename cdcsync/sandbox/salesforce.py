"""The sandbox Salesforce org: who may call, what a call costs, and which part answers it.

Settings besides those of every CRM (``crm.Crm``):

* ``client_id``, ``client_secret``, ``username`` (None accepts any), ``public_key`` (PEM; None accepts any signature),
  ``token_seconds``;
* ``daily_requests``, ``daily_batches``, ``day_seconds`` (what passes for 24 hours);
* ``job_seconds`` (what a bulk job takes besides its rows), ``rows_per_second``;
* ``real_locks`` (transactions that overlap in time and touch children of one account fail), ``query_page``;
* ``storage_records`` (live records that the org has room for; None: any number), ``trigger_rows`` ({object: rows of one
  transaction that its triggers have the time for});
* ``objects``: more objects and fields, see ``salesforce_schema.Schema.extended``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from cdcsync.sandbox.crm import Crm, Request, Response, SettingsError, json_response
from cdcsync.sandbox.faults import Rule
from cdcsync.sandbox.salesforce_auth import Logins, Session
from cdcsync.sandbox.salesforce_bulk import Bulk
from cdcsync.sandbox.salesforce_collections import Collections
from cdcsync.sandbox.salesforce_describe import MAXIMUM_VERSION, MINIMUM_VERSION, resources, retired, versions
from cdcsync.sandbox.salesforce_errors import ApiError, RowError, not_found
from cdcsync.sandbox.salesforce_ids import canonical, new_id
from cdcsync.sandbox.salesforce_locks import RowLocks
from cdcsync.sandbox.salesforce_objects import named_fields, standard_schema
from cdcsync.sandbox.salesforce_query import PAGE, Queries
from cdcsync.sandbox.salesforce_quota import Quota
from cdcsync.sandbox.salesforce_rest import Writing, read_body, root_of
from cdcsync.sandbox.salesforce_rows import read_json
from cdcsync.sandbox.salesforce_sobjects import Sobjects
from cdcsync.sandbox.salesforce_store import USER_PREFIX, Record, Store
from cdcsync.sandbox.salesforce_work import Work
from cdcsync.sandbox.salesforce_writes import Transaction

LONGEST_URI: Final = 16_384
PERSON: Final = new_id(USER_PREFIX, 999)  # who edits through the admin API
_VERSION: Final = re.compile(r"v(\d+)\.0")
_TYPE: Final = re.compile(rb'"(?:type|object)"\s*:\s*"(\w+)"')
_HTML: Final = "<html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"
_REASONS: Final = {
    404: "URL No Longer Exists",
    414: "URI Too Long",
    420: "Routing Error",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable: We are down for maintenance",
    504: "Gateway Timeout",
}
_SETTINGS: Final[Mapping[str, Any]] = {
    "version_field": "Version__c",
    "client_id": None,
    "client_secret": None,
    "username": None,
    "public_key": None,
    "token_seconds": 7200.0,
    "daily_requests": 1_000_000,
    "daily_batches": 15_000,
    "day_seconds": 86_400.0,
    "job_seconds": 0.4,
    "rows_per_second": 20_000.0,
    "real_locks": False,
    "query_page": PAGE,
    "storage_records": None,
    "trigger_rows": {},
    "objects": {},
}


class Salesforce(Crm):
    """One org."""

    name = "salesforce"

    def __init__(self) -> None:
        super().__init__(_SETTINGS)
        self._store = Store(standard_schema())
        self._logins = Logins(self.settings)
        self._requests = Quota(self.settings, "daily_requests")
        self._batches = Quota(self.settings, "daily_batches")
        self._locks = RowLocks(self.faults, self.settings)
        self._queries = Queries(self._store)
        self._writing = Writing(self._store, self.books, self.settings, self._locks, self.version_field)
        self._sobjects = Sobjects(self._writing)
        self._collections = Collections(self._writing)
        self._work = Work(self._writing, self.faults, self._batches)
        self._bulk = Bulk(self._store, self._batches, self._work)

    def settings_changed(self, names: set[str]) -> None:
        """Take over a new schema or seed; numbers must be numbers."""
        for name in names & {
            "token_seconds",
            "daily_requests",
            "daily_batches",
            "job_seconds",
            "latency",
            "query_page",
        }:
            if float(self.settings[name]) < 0:
                raise SettingsError(f"{name} must not be negative")
        for name in names & {"day_seconds", "rows_per_second"}:
            if float(self.settings[name]) <= 0:
                raise SettingsError(f"{name} must be above 0")
        if "storage_records" in names:
            room = self.settings["storage_records"]
            self._store.room = None if room is None else int(room)
        if "trigger_rows" in names:
            self.settings["trigger_rows"] = {name: int(rows) for name, rows in self.settings["trigger_rows"].items()}
        if "objects" in names:
            self._store.adopt(standard_schema().extended(self.settings["objects"], named_fields()))
        if "seed" in names:
            self._bulk.reseed(int(self.settings["seed"]))

    def advance(self, now: float) -> None:
        """Let bulk jobs work."""
        self._work.advance(now)

    def objects_of(self, request: Request) -> set[str]:
        """Find the objects in the path, the body, the ids or the job of a request, if any rule asks for them."""
        if not any(rule.object_name for rule in self.faults.rules):
            return set()
        objects = super().objects_of(request)
        objects.update(name.decode().lower() for name in _TYPE.findall(request.body))
        for given in (*request.query.get("ids", "").split(","), *request.segments):
            entity = self._store.schema.by_prefix.get((canonical(given) or "")[:3])
            objects.update({entity.name.lower()} if entity else ())
            objects.update({self._bulk.object_of(given) or ""})
        query = re.search(r"\bfrom\s+(\w+)", request.query.get("q", ""), re.IGNORECASE)
        objects.update({query[1].lower()} if query else ())
        return objects

    def handle(self, request: Request, now: float) -> Response:
        """Answer one request."""
        segments = request.segments
        if request.target_length > LONGEST_URI:
            return _page(414)
        if (
            request.target_length + sum(len(name) + len(value) + 4 for name, value in request.headers.items())
            > LONGEST_URI
        ):
            return _page(431)
        try:
            if segments[:2] == ["services", "oauth2"]:
                return self._oauth(request, segments[2:], now)
            if segments[:2] == ["services", "data"]:
                return self._data(request, segments[2:], now)
        except ApiError as refused:
            return refused.as_response()
        return _page(404)

    def _oauth(self, request: Request, parts: Sequence[str], now: float) -> Response:
        if list(parts) == ["token"] and request.method == "POST":
            return self._logins.token(request, now)
        if list(parts) == ["userinfo"]:
            return json_response(200, self._logins.userinfo(self._session(request, now)))
        return _page(404)

    def _session(self, request: Request, now: float) -> Session:
        session = self._logins.session(request, now)
        if session is None:
            raise ApiError(401, "INVALID_SESSION_ID", "Session expired or invalid")
        return session

    def _data(self, request: Request, parts: Sequence[str], now: float) -> Response:
        if not parts:
            return json_response(200, versions())
        number = _VERSION.fullmatch(parts[0])
        if not number or not (retired(int(number[1])) or MINIMUM_VERSION <= int(number[1]) <= MAXIMUM_VERSION):
            raise not_found()
        if retired(int(number[1])):
            raise ApiError(410, "UNSUPPORTED_API_VERSION", f"The requested API version {parts[0]} has been retired.")
        session = self._session(request, now)
        if not self._requests.take(now):
            refusal = ApiError(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
            return self._metered(refusal.as_response(), now)
        try:
            response = self._resource(request, list(parts[1:]), session, now)
        except ApiError as refused:
            response = refused.as_response()
        return self._metered(response, now)

    def _metered(self, response: Response, now: float) -> Response:
        usage = f"api-usage={self._requests.used(now)}/{self._requests.limit}"
        return replace(response, headers={**response.headers, "Sforce-Limit-Info": usage})

    def _resource(self, request: Request, parts: list[str], session: Session, now: float) -> Response:
        root = root_of(request)
        match parts:
            case []:
                return json_response(200, resources(root))
            case ["limits"]:
                return json_response(200, self._limits(now))
            case ["sobjects", *rest]:
                return self._sobjects.answer(request, rest, session, now)
            case ["composite", "sobjects", *rest]:
                return self._collections.answer(request, rest, session, now)
            case ["jobs", "ingest", *rest]:
                return self._ingest(request, rest, session, now)
            case ["query" | "queryAll" as kind]:
                text = request.query.get("q")
                if text is None:
                    raise ApiError(400, "MALFORMED_QUERY", "A query string has to be specified")
                found = self._queries.run(text, root, deleted=kind == "queryAll", page=self._page_size(request))
                return json_response(200, found, records=len(found["records"]))
            case ["query" | "queryAll", locator]:
                return json_response(200, self._queries.more(locator, root, page=self._page_size(request)))
        raise not_found()

    def _ingest(self, request: Request, parts: list[str], session: Session, now: float) -> Response:
        match request.method, parts:
            case "POST", []:
                version = float(request.segments[2][1:])
                return self._bulk.create(read_body(request.body), session.user_id, version, now)
            case "GET", []:
                return self._bulk.list(request.query, root_of(request))
            case "GET", [job]:
                return self._bulk.show(job)
            case "PATCH", [job]:
                return self._bulk.change(job, read_body(request.body), now)
            case "DELETE", [job]:
                return self._bulk.delete(job)
            case "PUT", [job, "batches"]:
                return self._bulk.upload(job, request.body)
            case "GET", [job, kind]:
                return self._bulk.results(job, kind.rstrip("/"))
        raise not_found()

    def _page_size(self, request: Request) -> int:
        asked = re.search(r"batchSize\s*=\s*(\d+)", request.headers.get("sforce-query-options", ""))
        return min(max(int(asked[1]), 200), PAGE) if asked else int(self.settings["query_page"])

    def _limits(self, now: float) -> dict[str, Any]:
        return {
            "DailyApiRequests": {"Max": self._requests.limit, "Remaining": self._requests.remaining(now)},
            "DailyBulkApiBatches": {"Max": self._batches.limit, "Remaining": self._batches.remaining(now)},
            "DailyBulkV2QueryJobs": {"Max": 10_000, "Remaining": 10_000},
        }

    def refusal(self, rule: Rule, request: Request, now: float) -> Response:  # noqa: ARG002 - HubSpot's needs the request
        """Answer as Salesforce does; its rate limit is a 403 even if the rule says 429."""
        if rule.status in {502, 503, 504, 420}:
            return _page(rule.status)
        if rule.status in {403, 429}:
            message = "ConcurrentRequests (Concurrent API Requests) Limit exceeded."
            refused = ApiError(403, "REQUEST_LIMIT_EXCEEDED", message)
        elif rule.status == 401:  # noqa: PLR2004 - the HTTP status
            refused = ApiError(401, "INVALID_SESSION_ID", "Session expired or invalid")
        else:
            message = "An unexpected error occurred. Please include this ErrorId if you contact support: 1917-7 (-13)"
            refused = ApiError(rule.status, "UNKNOWN_EXCEPTION", message)
        return self._metered(refused.as_response(), now)

    def expire_tokens(self) -> None:
        """End all sessions."""
        self._logins.expire()

    def records(self, object_name: str | None) -> list[dict[str, Any]]:
        """List records; system fields are left out."""
        wanted = self._store.schema.entity(object_name) if object_name else None
        if object_name and wanted is None:
            raise SettingsError(f"no object {object_name}")
        return [_listed(record) for record in self._store.records.values() if wanted is None or record.entity is wanted]

    def edit(self, object_name: str, record_id: str, fields: Mapping[str, Any], now: float) -> None:
        """Change a record as a person would."""
        writes = self._by_person(now)
        try:
            record = self._found(object_name, record_id)
            exact = {name: Decimal(str(value)) if isinstance(value, float) else value for name, value in fields.items()}
            writes.update(record.entity, record.id, read_json(self._store, record.entity, exact))
        except RowError as refused:
            raise SettingsError(str(refused)) from refused
        writes.commit()

    def remove(self, object_name: str, record_id: str, now: float) -> None:
        """Delete a record as a person would."""
        writes = self._by_person(now)
        try:
            record = self._found(object_name, record_id)
            writes.delete(record.entity, record.id)
        except RowError as refused:
            raise SettingsError(str(refused)) from refused
        writes.commit()

    def merge(self, object_name: str, record_id: str, other_id: str, now: float) -> str:
        """Merge two records as a person would, who keeps the first one's values; that one survives."""
        writes = self._by_person(now)
        try:
            master, other = self._found(object_name, record_id), self._found(object_name, other_id)
            writes.merge(master.entity, master.id, other.id)
        except RowError as refused:
            raise SettingsError(str(refused)) from refused
        writes.commit()
        return master.id

    def reset(self) -> None:
        """Forget records, jobs, quotas and books."""
        self._store.clear()
        self._bulk.clear()
        self._locks.clear()
        self._requests.clear()
        self._batches.clear()
        self.books.clear()

    def _by_person(self, now: float) -> Transaction:
        return Transaction(self._store, self.books, self.version_field, now, PERSON, by_person=True)

    def _found(self, object_name: str, record_id: str) -> Record:
        record = self._store.records.get(canonical(record_id) or "")
        if record is None or record.entity.name.lower() != object_name.lower():
            raise SettingsError(f"no {object_name} {record_id}")
        return record


def _listed(record: Record) -> dict[str, Any]:
    return {
        "object": record.entity.name,
        "id": record.id,
        "key": record.keys(),
        "fields": dict(record.values),
        "archived": record.deleted,
        "writes": record.writes,
        "created": record.created,
        "modified": record.modified,
    }


def _page(status: int) -> Response:
    reason = _REASONS[status]
    return Response(status, _HTML.format(reason).encode(), {"Content-Type": "text/html; charset=UTF-8"})
