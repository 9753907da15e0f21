"""Objects and fields as Salesforce describes them to the user that we are, read once and kept.

``GET /sobjects/NAME/describe`` leaves out the fields that the user may not see. Source: REST guide, "sObject Describe".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote

from cdcsync.apply.salesforce_errors import Answer
from cdcsync.errors import FatalError

NUMBER_TYPES: Final = frozenset({"double", "int", "long", "currency", "percent"})
NO_SUCH: Final = 404


class Caller(Protocol):
    """What is needed of the session."""

    def call(self, method: str, path: str, *, accept: frozenset[int] = ...) -> Answer:
        """Send one request; statuses in ``accept`` are answers, not errors."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field, by describe's words. ``relationship`` is None where the field refers to nothing."""

    name: str
    type: str
    createable: bool
    updateable: bool
    required: bool
    external_id: bool
    unique: bool
    case_sensitive: bool
    relationship: str | None
    refers_to: tuple[str, ...]

    @property
    def is_number(self) -> bool:
        """Whether values compare as numbers, and stand without quotes in JSON and SOQL."""
        return self.type in NUMBER_TYPES

    @property
    def polymorphic(self) -> bool:
        """Whether a reference must name the object that it goes to."""
        return len(self.refers_to) > 1


@dataclass(frozen=True, slots=True)
class Shape:
    """One object. ``fields`` are by lower-case name: the API does not mind the case."""

    name: str
    createable: bool
    updateable: bool
    deletable: bool
    fields: Mapping[str, Field]

    def field(self, name: str) -> Field | None:
        """Find a field by name, in any case."""
        return self.fields.get(name.lower())


class Objects:
    """The descriptions of one org. Thread-safe; threads may read the same one twice."""

    def __init__(self, session: Caller) -> None:
        self._session = session
        self._shapes: dict[str, Shape] = {}
        self._lock = threading.Lock()

    def shape(self, name: str) -> Shape:
        """Describe an object. Raises FatalError if it is not there for us, and as the session does."""
        with self._lock:
            known = self._shapes.get(name)
        if known is None:
            known = self._read(name)
            with self._lock:
                self._shapes[name] = known
        return known

    def forget(self, name: str) -> None:
        """Read an object's description anew when it is next asked for: it seems to have changed."""
        with self._lock:
            self._shapes.pop(name, None)

    def key_field(self, name: str, key_field: str) -> Field:
        """Find an object's key field. Raises FatalError if it is not there for us."""
        found = self.shape(name).field(key_field)
        if found is None:
            self.forget(name)
            raise FatalError(
                f"the Salesforce object {name} has no field {key_field} that we may see",
                hint=f"create it, or give the integration user access: Setup → Object Manager → {name} → Fields",
            )
        return found

    def _read(self, name: str) -> Shape:
        answer = self._session.call("GET", f"sobjects/{quote(name, safe='')}/describe", accept=frozenset({NO_SUCH}))
        if answer.status == NO_SUCH:
            raise FatalError(
                f"there is no Salesforce object {name} for the integration user",
                hint=f"check the name (custom objects end in __c) and the access: Setup → Object Manager → {name}; "
                "Setup → Permission Sets → Object Settings",
            )
        return read_shape(answer.object())


def read_shape(body: Mapping[str, Any]) -> Shape:
    """Read a describe answer."""
    fields = [_field(entry) for entry in body.get("fields", ())]
    return Shape(
        name=str(body.get("name", "")),
        createable=body.get("createable") is True,
        updateable=body.get("updateable") is True,
        deletable=body.get("deletable") is True,
        fields={field.name.lower(): field for field in fields},
    )


def _field(entry: Mapping[str, Any]) -> Field:
    createable = entry.get("createable") is True
    given = entry.get("nillable") is True or entry.get("defaultedOnCreate") is True or entry.get("type") == "boolean"
    return Field(
        name=str(entry["name"]),
        type=str(entry.get("type", "")),
        createable=createable,
        updateable=entry.get("updateable") is True,
        required=createable and not given,
        external_id=entry.get("externalId") is True or entry.get("idLookup") is True,
        unique=entry.get("unique") is True,
        case_sensitive=entry.get("caseSensitive") is True,
        relationship=entry.get("relationshipName") or None,
        refers_to=tuple(str(name) for name in entry.get("referenceTo") or ()),
    )
