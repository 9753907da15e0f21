"""A ``Snapshot`` as plain text for a terminal: the sentence, a line on Postgres, a table of CRMs, one of mappings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cdcsync.model import format_lsn
from cdcsync.proof import prove
from cdcsync.status import (
    LaneStatus,
    MapStatus,
    Pause,
    Quota,
    Snapshot,
    SourceStatus,
    breaker_words,
    clock_time,
    count,
    duration,
    size,
)


def to_text(snapshot: Snapshot) -> str:
    """Render a snapshot; ends without a newline."""
    parts = [snapshot.sentence, "", _source(snapshot.source), "", table(LANE_HEADER, map(_lane, snapshot.lanes))]
    parts += [f"  {lane.name} is {prove(snapshot, lane).sentence}" for lane in snapshot.lanes]
    parts += _notes(snapshot.lanes)
    parts += ["", table(MAP_HEADER, map(_map, snapshot.maps))]
    parts += [_paused(entry.name, entry.pause, entry.paused) for entry in snapshot.maps if entry.paused is not None]
    parts += [_copy(entry) for entry in snapshot.maps if entry.backfill.state in {"copying", "waiting"}]
    rejects = [row for entry in snapshot.maps for row in _rejects(entry)]
    if rejects:
        parts += ["", table(REJECT_HEADER, rejects)]
    return "\n".join(parts)


def lag_text(source: SourceStatus, lane: LaneStatus) -> str:
    """Say in one line how far a CRM is behind."""
    behind, seconds = source.bytes_behind(lane), source.seconds_behind(lane)
    words = [
        "unknown bytes" if behind is None else size(behind),
        "unknown time" if seconds is None else duration(seconds),
        count(lane.pending, "row"),
    ]
    if lane.rejected:
        words.append(f"{lane.rejected:,} rejected")
    return f"{lane.name}: {', '.join(words)}"


def fields_text(fields: Mapping[str, object]) -> str:
    """Print a flat record, a field per line; what is not known is left out."""
    return "\n".join(f"{name}: {_field(name, value)}" for name, value in fields.items() if value is not None)


def _field(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("_lsn"):
        return format_lsn(value)
    if isinstance(value, int) and (name.endswith("_bytes") or name == "safe_wal_size"):
        return size(value)
    return str(value)


LANE_HEADER = (
    "CRM",
    "state",
    "behind",
    "pending",
    "sending",
    "held",
    "rejected",
    "applied",
    "folded",
    "no-op",
    "as of LSN",
)
MAP_HEADER = ("mapping", "table", "to", "pending", "rejected", "applied", "copy")
REJECT_HEADER = ("rejected in", "code", "field", "rows")


def _source(source: SourceStatus) -> str:
    state = "connected" if source.connected else "not connected"
    words = [f"Postgres {state}, slot {source.slot}", f"durable {format_lsn(source.durable_lsn)}"]
    if source.lag_bytes is not None:
        words.append(f"{size(source.lag_bytes)} behind the server")
    if source.retained_bytes is not None:
        words.append(f"{size(source.retained_bytes)} of WAL retained ({source.wal_status or 'unknown'})")
    if source.last_error:
        words.append(f"last error: {source.last_error}")
    return ", ".join(words)


def _lane(lane: LaneStatus) -> tuple[str, ...]:
    books = lane.counters
    numbers = (lane.pending, lane.in_flight, lane.held, lane.rejected, books.applied, books.coalesced, books.suppressed)
    figures = (f"{number:,}" for number in numbers)
    return (lane.name, lane.state, duration(lane.lag_seconds), *figures, format_lsn(lane.applied_lsn))


def _notes(lanes: Sequence[LaneStatus]) -> list[str]:
    """Say what does not fit a table: alarms, quotas, jobs, errors."""
    notes = []
    for lane in lanes:
        if not lane.balanced:
            notes.append(f"  {lane.name}: BOOKS DO NOT BALANCE, {lane.missing:+,} changes unaccounted for")
        if lane.pause is not None:
            notes.append(_paused(lane.name, lane.pause, lane.pause.reason))
        if lane.quotas:
            lasts = "" if lane.quota_lasts_until is None else f"; lasts until {clock_time(lane.quota_lasts_until)}"
            notes.append(f"  {lane.name} quota: " + ", ".join(_quota(quota) for quota in lane.quotas) + lasts)
        if lane.breaker != "closed":
            notes.append(f"  {lane.name} {breaker_words(lane)}")
        notes += [
            f"  {lane.name} job {job.id}: {job.op} {job.object}, {job.state}, {job.processed:,} of {job.records:,} rows"
            for job in lane.jobs
        ]
        if lane.counters.discarded:
            notes.append(f"  {lane.name}: {count(lane.counters.discarded, 'rejected change')} discarded by hand")
        if lane.last_error:
            notes.append(f"  {lane.name} last error: {lane.last_error}")
    return notes


def _paused(name: str, pause: Pause | None, reason: str) -> str:
    """Say why something is paused, and by whom and since when where it is so itself."""
    if pause is None:
        return f"  {name} is paused: {reason}"
    by = pause.who or ("a person" if pause.by == "person" else "cdcsync")
    return f"  {name} is paused: {pause.reason} (by {by}, since {pause.since:%Y-%m-%d %H:%M} UTC)"


def _quota(quota: Quota) -> str:
    ours = "" if quota.ours is None else f", {quota.ours:,} used"
    budget = "" if quota.budget is None else f" (our share {quota.budget:,}{ours})"
    return f"{quota.name} {quota.used:,} of {quota.limit:,}{budget}"


def _map(entry: MapStatus) -> tuple[str, ...]:
    fraction = entry.backfill.fraction if entry.backfill.state == "copying" else None
    copied = entry.backfill.state if fraction is None else f"{entry.backfill.state} {fraction:.0%}"
    numbers = (f"{number:,}" for number in (entry.pending, entry.rejected, entry.applied))
    return (entry.name, entry.table, entry.target, *numbers, copied)


def _copy(entry: MapStatus) -> str:
    """Say why a mapping's rows are copied, how far that is, and what keeps it."""
    copy = entry.backfill
    words = [f"{copy.rows:,} of about {copy.estimate:,} rows" if copy.estimate else f"{copy.rows:,} rows"]
    if copy.seconds_left is not None:
        words.append(f"{duration(copy.seconds_left)} left")
    if copy.waits_for is not None:
        words.append(f"waits for {copy.waits_for}")
    return f"  {entry.name} copy ({copy.reason or 'first copy'}): {', '.join(words)}"


def _rejects(entry: MapStatus) -> list[tuple[str, ...]]:
    return [(entry.name, group.code, group.field or "-", f"{group.rows:,}") for group in entry.rejects]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out columns: text to the left, columns of numbers to the right, two spaces between."""
    body = [tuple(row) for row in rows]
    columns = [_column(title, cells) for title, *cells in zip(header, *body, strict=True)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _column(title: str, cells: Sequence[str]) -> list[str]:
    width = max(len(cell) for cell in (title, *cells))
    numeric = bool(cells) and all(cell.replace(",", "").isdigit() for cell in cells)
    return [cell.rjust(width) if numeric else cell.ljust(width) for cell in (title, *cells)]
