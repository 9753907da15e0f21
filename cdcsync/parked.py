"""Parked rows as people see them: grouped by reason, and one of them with its columns and what would be sent.

These show values of rows, on purpose: they are the user's own, asked for by name. Nothing of it goes to a log.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from cdcsync.coalesce import shown
from cdcsync.config import Config, MapConfig
from cdcsync.entries import Reject, RejectGroup, Seen
from cdcsync.errors import ConfigError, RowRejectedError
from cdcsync.mappers.compile import Mapped, compile_mapper
from cdcsync.model import ABSENT, Ref, Value, format_lsn
from cdcsync.plan import slot
from cdcsync.remedies import remedy
from cdcsync.status import count, duration
from cdcsync.status_json import fields_json
from cdcsync.wal.decode import split_tuple


def columns(reject: Reject) -> dict[str, str | None]:
    """Return a parked row's columns by name, as PostgreSQL prints them; those that did not come are left out."""
    if reject.row.deleted:
        return {}
    return {
        column.name: None if value is None else value.decode("utf-8", "backslashreplace")
        for column, value in zip(reject.row.relation.columns, split_tuple(reject.row.image), strict=True)
        if value is not ABSENT
    }


def group_json(group: RejectGroup, config: Config, paused: Mapping[str, str]) -> str:
    """Print a group as a line of JSON (docs/json.md)."""
    return fields_json(
        {
            "mapping": group.mapping,
            "code": group.code,
            "field": group.field,
            "rows": group.rows,
            "first": _moment(group.first),
            "last": _moment(group.last),
            "next_try": None if group.mapping in paused else _moment(group.due),
            "paused": paused.get(group.mapping),
            "message": group.message,
            "remedy": remedy(_kind(config, group.mapping), group.code),
        }
    )


def group_text(group: RejectGroup, config: Config, paused: Mapping[str, str], now: float) -> str:
    """Say what a group is, in the CRM's words, and what to do about it."""
    field = f" ({group.field})" if group.field else ""
    again = "waits for the mapping, which is paused" if group.mapping in paused else _next_try(group.due, now)
    first, last = (duration(max(0.0, now - at)) for at in (group.first, group.last))
    return "\n".join(
        (
            f"{group.mapping}: {count(group.rows, 'row')}, {group.code}{field}",
            f"    first {first} ago, last {last} ago; {again}",
            f"    “{group.message}”",
            f"    → {remedy(_kind(config, group.mapping), group.code)}",
        )
    )


def described(reject: Reject, config: Config, seen: Seen | None, paused: str | None, mapping: str) -> dict[str, Any]:
    """Return all that is known about one parked row, for ``show``."""
    row, refused = reject.row, reject.row.refused
    sent, unmapped = _record(reject, config, seen, mapping)
    return {
        "mapping": mapping,
        "key": shown(row.key),
        "table": row.relation.table,
        "deleted": row.deleted,
        "crm_keys": list(row.origins),
        "code": reject.code,
        "field": reject.field,
        "message": reject.message,
        "remedy": remedy(_kind(config, mapping), reject.code),
        "refusals": refused.times if refused is not None else 1,
        "first": _moment(refused.since if refused is not None else reject.at),
        "last": _moment(reject.at),
        "next_try": None if paused else _moment(reject.due),
        "paused": paused,
        "committed": _moment(row.latest),
        "lsn": format_lsn(row.last.commit_lsn),
        "row": columns(reject),
        "record": sent,
        "unmapped": unmapped,
    }


def described_text(entry: Mapping[str, Any], now: float) -> str:
    """Print what ``described`` gave."""
    code = entry["code"] + (f" ({entry['field']})" if entry["field"] else "")
    due = entry["next_try"]
    again = f"the mapping is paused: {entry['paused']}" if due is None else _next_try(due.timestamp(), now)
    moved = ", ".join(entry["crm_keys"])
    first, last, committed = (f"{entry[name]:%Y-%m-%d %H:%M:%S} UTC" for name in ("first", "last", "committed"))
    lines = [
        f"{entry['mapping']} {entry['key']}: {code}",
        f"    “{entry['message']}”",
        f"    → {entry['remedy']}",
        f"refused {count(entry['refusals'], 'time')}, first {first}, last {last}; {again}",
        f"changed in {entry['table']} at {committed}, commit {entry['lsn']}",
    ]
    if moved:
        lines.append(f"the CRM may hold its record under another key: {moved}")
    if entry["deleted"]:
        lines.append("the row was deleted; so is the record to be")
        return "\n".join(lines)
    lines += ["", "columns:", *_listed(entry["row"])]
    if entry["record"] is not None:
        lines += ["", "would be sent:", *_listed(entry["record"])]
    else:
        lines += ["", f"nothing can be sent: {entry['unmapped']}"]
    return "\n".join(lines)


def _listed(fields: Mapping[str, Any]) -> list[str]:
    width = max((len(name) for name in fields), default=0)
    return [f"    {name.ljust(width)}  {'NULL' if value is None else value}" for name, value in fields.items()]


def _record(reject: Reject, config: Config, seen: Seen | None, mapping: str) -> tuple[dict[str, Any] | None, str]:
    """Map a parked row; returns the CRM's fields, or None and why there are none."""
    found = next((entry for entry in config.maps if entry.name == mapping), None)
    if found is None:
        return None, "the mapping is not configured"
    if reject.row.deleted:
        return None, "the row was deleted"
    try:
        mapped = _map(found, reject, seen)
    except (ConfigError, RowRejectedError) as error:
        return None, error.message
    fields: dict[str, Any] = {found.key_field: mapped.key}
    fields |= {name: _plain(value) for name, value in mapped.fields.items()}
    fields |= {slot(link): link.key for link in mapped.links}
    return fields, ""


def _map(mapping: MapConfig, reject: Reject, seen: Seen | None) -> Mapped:
    """Map a row as the daemon would; what users' types are is known of the mapped columns only."""
    relation = reject.row.relation
    known = seen.types if seen is not None else {}
    types = {column.type_oid: known[column.name] for column in relation.columns if column.name in known}
    return compile_mapper(mapping, relation, types).map(reject.row.image)


def _plain(value: Value) -> Any:
    if isinstance(value, Ref):
        return f"{value.object}.{value.key_field} = {value.key}"
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, dt.date) else value


def _kind(config: Config, mapping: str) -> str:
    return next((config.crm[entry.crm].kind for entry in config.maps if entry.name == mapping), "")


def _moment(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)


def _next_try(due: float, now: float) -> str:
    return "is due now" if due <= now else f"is tried again in {duration(due - now)}"
