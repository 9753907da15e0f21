"""One HubSpot portal: everything that its routes share, and how it prints records."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from typing import Any

from cdcsync.sandbox.books import Books
from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.faults import Faults
from cdcsync.sandbox.hubspot_access import Access, object_scopes
from cdcsync.sandbox.hubspot_answers import RefusedError
from cdcsync.sandbox.hubspot_association_types import AssociationTypes
from cdcsync.sandbox.hubspot_batches import BatchAnswer, Batches, Result
from cdcsync.sandbox.hubspot_quotas import Quotas
from cdcsync.sandbox.hubspot_schema import ObjectType, Schema
from cdcsync.sandbox.hubspot_store import Store, Stored
from cdcsync.sandbox.hubspot_values import print_time


class Portal:
    """A portal's definitions, records, tokens and quotas. ``touch_delay``: see ``modified_at``."""

    def __init__(self, books: Books, faults: Faults) -> None:
        self.schema = Schema()
        self.store = Store(self.schema, books)
        self.batches = Batches(self.store)
        self.association_types = AssociationTypes()
        self.access = Access()
        self.quotas = Quotas()
        self.faults = faults
        self.touch_delay = 5.0
        self.random = random.Random(0)

    def correlation(self) -> str:
        """Return a request id."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def kind(self, text: str, mode: str) -> ObjectType:
        """Return the object type that a path names, if the caller may read or write it. Raises RefusedError."""
        kind = self.schema.resolve(text)
        self.access.require(object_scopes(kind, mode))
        return kind

    def check_locks(self, request: Request, kind: ObjectType) -> None:
        """Refuse a write if a fault rule says that its records are locked. Raises RefusedError."""
        names = {kind.name.lower(), kind.singular.lower(), kind.type_id}
        if self.faults.strike({"lock"}, request.method, request.path, names):
            raise locked()

    def modified_at(self, record: Stored, now: float) -> float:
        """When a record was last modified; a contact's background calculations touch it some seconds after a write."""
        due = record.modified + self.touch_delay
        touched = record.kind.name == "contacts" and self.touch_delay > 0 and now >= due
        return due if touched else record.modified

    def print_record(self, result: Result, now: float) -> dict[str, Any]:
        """Return a record as the API shows it."""
        record, kind = result.record, result.record.kind
        modified = print_time(self.modified_at(record, now))
        properties: dict[str, str | None] = {**record.properties, kind.modified_property: modified}
        if result.names is not None:
            wanted = sorted(set(result.names) & set(kind.properties))
            properties = {name: properties.get(name) for name in wanted}
        printed: dict[str, Any] = {
            "id": record.id,
            "properties": properties,
            "createdAt": print_time(record.created),
            "updatedAt": modified,
            "archived": record.archived is not None,
        }
        if record.archived is not None:
            printed["archivedAt"] = print_time(record.archived)
        if result.new is not None:
            printed["new"] = result.new
        printed["url"] = f"https://app.hubspot.com/contacts/{self.schema.portal_id}/record/{kind.type_id}/{record.id}"
        return printed

    def answer_batch(self, answer: BatchAnswer, now: float, *, success: int, records: int) -> Response:
        """Answer a batch of records; the order of results means nothing, and is shuffled."""
        results = [self.print_record(one, now) for one in answer.results]
        self.random.shuffle(results)
        return answer_multi(results, answer.errors, now, success=success, records=records)


def answer_multi(
    results: Iterable[Any], errors: list[dict[str, Any]], now: float, *, success: int, records: int
) -> Response:
    """Answer a batch: ``success``, or 207 where there are errors."""
    time = print_time(now)
    body: dict[str, Any] = {"completedAt": time, "status": "COMPLETE", "startedAt": time, "results": list(results)}
    if errors:
        body |= {"errors": errors, "numErrors": len(errors)}
    return json_response(207 if errors else success, body, records=records)


def locked() -> RefusedError:
    """Return the answer while other writes hold a record: wait two seconds at least (the text is not documented)."""
    return RefusedError(423, "The resource is locked by another request. Wait at least 2 seconds.", "LOCKED")
