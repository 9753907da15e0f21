"""Reading request bodies: JSON, batches and their inputs. Raises RefusedError in HubSpot's words. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from cdcsync.sandbox.hubspot_answers import VALIDATION, RefusedError, bad_json, missing_fields

MAX_INPUTS: Final = 100


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a batch write. Values are as text, None where JSON null was sent."""

    id: str
    properties: Mapping[str, str | None]
    id_property: str | None = None
    trace: str | None = None
    associations: tuple[Mapping[str, Any], ...] = ()


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object. Decimals keep their text."""
    try:
        parsed = json.loads(body, parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise bad_json(f"{error.msg}", error.lineno, error.colno) from error
    except UnicodeDecodeError as error:
        raise bad_json("Invalid UTF-8") from error
    if not isinstance(parsed, dict):
        raise bad_json("Cannot deserialize value of type `BatchInput` from this token")
    return parsed


def read_batch(body: bytes, limit: int = MAX_INPUTS) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parse a batch; returns the whole body and its inputs."""
    parsed = read_object(body)
    inputs = parsed.get("inputs")
    if inputs is None:
        raise missing_fields("inputs")
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise bad_json("Cannot deserialize value of type `java.util.ArrayList` from this token")
    if len(inputs) > limit:
        raise too_many(limit)
    return parsed, inputs


def too_many(limit: int, what: str = "objects") -> RefusedError:
    """Refuse a batch that is too large (the sentence is recorded for property histories only)."""
    return RefusedError(
        400,
        f"The maximum number of inputs supported in a batch request for {what} is {limit}. "
        "Please reduce the number of items and try again",
        VALIDATION,
    )


def read_input(raw: Mapping[str, Any], *, needs_id: bool) -> Input:
    """Read one input of a create (no id), update or upsert."""
    needed = ("id", "properties") if needs_id else ("properties",)
    missing = [name for name in needed if raw.get(name) is None]
    if missing:
        raise missing_fields(*missing)
    trace = raw.get("objectWriteTraceId")
    id_property = raw.get("idProperty")
    return Input(
        id=as_text(raw.get("id")) or "",
        properties=read_properties(raw["properties"]),
        id_property=as_text(id_property),
        trace=as_text(trace),
        associations=tuple(as_objects(raw.get("associations") or [])),
    )


def read_properties(raw: object) -> dict[str, str | None]:
    """Read property values: strings, numbers, booleans or null."""
    if not isinstance(raw, dict):
        raise bad_json("Cannot deserialize value of type `java.util.LinkedHashMap<java.lang.String,java.lang.String>`")
    return {name: as_text(value) for name, value in raw.items()}


def as_text(value: object) -> str | None:
    """Return a JSON scalar as the text that HubSpot makes of it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(value)
    raise bad_json("Cannot deserialize value of type `java.lang.String` from Object or Array value")


def as_objects(value: object) -> Sequence[Mapping[str, Any]]:
    """Return a JSON list of objects."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise bad_json("Cannot deserialize value of type `java.util.ArrayList` from this token")
    return value


def record_id(value: object) -> str:
    """Return the ``id`` of an object like ``{"id": "1"}``; a number will do."""
    if not isinstance(value, dict) or value.get("id") is None:
        raise missing_fields("id")
    return as_text(value["id"]) or ""
