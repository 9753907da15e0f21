"""What the state file holds, as values. Pure: ``state`` reads and writes them, everybody else speaks in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from cdcsync.coalesce import PendingRow
from cdcsync.model import JobState, Op, Position

DriftMark: TypeAlias = Literal["kept", "passed over"]
"""What becomes of a table's rows while its mapping is paused because the table changed."""


Asker: TypeAlias = Literal["config", "daemon", "person"]
"""Who wants a copy; of two requests that become one the later in this order counts."""


PausedBy: TypeAlias = Literal["person", "daemon", "deletes", "sweep"]
"""Who paused: a person, the daemon for something it saw, or the daemon to ask about deletes: those that wait, or those
that a copy found at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a mapping or a CRM is paused, since when (Unix time), and by whom (``who``: a person's user@host)."""

    reason: str
    since: float
    by: PausedBy = "person"
    who: str = ""


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


class Balance(NamedTuple):
    """A lane's books as they are on disk: its counters, and the rows of its mappings in journal and rejects."""

    lane: str
    changes_in: int
    applied: int
    suppressed: int
    coalesced: int
    discarded: int
    rejected: int
    pending: int

    @property
    def missing(self) -> int:
        """Changes unaccounted for: 0, or an alarm."""
        settled = self.applied + self.suppressed + self.coalesced + self.discarded
        return self.changes_in - (settled + self.rejected + self.pending)


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
    """A parked row and the reason, in the CRM's words.

    ``at`` is the Unix time of the last refusal (``row.refused`` knows the first), ``due`` when it is taken up again
    (``ladder``). ``discarded``: a person gave this change up; it is kept, unseen, because it knows what the row's next
    change has to know (``Rejects``).
    """

    row: PendingRow
    code: str
    field: str | None
    message: str
    at: float
    due: float
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Parked rows of one mapping: all of them, or those with a code, a CRM field, or these keys."""

    mapping: str
    code: str | None = None
    field: str | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RejectRequest:
    """What a person asked for beside the daemon, at a Unix time: rows refused later are not meant."""

    id: int
    verb: Literal["retry", "discard"]
    selection: Selection
    at: float


class RejectGroup(NamedTuple):
    """Parked rows of one mapping that were refused for one reason, with one example of the CRM's words.

    ``first`` and ``last`` are the Unix times of the earliest first refusal and of the latest one, ``due`` of the next
    try.
    """

    mapping: str
    code: str
    field: str | None
    rows: int
    first: float
    last: float
    due: float
    message: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyState:
    """A copy of a mapping's rows: asked for, under way (``started``) or ``finished`` (Unix time).

    It reads the whole table unless ``condition`` (SQL) or ``keys`` (external keys) say less. With ``sweep`` the records
    that neither it nor the stream met are deleted at its end. ``asker``: the config wants the mapping's rows copied,
    the daemon knows that changes may be missing, or a person asked, and was told what that may delete. ``cursor`` is
    the last key read, as texts of the columns ``order``, in whose order rows are read (empty: not known, of an older
    file); ``read``: no row comes after it. ``error`` says why it was given up.
    """

    id: int
    mapping: str
    reason: str
    requested: float
    condition: str | None = None
    keys: tuple[str, ...] = ()
    sweep: bool = False
    asker: Asker = "daemon"
    started: bool = False
    cursor: tuple[str, ...] | None = None
    order: tuple[str, ...] = ()
    rows: int = 0
    estimate: int = 0
    read: bool = False
    finished: float | None = None
    error: str | None = None

    @property
    def whole(self) -> bool:
        """Whether all rows of the mapping are copied."""
        return self.condition is None and not self.keys

    @property
    def makes_up(self) -> bool:
        """Whether rows that it reads may be missing in the CRM; what a person asks for finds few."""
        return self.whole and self.asker != "person"


@dataclass(frozen=True, slots=True)
class Seen:
    """A mapping's table as it was when it fitted last.

    ``meaning`` is that of the mapping then; ``types`` are the builtin type oids of the mapped columns, ``columns`` what
    identifies their definitions; ``publication`` is what identifies the table's membership in the publication
    (``wal.sight``). What was committed before ``lsn`` may have had another shape.
    """

    meaning: str
    table: str
    oid: int
    types: Mapping[str, int]
    columns: Mapping[str, str]
    publication: str
    lsn: int


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
    copies: list[CopyState] = field(default_factory=list)
    met: list[tuple[int, str]] = field(default_factory=list)  # copy, key
    resyncs: list[tuple[str, str, float]] = field(default_factory=list)  # mapping, reason, Unix time
    rereads: list[tuple[str, Sequence[str], float]] = field(default_factory=list)  # mapping, keys, Unix time
    linked: list[tuple[str, str]] = field(default_factory=list)  # mapping, key: associations are settled
    pauses: list[tuple[str, Pause]] = field(default_factory=list)  # mapping
    seen: list[tuple[str, Seen]] = field(default_factory=list)  # mapping: the table as it fits, without a mark
    drifted: list[tuple[str, DriftMark]] = field(default_factory=list)  # mapping
    paces: list[tuple[str, str]] = field(default_factory=list)  # lane: what its limiter remembers, as JSON
    timeline: int | None = None  # of the server, on which ``position`` was received; None: as before
