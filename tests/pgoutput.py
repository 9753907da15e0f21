"""An encoder of pgoutput's messages, written from the protocol's description and independent of the decoder."""

from __future__ import annotations

import datetime as dt
import struct

from cdcsync.model import Begin, Change, ChangeKind, Commit, LogicalMessage, Relation, Text, Truncate
from cdcsync.wal.messages import (
    BeginPrepare,
    CommitPrepared,
    InStream,
    Message,
    Origin,
    Prepare,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    Streamed,
    StreamStart,
    StreamStop,
    TypeInfo,
)


def u8(value: int) -> bytes:
    """Encode Int8."""
    return value.to_bytes(1, "big")


def u16(value: int) -> bytes:
    """Encode Int16."""
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    """Encode Int32 (oids and xids are unsigned)."""
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    """Encode Int64."""
    return value.to_bytes(8, "big")


def cstr(value: str) -> bytes:
    """Encode String."""
    return value.encode() + b"\0"


def stamp(value: dt.datetime) -> bytes:
    """Encode a TimestampTz in microseconds since 2000."""
    since = value - dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    return (since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds).to_bytes(
        8, "big", signed=True
    )


def encode_tuple(values: list[Text]) -> bytes:
    """Encode TupleData."""
    parts = [u16(len(values))]
    for value in values:
        if isinstance(value, bytes):
            parts.append(b"t" + u32(len(value)) + value)
        else:
            parts.append(b"n" if value is None else b"u")
    return b"".join(parts)


def encode_row(change: Change) -> tuple[bytes, bytes]:
    """Encode Insert, Update or Delete as tag and the rest."""
    old = b"" if change.old is None else (b"K" if change.old_is_key else b"O") + change.old
    new = b"" if change.new is None else b"N" + change.new
    tag = {ChangeKind.INSERT: b"I", ChangeKind.UPDATE: b"U", ChangeKind.DELETE: b"D"}[change.kind]
    return tag, u32(change.relation.oid) + old + new


def encode_inner(message: InStream) -> tuple[bytes, bytes]:
    """Encode a message that may stand in a stream, as tag and the rest: a transaction id may go between."""
    match message:
        case Change():
            return encode_row(message)
        case Relation(oid, namespace, name, identity, columns):
            described = [
                u8(c.in_identity) + cstr(c.name) + u32(c.type_oid) + struct.pack(">i", c.typmod) for c in columns
            ]
            head = u32(oid) + cstr(namespace) + cstr(name) + identity.encode() + u16(len(columns))
            return b"R", head + b"".join(described)
        case TypeInfo(oid, namespace, name):
            return b"Y", u32(oid) + cstr(namespace) + cstr(name)
        case Truncate(relations, cascade, restart):
            return b"T", u32(len(relations)) + u8(cascade + 2 * restart) + b"".join(u32(r.oid) for r in relations)
        case LogicalMessage(lsn, transactional, prefix, content):
            return b"M", u8(transactional) + u64(lsn) + cstr(prefix) + u32(len(content)) + content


def encode(message: Message) -> bytes:
    """Encode a message as a server would."""
    match message:
        case Begin(lsn, time, xid):
            return b"B" + u64(lsn) + stamp(time) + u32(xid)
        case Commit(lsn, end, time):
            return b"C" + u8(0) + u64(lsn) + u64(end) + stamp(time)
        case Origin(lsn, name):
            return b"O" + u64(lsn) + cstr(name)
        case StreamStart(xid, first):
            return b"S" + u32(xid) + u8(first)
        case StreamStop():
            return b"E"
        case StreamCommit(xid, lsn, end, time):
            return b"c" + u32(xid) + u8(0) + u64(lsn) + u64(end) + stamp(time)
        case StreamAbort(xid, subxid, None, _):
            return b"A" + u32(xid) + u32(subxid)
        case StreamAbort(xid, subxid, int(lsn), dt.datetime() as time):
            return b"A" + u32(xid) + u32(subxid) + u64(lsn) + stamp(time)
        case BeginPrepare(lsn, end, time, xid, gid):
            return b"b" + u64(lsn) + u64(end) + stamp(time) + u32(xid) + cstr(gid)
        case Prepare(lsn, end, time, xid, gid, streamed):
            return (b"p" if streamed else b"P") + u8(0) + u64(lsn) + u64(end) + stamp(time) + u32(xid) + cstr(gid)
        case CommitPrepared(lsn, end, time, xid, gid):
            return b"K" + u8(0) + u64(lsn) + u64(end) + stamp(time) + u32(xid) + cstr(gid)
        case RollbackPrepared(lsn, end, time, undone, xid, gid):
            return b"r" + u8(0) + u64(lsn) + u64(end) + stamp(time) + stamp(undone) + u32(xid) + cstr(gid)
        case Streamed(xid, inner):
            tag, rest = encode_inner(inner)
            return tag + u32(xid) + rest
        case Relation() | TypeInfo() | Change() | Truncate() | LogicalMessage():
            tag, rest = encode_inner(message)
            return tag + rest
        case _:
            raise AssertionError(message)


def data(payload: bytes) -> bytes:
    """Wrap a pgoutput message in the envelope of WAL data."""
    return b"w" + struct.pack(">QQq", 0, 0, 0) + payload


def keepalive(lsn: int, *, asks: bool = False) -> bytes:
    """Return a keepalive of a server that has read up to ``lsn``."""
    return b"k" + struct.pack(">QqB", lsn, 0, asks)
