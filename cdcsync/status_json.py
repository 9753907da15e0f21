"""A ``Snapshot`` as JSON and back; the form is documented in ``docs/json.md`` and versioned by ``"format"``.

Fields may be added within a format; a field that changes its meaning or goes away raises the number. Every field of
the dataclasses appears under its own name; LSNs are text, times are ISO 8601 in UTC. What a reader would have to
compute (the sentence, the balance) is added on the way out and ignored on the way in.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from cdcsync.model import Lsn, format_lsn, parse_lsn
from cdcsync.proof import Proof, prove
from cdcsync.status import LaneStatus, Snapshot, SourceStatus

FORMAT = 1


def to_json(snapshot: Snapshot) -> dict[str, Any]:
    """Turn a snapshot into a value that ``json.dumps`` takes."""
    head = {"format": FORMAT, "sentence": snapshot.sentence, "in_step": snapshot.in_step}
    lanes = [_encode(lane) | {"proof": proof_fields(prove(snapshot, lane))} for lane in snapshot.lanes]
    return head | dict(_encode(snapshot)) | {"lanes": lanes}


def from_json(document: dict[str, Any]) -> Snapshot:
    """Read what ``to_json`` wrote. Raises ValueError for another format or a missing field."""
    if document.get("format") != FORMAT:
        msg = f"status format {document.get('format')!r} is not {FORMAT}: the daemon is of another version"
        raise ValueError(msg)
    decoded = _decode(Snapshot, document)
    if not isinstance(decoded, Snapshot):
        raise TypeError(decoded)
    return decoded


def dumps(snapshot: Snapshot) -> str:
    """Print a snapshot as an indented JSON document."""
    return json.dumps(to_json(snapshot), indent=2, ensure_ascii=False)


def proof_fields(proof: Proof) -> dict[str, Any]:
    """Turn what is known of a CRM into a value that ``json.dumps`` takes."""
    return dict(_encode(proof)) | {"excepted": proof.excepted, "sentence": proof.sentence}


def wait_json(proof: Proof, lsn: int) -> str:
    """Print whether a CRM is current as of ``lsn`` as a line of JSON."""
    head = {"format": FORMAT, "lsn": format_lsn(lsn), "current": proof.covers(lsn)}
    return json.dumps(head | proof_fields(proof), ensure_ascii=False)


def lag_json(source: SourceStatus, lane: LaneStatus) -> str:
    """Print one CRM's lag as a line of JSON."""
    seconds = source.seconds_behind(lane)
    entry = {
        "format": FORMAT,
        "crm": lane.name,
        "bytes": source.bytes_behind(lane),
        "seconds": None if seconds is None else round(seconds, 3),
        "rows": lane.pending,
        "rejected": lane.rejected,
        "unmapped": lane.unmapped,
    }
    return json.dumps(entry, ensure_ascii=False)


def fields_json(fields: Mapping[str, Any]) -> str:
    """Print a flat record as a line of JSON; what is called ``…_lsn`` is an LSN."""
    values = {
        name: format_lsn(value) if name.endswith("_lsn") and value is not None else _encode(value)
        for name, value in fields.items()
    }
    return json.dumps({"format": FORMAT, **values}, ensure_ascii=False)


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(value.__class__)
        fields = {name: _encode_field(getattr(value, name), hint) for name, hint in hints.items()}
        return fields | _computed(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return value


def _encode_field(value: Any, hint: Any) -> Any:
    return format_lsn(value) if value is not None and _bare(hint) is Lsn else _encode(value)


def _computed(value: Any) -> dict[str, Any]:
    match value:
        case SourceStatus():
            return {"lag_bytes": value.lag_bytes}
        case LaneStatus():
            return {"balanced": value.balanced, "missing": value.missing}
        case _:
            return {}


def _decode(hint: Any, value: Any) -> Any:
    bare = _bare(hint)
    if value is None and bare is not hint:
        return None
    if bare is Lsn:
        return parse_lsn(value)
    if bare is dt.datetime:
        return dt.datetime.fromisoformat(value)
    if get_origin(bare) is tuple:
        return tuple(_decode(get_args(bare)[0], item) for item in value)
    if dataclasses.is_dataclass(bare):
        return _decode_dataclass(bare, value)
    return value


def _decode_dataclass(kind: Any, value: dict[str, Any]) -> Any:
    hints = _hints(kind)
    try:
        return kind(**{name: _decode(hint, value[name]) for name, hint in hints.items() if name in value})
    except TypeError as error:  # a field without a default is missing
        raise ValueError(str(error)) from error


def _bare(hint: Any) -> Any:
    """Take ``| None`` off a type."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not types.NoneType)
    return hint


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
