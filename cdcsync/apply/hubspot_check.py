"""``cdcsync check`` for HubSpot: objects reachable, properties there and writable, keys unique, associations known."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cdcsync.apply.base import Finding, Wanted
from cdcsync.apply.hubspot_links import LinkTypes
from cdcsync.apply.hubspot_session import HubspotSession
from cdcsync.errors import BatchRejectedError, CredentialsError, FatalError


class Checker:
    """Reads each object's property definitions once (half a megabyte for contacts)."""

    def __init__(self, session: HubspotSession, types: LinkTypes) -> None:
        self._session = session
        self._types = types
        self._definitions: dict[str, Mapping[str, Mapping[str, Any]] | FatalError] = {}

    def findings(self, wanted: Sequence[Wanted]) -> list[Finding]:
        """Give the lines of all mappings. Raises CredentialsError, TransientError or RateLimitedError."""
        return [finding for want in wanted for finding in self._mapping(want)]

    def _mapping(self, want: Wanted) -> Iterator[Finding]:
        target = want.target
        known = self._properties(target.object)
        if isinstance(known, FatalError):
            yield Finding(f"{want.mapping}: object {target.object}", ok=False, message=known.message, hint=known.hint)
            return
        yield Finding(f"{want.mapping}: object {target.object}", ok=True, message=f"{len(known)} properties")
        yield _key(want, known)
        yield from (_field(want, name, source, known) for name, source in want.fields.items())
        yield from (self._link(want, to_object, name) for to_object, name in want.links)

    def _properties(self, object_type: str) -> Mapping[str, Mapping[str, Any]] | FatalError:
        if object_type not in self._definitions:
            self._definitions[object_type] = self._read(object_type)
        return self._definitions[object_type]

    def _read(self, object_type: str) -> Mapping[str, Mapping[str, Any]] | FatalError:
        try:
            answer = self._session.call(self._session.properties.get_all, object_type)
        except CredentialsError:
            raise
        except FatalError as error:
            return error
        except BatchRejectedError as error:
            return FatalError(error.message, hint="check the object's name in the mapping")
        return {str(entry["name"]): entry for entry in answer.get("results", []) if "name" in entry}

    def _link(self, want: Wanted, to_object: str, name: str) -> Finding:
        subject = f"{want.mapping}: association {name}"
        from_object = want.target.object
        try:
            self._types.confirm(from_object, to_object, name)
        except CredentialsError:
            raise
        except (FatalError, BatchRejectedError) as error:
            return Finding(subject, ok=False, message=error.message, hint=error.hint)
        return Finding(subject, ok=True, message=f"{from_object} to {to_object}")


def _key(want: Wanted, known: Mapping[str, Mapping[str, Any]]) -> Finding:
    name = want.target.key_field
    subject = f"{want.mapping}: key {name}"
    create = (
        f"create a single-line text property {name} on {want.target.object} with “Require unique values” "
        '("hasUniqueValue": true in the API); it cannot be switched on later'
    )
    definition = known.get(name)
    if definition is None:
        return Finding(subject, ok=False, message="there is no such property", hint=_suggest(name, known) or create)
    if _read_only(definition):
        return Finding(subject, ok=False, message="the property is read-only", hint=create)
    if not definition.get("hasUniqueValue"):
        return Finding(subject, ok=False, message="the property does not hold unique values", hint=create)
    return Finding(subject, ok=True, message="unique")


def _field(want: Wanted, name: str, source: str, known: Mapping[str, Mapping[str, Any]]) -> Finding:
    subject = f"{want.mapping}: {name} = {source}"
    definition = known.get(name)
    if definition is None:
        hint = _suggest(name, known) or f"create the property {name} on {want.target.object}, or take it out"
        return Finding(subject, ok=False, message="there is no such property", hint=hint)
    if _read_only(definition):
        return Finding(subject, ok=False, message="the property is read-only", hint=f"take {name} out of the mapping")
    return Finding(subject, ok=True, message=str(definition.get("type", "")))


def _read_only(definition: Mapping[str, Any]) -> bool:
    metadata = definition.get("modificationMetadata")
    return bool(definition.get("calculated")) or (isinstance(metadata, dict) and bool(metadata.get("readOnlyValue")))


def _suggest(name: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else ""
