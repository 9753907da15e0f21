"""What the single-row and the Collections resources share: reading bodies, opening transactions, writing one row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NoReturn

from cdcsync.sandbox.books import Books
from cdcsync.sandbox.crm import Request
from cdcsync.sandbox.salesforce_auth import Session
from cdcsync.sandbox.salesforce_errors import ApiError, RowError
from cdcsync.sandbox.salesforce_ids import canonical
from cdcsync.sandbox.salesforce_locks import RowLocks
from cdcsync.sandbox.salesforce_rows import read_json
from cdcsync.sandbox.salesforce_schema import Entity, Field
from cdcsync.sandbox.salesforce_store import Store
from cdcsync.sandbox.salesforce_writes import Transaction

ROOT_LENGTH: Final = 3  # services/data/vXX.0


def read_body(body: bytes) -> Any:
    """Parse a JSON body, numbers kept exact. Raises ApiError JSON_PARSER_ERROR."""
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_not_json)
    except json.JSONDecodeError as error:
        message = f"{error.msg} at [line:{error.lineno}, column:{error.colno}]"
        raise ApiError(400, "JSON_PARSER_ERROR", message) from error
    except ValueError as error:
        raise ApiError(400, "JSON_PARSER_ERROR", f"Unexpected character at [line:1, column:1] ({error})") from error


def _not_json(token: str) -> NoReturn:
    raise ValueError(f"Non-standard token '{token}'")


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON body that must be an object. Raises ApiError JSON_PARSER_ERROR."""
    raw = read_body(body)
    if not isinstance(raw, dict):
        raise ApiError(400, "JSON_PARSER_ERROR", "Can not deserialize SObject out of START_ARRAY token")
    return raw


def root_of(request: Request) -> str:
    """Give ``/services/data/vXX.0`` as the request wrote it."""
    return "/" + "/".join(request.segments[:ROOT_LENGTH])


@dataclass(slots=True)
class Writing:
    """The org as REST writes see it."""

    store: Store
    books: Books
    settings: Mapping[str, Any]
    locks: RowLocks
    version_field: Callable[[str], str | None]
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def transaction(self, request: Request, session: Session, now: float, *, undoable: bool = False) -> Transaction:
        """Open a transaction, which lasts (and keeps its locks) until the answer leaves."""
        owner = f"request {next(self._numbers)}"
        until = now + float(self.settings["latency"])
        lock = self.locks.of(owner, request.method, request.path, now, until)
        return Transaction(self.store, self.books, self.version_field, now, session.user_id, lock, undoable=undoable)

    def for_job(self, job_id: str, path: str, user: str, now: float, until: float) -> Transaction:
        """Open a bulk job's transaction, which lasts (and keeps its locks) until the Unix time ``until``."""
        lock = self.locks.of(job_id, "PATCH", path, now, until)
        return Transaction(self.store, self.books, self.version_field, now, user, lock)

    def overtaxed(self, object_name: str, rows: int) -> RowError | None:
        """Give the error of a transaction's rows of one object if they are more than its triggers have the time for."""
        bound = self.settings["trigger_rows"].get(object_name)
        if bound is None or rows <= bound:
            return None
        message = f"{object_name}Trigger: System.LimitException: Apex CPU time limit exceeded"
        return RowError("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", message)

    def entity(self, name: str) -> Entity:
        """Find an object. Raises ApiError NOT_FOUND."""
        entity = self.store.schema.entity(name)
        if entity is None:
            raise ApiError(404, "NOT_FOUND", "The requested resource does not exist")
        return entity

    def key_field(self, entity: Entity, name: str) -> Field:
        """Find a field by which an object's records are found. Raises ApiError NOT_FOUND."""
        member = entity.field(name)
        if member is None or not member.matchable:
            message = f"Provided external ID field does not exist or is not accessible: {name}"
            raise ApiError(404, "NOT_FOUND", message)
        return member

    def insert(self, writes: Transaction, entity: Entity, raw: Mapping[str, Any]) -> str:
        """Create a record from its JSON form; returns its id. Raises RowError."""
        if any(name.lower() == "id" and value for name, value in raw.items()):
            raise RowError("INVALID_FIELD_FOR_INSERT_UPDATE", "cannot specify Id in an insert call", ["Id"])
        return writes.insert(entity, read_json(self.store, entity, raw))

    def update(self, writes: Transaction, entity: Entity, raw: Mapping[str, Any]) -> str:
        """Change the record whose id is in its JSON form; returns the id. Raises RowError."""
        record_id = sent_id(raw)
        writes.update(entity, record_id, read_json(self.store, entity, raw))
        return record_id


def sent_id(raw: Mapping[str, Any]) -> str:
    """Take the id out of a record's JSON form. Raises RowError."""
    given = next((value for name, value in raw.items() if name.lower() == "id"), None)
    if not given:
        raise RowError("MISSING_ARGUMENT", "Id not specified in an update call")
    record_id = canonical(given)
    if record_id is None:
        raise RowError("MALFORMED_ID", f"malformed id {given}")
    return record_id
