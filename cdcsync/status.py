"""What the daemon knows about itself, as one immutable ``Snapshot``, and what it says in one sentence.

The daemon fills a snapshot; the terminal, the status page, JSON and Prometheus only render it. Nothing in here
reads a clock or holds a row's values: times come with the snapshot, and CRM messages stay in the state file.

Lag is in seconds of commit time, sizes in bytes, LSNs are numbers inside and text (``16/B374D848``) in JSON.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cdcsync.model import Lsn

IN_STEP_SECONDS = 10.0
"""Below this lag, with everything connected, a lane counts as in step."""

LaneState: TypeAlias = Literal["running", "backing off", "paused", "stopped"]
BreakerState: TypeAlias = Literal["closed", "open", "probing"]
BackfillState: TypeAlias = Literal["none", "waiting", "copying", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """The reader and its slot. None where the server has not been asked yet, or cannot be."""

    connected: bool
    slot: str
    received_lsn: Lsn
    durable_lsn: Lsn
    server_lsn: Lsn | None = None
    retained_bytes: int | None = None
    warn_bytes: int | None = None
    wal_status: str | None = None
    lag_seconds: float | None = None
    last_error: str | None = None
    reading_paused: bool = False

    @property
    def lag_bytes(self) -> int | None:
        """WAL that the server has written and we have not made durable."""
        return None if self.server_lsn is None else max(0, self.server_lsn - self.durable_lsn)

    def bytes_behind(self, lane: LaneStatus) -> int | None:
        """WAL that the server has written and a lane has not settled, that of other databases included."""
        return None if self.server_lsn is None else max(0, self.server_lsn - lane.applied_lsn)

    def seconds_behind(self, lane: LaneStatus) -> float | None:
        """Age of a lane's oldest unsettled commit; None where there may be older ones that nobody has read."""
        return lane.lag_seconds if self.connected or self.lag_bytes == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A CRM's quota and our place in it. ``budget`` is our own share of ``limit``, None for all of it.

    ``ours`` counts our own requests in the window, None where they are not counted.
    """

    name: str
    seconds: float
    limit: int
    remaining: int
    budget: int | None = None
    ours: int | None = None

    @property
    def used(self) -> int:
        """Requests that all clients of the CRM made in this window."""
        return max(0, self.limit - self.remaining)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A bulk job in hand. ``state`` is the last step that was taken for certain."""

    id: str
    object: str
    op: str
    state: str
    records: int
    processed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Row changes since the state file was created, and requests since the daemon's start; they only grow.

    ``applied`` includes ``created`` and ``deleted``. A row that was sent n times and settled once is one ``applied``.
    """

    changes_in: int = 0
    applied: int = 0
    suppressed: int = 0
    coalesced: int = 0
    discarded: int = 0
    created: int = 0
    deleted: int = 0
    requests: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause. ``by``: a ``person`` (``who``), the ``daemon``, or it to ask about ``deletes`` or those of a sweep."""

    reason: str
    since: dt.datetime
    by: str
    who: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatus:
    """One CRM. ``pending`` counts every row that is not settled: waiting, ``in_flight`` and ``held`` (for a parent).

    ``unmapped`` rows lie in the state file for mappings that are not configured now. ``quota_lasts_until`` is when the
    day's calls will run out at the present pace, None if they last. While the ``breaker`` is open nothing is sent
    before ``breaker_until``. ``failing``: the last attempt at some work failed as a whole. ``held_back`` says why the
    limiter lets nothing go for now: a quota, or a refusal.
    """

    name: str
    kind: str
    state: LaneState
    applied_lsn: Lsn
    applied_time: dt.datetime | None = None
    lag_seconds: float = 0.0
    pending: int = 0
    in_flight: int = 0
    held: int = 0
    rejected: int = 0
    unmapped: int = 0
    counters: Counters = Counters()
    rate: float | None = None
    quotas: tuple[Quota, ...] = ()
    quota_lasts_until: dt.datetime | None = None
    breaker: BreakerState = "closed"
    breaker_until: dt.datetime | None = None
    jobs: tuple[Job, ...] = ()
    retry_at: dt.datetime | None = None
    last_error: str | None = None
    last_error_code: str | None = None
    failing: bool = False
    held_back: str | None = None
    pause: Pause | None = None

    @property
    def missing(self) -> int:
        """Changes that the books cannot account for; anything but 0 is an alarm."""
        books = self.counters
        settled = books.applied + books.suppressed + books.coalesced + books.discarded
        return books.changes_in - (settled + self.rejected + self.pending + self.unmapped)

    @property
    def balanced(self) -> bool:
        """Whether changes in = applied + suppressed + coalesced + discarded + rejected + pending."""
        return self.missing == 0

    @property
    def in_step(self) -> bool:
        """Whether the CRM is as good as equal to the database, rejected rows aside."""
        return self.state == "running" and self.lag_seconds <= IN_STEP_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """A copy of a table's rows: the first one, or a later one (``reason`` says why).

    ``estimate`` is the planner's row count, None if unknown; ``waits_for`` says what keeps it from beginning.
    """

    state: BackfillState = "none"
    rows: int = 0
    estimate: int | None = None
    seconds_left: float | None = None
    reason: str | None = None
    waits_for: str | None = None

    @property
    def fraction(self) -> float | None:
        """How far the copy is, 0 to 1, None where that is not known."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.rows / self.estimate) if self.estimate else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectGroup:
    """Parked rows that were refused for one reason: the CRM's code and, where it named one, the field."""

    code: str
    field: str | None
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapStatus:
    """One mapping. ``target`` reads ``salesforce.Contact``; ``lane`` is the CRM's name.

    ``paused`` says why it is, which may be that the CRM is; ``pause`` is its own. ``incomplete``: rows may be missing
    in the CRM that are neither pending nor parked, until all of them are copied.
    """

    name: str
    table: str
    lane: str
    target: str
    pending: int = 0
    rejected: int = 0
    applied: int = 0
    paused: str | None = None
    incomplete: bool = False
    pause: Pause | None = None
    backfill: Backfill = Backfill()
    rejects: tuple[RejectGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something worth telling, most recent first in a snapshot."""

    time: dt.datetime
    level: Literal["info", "warning", "error"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything at one moment. ``generated`` is timezone-aware UTC, ``uptime`` in seconds."""

    version: str
    generated: dt.datetime
    source: SourceStatus
    lanes: tuple[LaneStatus, ...]
    maps: tuple[MapStatus, ...]
    events: tuple[Event, ...] = ()
    uptime: float = 0.0
    pid: int | None = None

    @property
    def balanced(self) -> bool:
        """Whether every lane's books balance."""
        return all(lane.balanced for lane in self.lanes)

    @property
    def in_step(self) -> bool:
        """Whether Postgres is connected, every CRM is in step, no copy is under way and no mapping paused."""
        copied = all(entry.backfill.state in ("none", "done") and entry.paused is None for entry in self.maps)
        return self.source.connected and copied and all(lane.in_step for lane in self.lanes)

    @property
    def ready(self) -> bool:
        """Whether the daemon does its work: connected, no lane stopped by an error, books balanced."""
        return self.source.connected and self.balanced and all(lane.state != "stopped" for lane in self.lanes)

    @property
    def sentence(self) -> str:
        """The one line of plain words that stands on top of everything, worst news first."""
        rejected = sum(lane.rejected for lane in self.lanes)
        link = ", except" if self.in_step else ";"
        return _headline(self) + (f"{link} {count(rejected, 'rejected row')}." if rejected else ".")


def _headline(snapshot: Snapshot) -> str:
    for lane in snapshot.lanes:
        if not lane.balanced:
            return f"The books of {lane.name} do not balance: {count(abs(lane.missing), 'change')} unaccounted for"
    if not snapshot.source.connected:
        seen = snapshot.pid is None and snapshot.source.server_lsn is not None
        return "The daemon is down: nothing reads its slot" if seen else "Postgres is not connected"
    halted = [lane for lane in snapshot.lanes if lane.state != "running"]
    if halted:
        return "; ".join(_halted(lane) for lane in halted)
    paused = [entry for entry in snapshot.maps if entry.paused is not None]
    if paused:
        verb = "is" if len(paused) == 1 else "are"
        return f"{', '.join(entry.name for entry in paused)} {verb} paused, {_waiting(paused)}"
    copying = [entry for entry in snapshot.maps if entry.backfill.state == "copying"]
    if copying:
        return "Copying " + ", ".join(_copying(entry) for entry in copying)
    worst = max(snapshot.lanes, key=lambda lane: lane.lag_seconds, default=None)
    if worst is None:
        return "Nothing is mapped"
    if worst.in_step:
        return f"In step, {duration(worst.lag_seconds)} behind"
    return f"Catching up: {worst.name} is {duration(worst.lag_seconds)} behind, {count(worst.pending, 'row')} to go"


def _halted(lane: LaneStatus) -> str:
    waiting = f", {count(lane.pending, 'row')} waiting" if lane.pending else ""
    return f"{lane.name} is {lane.state}{waiting}"


def _waiting(paused: Sequence[MapStatus]) -> str:
    return f"{count(sum(entry.pending for entry in paused), 'row')} waiting"


def _copying(entry: MapStatus) -> str:
    fraction = entry.backfill.fraction
    done = f"{entry.backfill.rows:,} rows" if fraction is None else f"{fraction:.0%}"
    left = entry.backfill.seconds_left
    return f"{entry.table} to {entry.target} ({done}{'' if left is None else f', {duration(left)} left'})"


def count(number: int, noun: str) -> str:
    """Print a number with its noun: ``1 row``, ``1,234 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def clock_time(moment: dt.datetime) -> str:
    """Print a moment of today or tomorrow: ``17:40 UTC``."""
    return f"{moment.astimezone(dt.UTC):%H:%M} UTC"


def breaker_words(lane: LaneStatus) -> str:
    """Say how a breaker stands that is not closed."""
    if lane.breaker == "open" and lane.breaker_until is not None:
        return f"breaker open until {clock_time(lane.breaker_until)}: too many failures in a row"
    return "breaker open: one request is tried"


def duration(seconds: float) -> str:
    """Print a time span as people say it: ``0.4 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 10:  # noqa: PLR2004 - one decimal says something only there
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def size(number: int) -> str:
    """Print bytes as people read them: ``512 B``, ``12.5 MB`` (powers of 1024, as PostgreSQL's settings mean it)."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024:  # noqa: PLR2004 - the unit's base
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"
