"""``cdcsync check`` for Salesforce: objects, fields, external ids, references and rights, by what describe tells us.

Describe hides what the integration user may not see, so a field that is not there may just lack permission.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from cdcsync.apply.base import Finding, Wanted
from cdcsync.apply.salesforce_objects import Objects, Shape
from cdcsync.errors import CredentialsError, FatalError


class Checker:
    """Compares mappings with descriptions."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def findings(self, wanted: Sequence[Wanted]) -> list[Finding]:
        """Give the lines of all mappings. Raises CredentialsError, TransientError or RateLimitedError."""
        return [finding for want in wanted for finding in self._mapping(want)]

    def _mapping(self, want: Wanted) -> Iterator[Finding]:
        name = want.target.object
        shape = self._shape(name)
        if isinstance(shape, FatalError):
            yield Finding(f"{want.mapping}: object {name}", ok=False, message=shape.message, hint=shape.hint)
            return
        yield _object(want, shape)
        yield _key(want, shape)
        for field, source in want.fields.items():
            yield _field(want, shape, field, source)
            if field in want.refs:
                yield self._reference(want, shape, field)
        yield from _required(want, shape)

    def _shape(self, name: str) -> Shape | FatalError:
        try:
            return self._objects.shape(name)
        except CredentialsError:
            raise
        except FatalError as error:
            return error

    def _reference(self, want: Wanted, shape: Shape, name: str) -> Finding:
        parent, key_field = want.refs[name]
        subject = f"{want.mapping}: {name} → {parent}.{key_field}"
        field = shape.field(name)
        if field is not None and parent not in field.refers_to:
            message = f"{name} refers to {', '.join(field.refers_to) or 'nothing'}, not to {parent}"
            return Finding(subject, ok=False, message=message, hint="correct `ref` in the mapping")
        other = self._shape(parent)
        if isinstance(other, FatalError):
            return Finding(subject, ok=False, message=other.message, hint=other.hint)
        key = other.field(key_field)
        if key is None or not key.external_id:
            what = f"{key_field} is not an External ID" if key else f"there is no field {key_field}"
            return Finding(subject, ok=False, message=what, hint=_create_key(parent, key_field))
        return Finding(subject, ok=True, message="by external id")


def _object(want: Wanted, shape: Shape) -> Finding:
    rights = [("create", shape.createable), ("edit", shape.updateable), ("delete", shape.deletable or not want.deletes)]
    lacking = [name for name, given in rights if not given]
    subject = f"{want.mapping}: object {want.target.object}"
    if not lacking:
        return Finding(subject, ok=True, message=f"{len(shape.fields)} fields")
    hint = f"Setup → Permission Sets → Object Settings → {want.target.object}: tick {', '.join(lacking).title()}"
    if lacking == ["delete"]:
        hint += ', or set on_delete = "ignore"'
    return Finding(subject, ok=False, message=f"the integration user may not {' or '.join(lacking)} records", hint=hint)


def _key(want: Wanted, shape: Shape) -> Finding:
    name, target = want.target.key_field, want.target.object
    subject = f"{want.mapping}: key {name}"
    field = shape.field(name)
    if field is None:
        hint = _suggest(name, (one.name for one in shape.fields.values() if one.external_id))
        message = "there is no such field for the integration user"
        return Finding(subject, ok=False, message=message, hint=hint or _create_key(target, name))
    if not field.external_id:
        return Finding(subject, ok=False, message="the field is not an External ID", hint=_create_key(target, name))
    if not (field.createable and field.updateable):
        return Finding(subject, ok=False, message="the field may not be written", hint=_allow(target, name))
    if not field.unique:
        message = "an External ID, but not unique: another writer at the same time could double a record"
        return Finding(subject, ok=True, message=message, hint=f"{_page(target)} → {name} → Edit: tick Unique")
    if field.is_number or field.case_sensitive:
        return Finding(subject, ok=True, message="unique")
    message = "unique, but keys that differ in upper and lower case only are one key"
    return Finding(subject, ok=True, message=message)


def _field(want: Wanted, shape: Shape, name: str, source: str) -> Finding:
    subject = f"{want.mapping}: {name} = {source}"
    target = want.target.object
    field = shape.field(name)
    if field is None:
        hint = _suggest(name, (one.name for one in shape.fields.values()))
        hint = hint or f"create it: {_page(target)} → New; or {_allow(target, name)}"
        return Finding(subject, ok=False, message="there is no such field for the integration user", hint=hint)
    if not field.createable and not field.updateable:
        message = f"the field ({field.type}) may not be written"
        hint = f"take it out of the mapping if it is a formula or a system field, or {_allow(target, name)}"
        return Finding(subject, ok=False, message=message, hint=hint)
    if not field.updateable or not field.createable:
        when = "created" if field.createable else "updated"
        message = f"the field ({field.type}) may be written only when a record is {when}"
        return Finding(subject, ok=False, message=message, hint=f"take {name} out of the mapping")
    if name in want.only_if_empty and field.type == "boolean":
        message = "a checkbox is never empty: it is written when the record is created, and never again"
        return Finding(subject, ok=True, message=message)
    return Finding(subject, ok=True, message=field.type)


def _required(want: Wanted, shape: Shape) -> Iterator[Finding]:
    given = {name.lower() for name in (*want.fields, want.target.key_field)}
    for field in shape.fields.values():
        if field.required and field.name.lower() not in given:
            yield Finding(
                f"{want.mapping}: {field.name}",
                ok=False,
                message="Salesforce creates no record without this field, and the mapping does not fill it",
                hint=f'map a column to it, or a default: {field.name} = {{ column = "…", default = "…" }}',
            )


def _page(target: str) -> str:
    return f"Setup → Object Manager → {target} → Fields & Relationships"


def _allow(target: str, name: str) -> str:
    return f"give the integration user access: Setup → Permission Sets → Object Settings → {target} → {name}: tick Edit"


def _create_key(target: str, name: str) -> str:
    return f"{_page(target)} → New → Text: {name}, tick Unique, “case sensitive” and External ID"


def _suggest(name: str, known: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.8)
    return f"did you mean {by_lower[close[0]]}?" if close else ""
