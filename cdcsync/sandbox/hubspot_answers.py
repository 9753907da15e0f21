"""How HubSpot says no: refusals of whole requests, and complaints about single inputs of a batch. Pure.

A complaint is what is wrong with one input. With trace ids it becomes an entry of ``errors`` in a 207; without them the
complaints of all inputs become one refusal, which names properties but never the row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VALIDATION = "VALIDATION_ERROR"
_LISTED_ERRORS = 3  # a recorded answer spells out only the first three property errors of four


class RefusedError(Exception):
    """The request as a whole is answered with an error; ``members`` are the body's members after the message."""

    def __init__(self, status: int, message: str, category: str | None = None, **members: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.category = category
        self.members = members

    def body(self, correlation: str) -> dict[str, Any]:
        """Return the JSON body; ``correlation`` is the request's id."""
        category = {"category": self.category} if self.category else {}
        return {
            "status": "error",
            "message": self.message,
            "correlationId": correlation,
            **self.members,
            **category,
        }


@dataclass(frozen=True, slots=True)
class InvalidValue:
    """One property of one input that cannot be stored."""

    name: str
    code: str
    message: str

    def as_text(self) -> dict[str, Any]:
        """Return the form inside the message text."""
        return {"isValid": False, "message": self.message, "error": self.code, "name": self.name}

    def as_json(self) -> dict[str, Any]:
        """Return the form inside ``errors``."""
        return {"message": self.message, "code": self.code, "context": {"propertyName": [self.name]}}


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with one input. ``conflict``: it collides with another record's unique value."""

    status: int
    category: str
    message: str
    context: tuple[tuple[str, tuple[str, ...]], ...] = ()
    invalid: tuple[InvalidValue, ...] = ()
    conflict: bool = False

    def as_row(self, trace: str) -> dict[str, Any]:
        """Return the entry of a 207's ``errors``; recorded ones have neither id, links nor errors."""
        context = {"objectWriteTraceId": [trace], **{name: list(values) for name, values in self.context}}
        return {"status": "error", "category": self.category, "message": self.message, "context": context}


def invalid_values(invalid: Sequence[InvalidValue], *, conflict: bool = False) -> Complaint:
    """Complain about property values."""
    listed = json.dumps([one.as_text() for one in invalid], ensure_ascii=False, separators=(",", ":"))
    return Complaint(
        400, VALIDATION, f"Property values were not valid: {listed}", invalid=tuple(invalid), conflict=conflict
    )


def missing_required(singular: str, names: Sequence[str]) -> Complaint:
    """Complain that required properties are absent from a create."""
    message = f"Error creating {singular.upper()}. Some required properties were not set."
    return Complaint(400, VALIDATION, message, (("properties", tuple(names)),))


def already_exists(singular: str, existing_id: str | None) -> Complaint:
    """Complain that a contact with this e-mail exists; without an id if that is another input of the same batch."""
    message = f"{singular.capitalize()} already exists"
    if existing_id is None:
        return Complaint(409, "CONFLICT", message, conflict=True)
    return Complaint(
        409, "CONFLICT", f"{message}. Existing ID: {existing_id}", (("existingId", (existing_id,)),), conflict=True
    )


def refusal_of(complaints: Sequence[Complaint]) -> RefusedError:
    """Refuse a whole batch for its inputs' complaints; property errors come first, and together."""
    invalid = [one for complaint in complaints if not complaint.conflict for one in complaint.invalid]
    if invalid:
        return _property_refusal(invalid_values(invalid))
    first = complaints[0]
    if first.invalid:
        return _property_refusal(first)
    context = {name: list(values) for name, values in first.context if name != "existingId"}
    return RefusedError(first.status, first.message, first.category, **({"context": context} if context else {}))


def _property_refusal(complaint: Complaint) -> RefusedError:
    errors = [one.as_json() for one in complaint.invalid[:_LISTED_ERRORS]]
    return RefusedError(complaint.status, complaint.message, complaint.category, errors=errors)


def bad_json(detail: str, line: int = 1, column: int = 1) -> RefusedError:
    """Refuse a body that is not the JSON wanted; these answers come without a category."""
    return RefusedError(400, f"Invalid input JSON on line {line}, column {column}: {detail}")


def missing_fields(*names: str) -> RefusedError:
    """Refuse a body that lacks fields."""
    return RefusedError(
        400,
        f"Invalid input JSON on line 1, column 2. Some required fields were not set: [{', '.join(names)}]",
        VALIDATION,
    )


def not_found() -> RefusedError:
    """Answer for a single record or definition that does not exist."""
    return RefusedError(404, "resource not found")


def objects_not_found(singular: str, ids: Sequence[str]) -> dict[str, Any]:
    """One entry of a 207's ``errors`` for all unknown ids of the batch together."""
    return {
        "status": "error",
        "category": "OBJECT_NOT_FOUND",
        "message": (
            f"Could not get some {singular.upper()} objects, they may be deleted or not exist. "
            "Check that ids are valid."
        ),
        "context": {"ids": list(ids)},
    }
