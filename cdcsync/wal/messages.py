"""The pgoutput messages that only this package knows, beside those of ``model``.

With protocol 1, the default, a daemon meets ``Origin`` and ``TypeInfo`` alone. Streamed transactions are protocol 2
(``postgres.streaming``); two-phase commit is protocol 3, and never asked for.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TypeAlias

from cdcsync.model import Begin, Change, Commit, LogicalMessage, Relation, Truncate


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction was replicated into the server from ``name``, where it committed at ``lsn``."""

    lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """The name of a user-defined type that the next relation uses."""

    oid: int
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A segment of the still open transaction ``xid`` starts; ``first`` of its segments or not."""

    xid: int
    first: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    """The segment ends."""


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """The streamed transaction ``xid`` committed."""

    xid: int
    commit_lsn: int
    end_lsn: int
    commit_time: dt.datetime


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """``subxid`` of the streamed transaction ``xid`` is rolled back; all of it only if the two are equal.

    Position and time are told to clients of ``streaming 'parallel'`` alone.
    """

    xid: int
    subxid: int
    abort_lsn: int | None
    abort_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class BeginPrepare:
    """A prepared transaction starts; its rows follow, then ``Prepare``."""

    prepare_lsn: int
    end_lsn: int
    prepare_time: dt.datetime
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """A transaction is prepared, and not yet committed; ``streamed`` when its rows came in segments."""

    prepare_lsn: int
    end_lsn: int
    prepare_time: dt.datetime
    xid: int
    gid: str
    streamed: bool


@dataclass(frozen=True, slots=True)
class CommitPrepared:
    """The prepared transaction ``gid`` committed."""

    commit_lsn: int
    end_lsn: int
    commit_time: dt.datetime
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class RollbackPrepared:
    """The prepared transaction ``gid`` was rolled back."""

    prepare_end_lsn: int
    rollback_end_lsn: int
    prepare_time: dt.datetime
    rollback_time: dt.datetime
    xid: int
    gid: str


InStream: TypeAlias = Relation | TypeInfo | Change | Truncate | LogicalMessage


@dataclass(frozen=True, slots=True)
class Streamed:
    """A message from inside a segment; ``xid`` is the subtransaction's (the top one's for a logical message)."""

    xid: int
    message: InStream


Message: TypeAlias = (
    Begin
    | Commit
    | InStream
    | Origin
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | Streamed
)
