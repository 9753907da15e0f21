"""What the state file holds, as values. Pure: ``state`` reads and writes them, everybody else speaks in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from cdcsync.coalesce import PendingRow
from cdcsync.model import JobState, Op, Position

DriftMark: TypeAlias = Literal["kept", "passed over"]
"""What becomes of a table's rows while its mapping is paused because the table changed."""


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


@dataclass(frozen=True, slots=True)
class Seen:
    """A mapping's table as it was when it fitted last.

    ``meaning`` is that of the mapping then; ``types`` are the builtin type oids of the mapped columns; ``publication``
    is what identifies the table's membership in the publication (``wal.sight``).
    """

    meaning: str
    table: str
    oid: int
    types: Mapping[str, int]
    publication: str


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
    seen: list[tuple[str, Seen]] = field(default_factory=list)  # mapping: the table as it fits, without a mark
    drifted: list[tuple[str, DriftMark]] = field(default_factory=list)  # mapping
