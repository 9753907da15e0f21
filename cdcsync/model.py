"""The vocabulary that every module shares. Imports nothing of ours and does no IO.

Four states of a column's value are kept apart from the WAL to the API body: a text (``bytes``), the
empty text (``b""``), SQL NULL (``None``), and not sent (``ABSENT``, PostgreSQL's "unchanged TOAST").
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal, NamedTuple, NewType, TypeAlias

Lsn = NewType("Lsn", int)
"""A position in the WAL, in bytes since its beginning (``pg_lsn`` as a number)."""


def format_lsn(lsn: int) -> str:
    """Print an LSN as PostgreSQL does: ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> Lsn:
    """Read ``16/B374D848``. Raises ValueError for anything else."""
    high, slash, low = text.partition("/")
    if not slash:
        msg = f"not an LSN: {text!r}"
        raise ValueError(msg)
    return Lsn((int(high, 16) << 32) | int(low, 16))


class Absent(enum.Enum):
    """The type of ``ABSENT``; an enum so that type checkers can tell it from None."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT
"""The column was not sent: leave the CRM's value alone."""

Text: TypeAlias = bytes | Absent | None
"""One column as the server prints it (UTF-8), NULL, or not sent."""


class Position(NamedTuple):
    """The identity and order of a change: its transaction's commit LSN, and its number in there.

    A change's own LSN is not unique, and is not ordered across transactions; this pair is both.
    """

    commit_lsn: int
    ordinal: int


START: Final = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Column:
    """A column as a relation message describes it; ``in_identity`` is true for replica-identity columns."""

    name: str
    type_oid: int
    typmod: int
    in_identity: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table's shape at some point of the stream. ``identity`` is ``d``, ``n``, ``f`` or ``i``."""

    oid: int
    namespace: str
    name: str
    identity: str
    columns: tuple[Column, ...]

    @property
    def table(self) -> str:
        """``schema.name``, unquoted, as the config has it; a schema with a dot, which it cannot name, is quoted."""
        namespace = f'"{self.namespace}"' if "." in self.namespace else self.namespace
        return f"{namespace}.{self.name}"


class ChangeKind(enum.Enum):
    """What happened to a row. COPY is a row read by a backfill, not an event of the stream."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Change:
    """One row change. Tuples stay in pgoutput's form (see ``wal.decode``): most are folded away unread.

    ``new`` is None for a delete. ``old`` is the old tuple where the replica identity gave one; with
    ``old_is_key`` only its identity columns mean anything (its other slots read None, but were not sent).
    """

    kind: ChangeKind
    relation: Relation
    new: bytes | None
    old: bytes | None = None
    old_is_key: bool = False


@dataclass(frozen=True, slots=True)
class Truncate:
    """TRUNCATE of one or more tables, within a transaction."""

    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """A committed transaction starts. ``commit_lsn`` is where its commit record starts; the time is UTC."""

    commit_lsn: int
    commit_time: dt.datetime
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction is complete. ``end_lsn`` is what may be confirmed once everything before it is durable."""

    commit_lsn: int
    end_lsn: int
    commit_time: dt.datetime


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """``pg_logical_emit_message``: free content from an application."""

    lsn: int
    transactional: bool
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """The server has nothing for us before ``lsn`` (from a keepalive)."""

    lsn: int


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to a parent record by its external key (``key`` is that key's text)."""

    object: str
    key_field: str
    key: str


Value: TypeAlias = str | bool | int | float | Decimal | dt.date | dt.datetime | Ref | None
"""A CRM field's value. None clears the field. ``datetime`` is timezone-aware UTC. A field that is to be
left alone is missing from ``Record.fields``; the empty string is a value of its own."""


@dataclass(frozen=True, slots=True)
class Link:
    """An association to keep (HubSpot): ``to_id`` is the CRM id to link, ``was_ids`` what may be linked and must not.

    The association to each of ``was_ids`` is removed (it may be gone already), then that to ``to_id`` is made (it may
    exist already). ``to_id is None``: only remove.
    """

    to_object: str
    type: str
    to_id: str | None
    was_ids: tuple[str, ...] = ()


class Op(enum.Enum):
    """UPSERT writes by external key, and creates; UPDATE writes a record that is there; DELETE removes by CRM id."""

    UPSERT = "upsert"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Target:
    """The CRM object a mapping writes to, and its external-key field."""

    object: str
    key_field: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record to send. ``fields`` never holds the key field: ``key`` does, and an UPDATE writes it along.

    ``crm_id`` is set for UPDATE and DELETE, and for an UPSERT where it is known. ``rekeyed``: an UPDATE changes the
    key, so only the id says which record is meant. One that does not is of the record with this id *and* this key: if
    somebody has taken either away, an adapter goes by the one that cannot name another row's record (see
    ``apply.base``).
    """

    key: str
    fields: Mapping[str, Value] = field(default_factory=dict)
    crm_id: str | None = None
    links: tuple[Link, ...] = ()
    rekeyed: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Records for one object and one operation; no two of them share a key or a CRM id.

    Each may have other fields: what one lacks is left alone, whatever its neighbours have (see ``apply.base``).
    """

    target: Target
    op: Op
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """The CRM holds the record as sent. For a delete: it is gone, whoever deleted it (``crm_id`` may be None).

    ``crm_id`` may be another one than the record had: people deleted or merged that, and this one has the key now.
    """

    crm_id: str | None
    created: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The CRM refused this record's values, and would refuse them again. ``message`` is the CRM's own text."""

    code: str
    message: str
    field: str | None = None


INCOMPLETE_ROW: Final = "incomplete-row"
"""Code of a rejection, of a row of which the stream did not carry a large value that did not change."""


@dataclass(frozen=True, slots=True)
class Retry:
    """This record was not written for a passing reason (a row lock, say). Sending it again may work.

    ``shrink``: the request did more than the CRM grants one (its triggers' time, say): send fewer records in one.
    """

    code: str
    message: str
    shrink: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """An UPDATE's record is not there (any more); nothing was written. Adapters answer it for UPDATE only."""

    message: str


Outcome: TypeAlias = Applied | Rejected | Retry | Missing


@dataclass(frozen=True, slots=True)
class Window:
    """A quota as the vendor reports it: ``remaining`` of ``limit`` requests in ``seconds`` (86400 = a day)."""

    name: str
    limit: int
    remaining: int
    seconds: float


class JobState(enum.Enum):
    """Where a bulk job is, as far as we know for certain. Written down before each step towards the CRM."""

    PLANNED = "planned"
    CREATED = "created"
    UPLOADED = "uploaded"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A bulk job as the CRM reports it. ``missing`` means that the CRM does not know it (any more)."""

    state: Literal["open", "running", "done", "failed", "aborted", "missing"]
    processed: int = 0
    failed: int = 0
    message: str = ""
