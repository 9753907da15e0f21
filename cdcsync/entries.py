"""What the state file holds, as values. Pure: ``state`` reads and writes them, everybody else speaks in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cdcsync.coalesce import PendingRow
from cdcsync.model import JobState, Op, Position


class Identity(NamedTuple):
    """What the checkpoint is bound to: a stream position means nothing to another cluster, database or slot."""

    system_id: str
    database: str
    slot: str
    consistent_point: int


class Checkpoint(NamedTuple):
    """Where the stream goes on: ``durable_lsn`` may be confirmed; changes up to ``position`` are in the file."""

    durable_lsn: int
    position: Position


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of a record: its CRM id, and what was last applied (a hash per field, links by type)."""

    crm_id: str | None
    fields: tuple[str, ...]
    hashes: bytes
    links: dict[str, str]
    position: Position
    at: float


@dataclass(frozen=True, slots=True)
class Reject:
    """A parked row and the reason, in the CRM's words. ``at`` is the Unix time of the refusal."""

    row: PendingRow
    code: str
    field: str | None
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class Job:
    """A bulk job as written down. ``digest`` identifies the mapping as it was when the job was planned."""

    id: int
    mapping: str
    op: Op
    state: JobState
    crm_job: str | None
    planned: float
    records: int
    digest: str


@dataclass(frozen=True, slots=True)
class BackfillState:
    """How far a mapping's first copy is; ``cursor`` is the last key copied, as texts of the key columns."""

    cursor: tuple[str, ...] | None = None
    rows: int = 0
    estimate: int = 0
    done: bool = False


@dataclass(slots=True)
class Tick:
    """What became known since the last tick; None as a value means: delete the entry."""

    durable_lsn: int
    position: Position
    journal: list[tuple[str, str, int, PendingRow | None]] = field(default_factory=list)  # mapping, key, job
    ledger: list[tuple[str, str, Known | None]] = field(default_factory=list)
    rejects: list[tuple[str, str, Reject | None]] = field(default_factory=list)
    jobs: list[tuple[int, Job | None]] = field(default_factory=list)
    counters: list[tuple[str, str, int]] = field(default_factory=list)  # lane, name, value
    backfills: list[tuple[str, BackfillState]] = field(default_factory=list)
    linked: list[tuple[str, str]] = field(default_factory=list)  # mapping, key: associations are settled
    pauses: list[tuple[str, str, float]] = field(default_factory=list)  # mapping, reason, Unix time
    timeline: int | None = None  # of the server, on which ``position`` was received; None: as before
