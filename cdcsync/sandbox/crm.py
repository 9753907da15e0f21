"""What a sandbox CRM is: a synchronous function from request to response, and its books. Does no IO.

The server calls every method from one thread; ``now`` is the Unix time in seconds, and the only clock a CRM has.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

from cdcsync.sandbox.books import Books
from cdcsync.sandbox.faults import Faults, Rule


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. ``path`` is as sent (percent-encoded, without the query); ``body`` is already decompressed.

    ``query`` has the last value of each parameter, decoded; headers have lower-case names.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw_query: str = ""

    @property
    def segments(self) -> list[str]:
        """The path's parts, each decoded: a slash inside a part (``%2F``) stays inside."""
        return [unquote(part) for part in self.path.strip("/").split("/")]

    @property
    def target_length(self) -> int:
        """Bytes of the request target (path and query) as sent."""
        return len(self.path) + (len(self.raw_query) + 1 if self.raw_query else 0)

    def query_all(self, name: str) -> list[str]:
        """Every value of a repeated query parameter, in order."""
        return [value for key, value in parse_qsl(self.raw_query, keep_blank_values=True) if key == name]


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer. ``records`` is how many records the request carried; ``limited``: refused for rate or quota."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    records: int = 0
    limited: bool = False


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def to_json(obj: object) -> bytes:
    """Compact UTF-8 JSON; whole Decimals become integers, others floats."""
    return json.dumps(obj, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def json_response(
    status: int,
    obj: object,
    headers: Mapping[str, str] | None = None,
    *,
    records: int = 0,
    limited: bool = False,
) -> Response:
    """Build an answer whose body is ``obj`` as JSON."""
    fields = {"Content-Type": "application/json;charset=UTF-8", **(headers or {})}
    return Response(status, to_json(obj), fields, records, limited)


class SettingsError(ValueError):
    """An admin request names a setting, object or record that does not exist, or has a wrong value."""


class Crm(ABC):
    """Base of the two CRMs. ``settings`` holds every setting with its present value; ``defaults`` adds a CRM's own.

    Settings of all CRMs: ``latency`` (seconds added to every answer, after the work), ``seed`` (of every random
    choice), ``version_field`` (a field name for all objects, or {object: field}; see ``books``), None for none.
    """

    name: ClassVar[str]

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = {"latency": 0.0, "seed": 0, "version_field": None, **defaults}
        self.books = Books()
        self.faults = Faults()

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Change settings. Raises SettingsError (and changes nothing) for an unknown name."""
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            raise SettingsError(f"unknown setting: {', '.join(unknown)} (known: {', '.join(sorted(self.settings))})")
        before = dict(self.settings)
        self.settings.update(settings)
        try:
            self.settings_changed(set(settings))
        except (SettingsError, TypeError, ValueError, KeyError, AttributeError) as error:
            self.settings = before
            raise SettingsError(f"bad setting: {error}") from error
        if "seed" in settings:
            self.faults.reseed(int(settings["seed"]))

    def settings_changed(self, names: set[str]) -> None:  # noqa: B027 - a hook; most settings need none
        """Take over changed settings; called by ``configure``. Raises SettingsError for a bad value."""

    def version_field(self, object_name: str) -> str | None:
        """Name the field that the source only ever increases, if the settings name one for this object."""
        named = self.settings["version_field"]
        return named.get(object_name) if isinstance(named, dict) else named

    def objects_of(self, request: Request) -> set[str]:
        """Which objects a request is about, lower case, for fault rules with ``match.object``; a guess is fine."""
        return {segment.lower() for segment in request.segments}

    def advance(self, now: float) -> None:  # noqa: B027 - a hook; not every CRM has jobs
        """Do what has become due by ``now`` (bulk jobs); called before every request, admin request and regularly."""

    @abstractmethod
    def handle(self, request: Request, now: float) -> Response:
        """Answer one request."""

    @abstractmethod
    def refusal(self, rule: Rule, request: Request, now: float) -> Response:
        """Give the CRM's true answer for ``rule.status`` (rate limit, 5xx …); used by refuse and do_then_fail."""

    @abstractmethod
    def expire_tokens(self) -> None:
        """Make every access token given so far invalid."""

    @abstractmethod
    def records(self, object_name: str | None) -> Sequence[Mapping[str, Any]]:
        """All records (of one object), archived ones too.

        Each: ``object``, ``id``, ``key`` ({external-key field: value}), ``fields``, ``archived``, ``writes`` (count),
        ``created``, ``modified`` (Unix times).
        """

    @abstractmethod
    def edit(self, object_name: str, record_id: str, fields: Mapping[str, Any], now: float) -> None:
        """Change a record as a person in the CRM would. Raises SettingsError if refused."""

    @abstractmethod
    def remove(self, object_name: str, record_id: str, now: float) -> None:
        """Delete a record as a person in the CRM would. Raises SettingsError if there is none."""

    @abstractmethod
    def merge(self, object_name: str, record_id: str, other_id: str, now: float) -> str:
        """Merge another record into one as a person would; returns the survivor's id. Raises SettingsError."""

    @abstractmethod
    def reset(self) -> None:
        """Forget records, jobs, quotas and books; keep schema and settings."""
