"""Records read by id, up to 2,000 in one request of the Collections resource (``POST composite/sobjects/X``).

From the REST guide, "Get Records With a Request Body Using sObject Collections": as many entries as ids, in their
order, and null for an id that is invalid or of nothing that may be seen. What it does not say, and is a guess: the
words of the refusals of too many ids and of a body without ids or fields, and that what was deleted is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cdcsync.sandbox.salesforce_errors import ApiError
from cdcsync.sandbox.salesforce_ids import canonical
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Store

LIMIT: Final = 2_000


def retrieve(store: Store, entity: Entity, body: Mapping[str, Any], root: str) -> list[dict[str, Any] | None]:
    """Read the records that a body asks for; ``root`` is the path before ``/sobjects``. Raises ApiError."""
    ids, names = _texts(body, "ids"), _texts(body, "fields")
    if len(ids) > LIMIT:
        message = f"record limit reached. cannot submit more than {LIMIT} records into this call"
        raise ApiError(400, "EXCEEDED_ID_LIMIT", message)
    members = [_member(entity, name) for name in names]
    return [_entry(store, entity, given, members, root) for given in ids]


def _texts(body: Mapping[str, Any], name: str) -> Sequence[str]:
    given = body.get(name)
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise ApiError(400, "MISSING_ARGUMENT", f"Required parameter is missing: {name}")
    return given


def _member(entity: Entity, name: str) -> Field:
    member = entity.field(name)
    if member is None:
        raise ApiError(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type {entity.name}")
    return member


def _entry(store: Store, entity: Entity, given: str, members: Sequence[Field], root: str) -> dict[str, Any] | None:
    record = store.records.get(canonical(given) or "")
    if record is None or record.entity is not entity or record.deleted:
        return None
    attributes = {"type": entity.name, "url": f"{root}/sobjects/{entity.name}/{record.id}"}
    return {"attributes": attributes, **{member.name: record.present(member) for member in members}}
