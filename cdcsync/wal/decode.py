"""pgoutput messages of protocol versions 1 to 4: bytes in, vocabulary out. Pure, and the hottest code we have.

The rules of this module:

* ``Decoder.decode`` takes one message, whole, and returns one value. Any bytes give a message or a ``DecodeError``
  that names the message and the byte; nothing else is raised, and no row's values are ever put into an error.
* A row's tuple is handed on as the bytes that came, behind one check of its column count: most rows are folded away
  unread. Whoever reads the columns calls ``split_tuple`` or ``pick`` (of ``tuples``), which check the rest.
* The only state is what the protocol makes a client keep: the relations told so far, per streamed transaction until
  that commits, and whether messages carry a transaction id now (they do between stream start and stream stop).

Formats: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and ``proto.c``.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from cdcsync.errors import DecodeError
from cdcsync.model import Begin, Change, ChangeKind, Column, Commit, LogicalMessage, Relation, Truncate
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
from cdcsync.wal.tuples import column_end, join_tuple, pick, split_tuple

__all__ = ["EPOCH", "Decoder", "join_tuple", "pick", "split_tuple"]

EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""PostgreSQL's zero of time; timestamps on the wire are microseconds since then."""

_BEGIN = Struct(">xQqI")
_COMMIT = Struct(">xbQQq")
_ROW = Struct(">IBH")
_U8, _U16, _U32, _U64 = Struct(">B"), Struct(">H"), Struct(">I"), Struct(">Q")
_I32, _I64 = Struct(">i"), Struct(">q")
_STREAM_START = Struct(">xIB")
_STREAM_STOP = Struct(">x")
_STREAM_COMMIT = Struct(">xIbQQq")
_STREAM_ABORT = Struct(">xII")
_STREAM_ABORT_PARALLEL = Struct(">xIIQq")

_NEW, _KEY, _OLD = b"NKO"
_BODY = 5  # bytes of a row message between its relation's oid and the tuple: the oid itself and the N, K or O
_TRANSACTIONAL = 1
_IN_IDENTITY = 1
_CASCADE, _RESTART = 1, 2
_IDENTITIES = frozenset("dnfi")


class Decoder:
    """Decodes the messages of one connection, in their order.

    ``streaming_parallel`` says that the stream was started with ``streaming 'parallel'``: stream aborts then have
    two more fields. The option decides that, not the protocol version.
    """

    def __init__(self, *, streaming_parallel: bool = False) -> None:
        self._abort_layout = _STREAM_ABORT_PARALLEL if streaming_parallel else _STREAM_ABORT
        self._relations: dict[int, Relation] = {}
        self._streams: dict[int, dict[int, Relation]] = {}
        self._known = self._relations
        self._streaming: int | None = None
        self._readers: dict[int, Callable[[bytes], Message]] = {
            ord("B"): _begin,
            ord("C"): _commit,
            ord("O"): _origin,
            ord("S"): self._stream_start,
            ord("E"): self._stream_stop,
            ord("c"): self._stream_commit,
            ord("A"): self._stream_abort,
            ord("b"): _begin_prepare,
            ord("P"): _prepare,
            ord("p"): self._stream_prepare,
            ord("K"): _commit_prepared,
            ord("r"): _rollback_prepared,
        }
        self._inner: dict[int, Callable[[bytes, int], InStream]] = {
            ord("I"): self._insert,
            ord("U"): self._update,
            ord("D"): self._delete,
            ord("R"): self._relation,
            ord("Y"): _type_info,
            ord("T"): self._truncate,
            ord("M"): _logical_message,
        }

    def decode(self, payload: bytes) -> Message:
        """Return the message that ``payload`` is. Raises DecodeError."""
        if not payload:
            raise DecodeError("an empty pgoutput message")
        tag = payload[0]
        try:
            if (inner := self._inner.get(tag)) is not None:
                if self._streaming is None:
                    return inner(payload, 1)
                (xid,) = _U32.unpack_from(payload, 1)
                return Streamed(xid, inner(payload, 5))
            if (reader := self._readers.get(tag)) is not None:
                return reader(payload)
        except struct.error as error:
            raise _broken(payload, len(payload), "the message ends too early") from error
        raise _broken(payload, 0, "no such message")

    def beside(self) -> Decoder:
        """Return a decoder of its own that knows the relations told so far outside of open streams."""
        other = Decoder()
        other._relations.update(self._relations)
        return other

    def _row(self, payload: bytes, start: int) -> tuple[Relation, int]:
        """Read what all row messages begin with: the relation, and the tuple's kind."""
        oid, marker, count = _ROW.unpack_from(payload, start)
        relation = self._known.get(oid)
        if relation is None:
            raise _broken(payload, start, f"a row of relation {oid}, which was not described before")
        if count != len(relation.columns):
            raise _miscounted(payload, start + _BODY, count, relation)
        return relation, marker

    def _insert(self, payload: bytes, start: int) -> Change:
        relation, marker = self._row(payload, start)
        if marker != _NEW:
            raise _broken(payload, start + 4, "an insert without a new tuple")
        return Change(ChangeKind.INSERT, relation, payload[start + _BODY :])

    def _update(self, payload: bytes, start: int) -> Change:
        relation, marker = self._row(payload, start)
        begin = start + _BODY
        if marker == _NEW:
            return Change(ChangeKind.UPDATE, relation, payload[begin:])
        if marker not in (_KEY, _OLD):
            raise _broken(payload, start + 4, "an update without a tuple")
        middle = _tuple_end(payload, begin)
        if payload[middle : middle + 1] != b"N":
            raise _broken(payload, middle, "an update without a new tuple")
        (count,) = _U16.unpack_from(payload, middle + 1)
        if count != len(relation.columns):
            raise _miscounted(payload, middle + 1, count, relation)
        return Change(ChangeKind.UPDATE, relation, payload[middle + 1 :], payload[begin:middle], marker == _KEY)

    def _delete(self, payload: bytes, start: int) -> Change:
        relation, marker = self._row(payload, start)
        if marker not in (_KEY, _OLD):
            raise _broken(payload, start + 4, "a delete without an old tuple")
        return Change(ChangeKind.DELETE, relation, None, payload[start + _BODY :], marker == _KEY)

    def _relation(self, payload: bytes, start: int) -> Relation:
        cursor = _Cursor(payload, start)
        oid = cursor.number(_U32)
        namespace, name = cursor.text() or "pg_catalog", cursor.text()
        identity = chr(cursor.number(_U8))
        if identity not in _IDENTITIES:
            raise _broken(payload, cursor.at - 1, "no such replica identity")
        columns = tuple(_column(cursor) for _ in range(cursor.number(_U16)))
        cursor.finish()
        told = Relation(oid, namespace, name, identity, columns)
        for before in (self._known.get(oid), self._relations.get(oid)):
            if before == told:
                told = before  # sent again, as servers do after a vacuum: the same object, so nobody compiles anew
                break
        self._known[oid] = told
        return told

    def _truncate(self, payload: bytes, start: int) -> Truncate:
        cursor = _Cursor(payload, start)
        count, flags = cursor.number(_U32), cursor.number(_U8)
        if len(payload) != cursor.at + 4 * count:
            raise _broken(payload, cursor.at, f"not {count} relations follow")
        relations = []
        for _ in range(count):
            oid = cursor.number(_U32)
            relation = self._known.get(oid)
            if relation is None:
                raise _broken(payload, cursor.at - 4, f"a truncate of relation {oid}, which was not described before")
            relations.append(relation)
        return Truncate(tuple(relations), bool(flags & _CASCADE), bool(flags & _RESTART))

    def _stream_start(self, payload: bytes) -> StreamStart:
        xid, first = _fixed(_STREAM_START, payload)
        if self._streaming is not None:
            raise _broken(payload, 0, "a stream starts inside a stream")
        self._streaming = xid
        # A streamed transaction may see another shape of a table than the others do, and is told all of it anew.
        self._known = self._streams.setdefault(xid, {})
        return StreamStart(xid, bool(first))

    def _stream_stop(self, payload: bytes) -> StreamStop:
        _fixed(_STREAM_STOP, payload)
        if self._streaming is None:
            raise _broken(payload, 0, "no stream to stop")
        self._streaming = None
        self._known = self._relations
        return StreamStop()

    def _stream_commit(self, payload: bytes) -> StreamCommit:
        xid, _, commit_lsn, end_lsn, micros = _fixed(_STREAM_COMMIT, payload)
        time = _time(payload, micros)
        self._outside(payload)
        self._relations.update(self._streams.pop(xid, {}))
        return StreamCommit(xid, commit_lsn, end_lsn, time)

    def _stream_abort(self, payload: bytes) -> StreamAbort:
        xid, subxid, *rest = _fixed(self._abort_layout, payload)
        abort_lsn, abort_time = (rest[0], _time(payload, rest[1])) if rest else (None, None)
        self._outside(payload)
        if xid == subxid:
            self._streams.pop(xid, None)
        return StreamAbort(xid, subxid, abort_lsn, abort_time)

    def _stream_prepare(self, payload: bytes) -> Prepare:
        prepare = _prepare(payload, streamed=True)
        self._outside(payload)
        self._streams.pop(prepare.xid, None)
        return prepare

    def _outside(self, payload: bytes) -> None:
        if self._streaming is not None:
            raise _broken(payload, 0, "this message cannot stand inside a stream")


def _tuple_end(payload: bytes, start: int) -> int:
    """Return where the tuple that starts at ``start`` ends."""
    (count,) = _U16.unpack_from(payload, start)
    at = start + 2
    try:
        for _ in range(count):
            at = column_end(payload, at)
    except (IndexError, ValueError) as error:
        raise _broken(payload, at, "no column value of a tuple") from error
    return at


class _Cursor:
    """Reads the messages of variable length that are too rare to be worth more code."""

    __slots__ = ("at", "payload")

    def __init__(self, payload: bytes, at: int) -> None:
        self.payload = payload
        self.at = at

    def number(self, layout: Struct) -> int:
        (value,) = layout.unpack_from(self.payload, self.at)
        self.at += layout.size
        return int(value)

    def text(self) -> str:
        end = self.payload.find(b"\0", self.at)
        if end < 0:
            raise _broken(self.payload, self.at, "a name without its end")
        try:
            value = self.payload[self.at : end].decode()
        except UnicodeDecodeError as error:
            raise DecodeError(
                f"{_broken(self.payload, self.at, 'a name that is not UTF-8')}",
                hint="a database in SQL_ASCII may have such names: rename the table or column, or do not publish it",
            ) from error
        self.at = end + 1
        return value

    def time(self) -> dt.datetime:
        return _time(self.payload, self.number(_I64))

    def rest(self, length: int) -> bytes:
        value = self.payload[self.at : self.at + length]
        if length < 0 or len(value) != length:
            raise _broken(self.payload, self.at, f"not {length} bytes follow")
        self.at += length
        return value

    def finish(self) -> None:
        if self.at != len(self.payload):
            raise _broken(self.payload, self.at, "bytes after the message's end")


def _begin(payload: bytes) -> Begin:
    commit_lsn, micros, xid = _fixed(_BEGIN, payload)
    return Begin(commit_lsn, _time(payload, micros), xid)


def _commit(payload: bytes) -> Commit:
    _, commit_lsn, end_lsn, micros = _fixed(_COMMIT, payload)
    return Commit(commit_lsn, end_lsn, _time(payload, micros))


def _origin(payload: bytes) -> Origin:
    cursor = _Cursor(payload, 1)
    origin = Origin(cursor.number(_U64), cursor.text())
    cursor.finish()
    return origin


def _column(cursor: _Cursor) -> Column:
    flags = cursor.number(_U8)
    return Column(cursor.text(), cursor.number(_U32), cursor.number(_I32), bool(flags & _IN_IDENTITY))


def _type_info(payload: bytes, start: int) -> TypeInfo:
    cursor = _Cursor(payload, start)
    told = TypeInfo(cursor.number(_U32), cursor.text() or "pg_catalog", cursor.text())
    cursor.finish()
    return told


def _logical_message(payload: bytes, start: int) -> LogicalMessage:
    cursor = _Cursor(payload, start)
    flags, lsn, prefix = cursor.number(_U8), cursor.number(_U64), cursor.text()
    content = cursor.rest(cursor.number(_I32))
    cursor.finish()
    return LogicalMessage(lsn, bool(flags & _TRANSACTIONAL), prefix, content)


def _begin_prepare(payload: bytes) -> BeginPrepare:
    cursor = _Cursor(payload, 1)
    told = BeginPrepare(*_prepared(cursor))
    cursor.finish()
    return told


def _prepare(payload: bytes, *, streamed: bool = False) -> Prepare:
    cursor = _Cursor(payload, 2)  # the flags byte is not in use
    told = Prepare(*_prepared(cursor), streamed)
    cursor.finish()
    return told


def _commit_prepared(payload: bytes) -> CommitPrepared:
    cursor = _Cursor(payload, 2)
    told = CommitPrepared(*_prepared(cursor))
    cursor.finish()
    return told


def _prepared(cursor: _Cursor) -> tuple[int, int, dt.datetime, int, str]:
    """Read the fields that the two-phase messages share: two LSNs, a time, the transaction's id and its name."""
    return cursor.number(_U64), cursor.number(_U64), cursor.time(), cursor.number(_U32), cursor.text()


def _rollback_prepared(payload: bytes) -> RollbackPrepared:
    cursor = _Cursor(payload, 2)
    prepare_end, rollback_end = cursor.number(_U64), cursor.number(_U64)
    prepared, rolled_back = cursor.time(), cursor.time()
    told = RollbackPrepared(prepare_end, rollback_end, prepared, rolled_back, cursor.number(_U32), cursor.text())
    cursor.finish()
    return told


def _fixed(layout: Struct, payload: bytes) -> tuple[Any, ...]:
    """Unpack a message that has one length only."""
    if len(payload) != layout.size:
        raise _broken(payload, min(len(payload), layout.size), f"{len(payload)} bytes long instead of {layout.size}")
    return layout.unpack(payload)


def _time(payload: bytes, micros: int) -> dt.datetime:
    try:
        return EPOCH + dt.timedelta(microseconds=micros)
    except OverflowError as error:
        raise _broken(payload, len(payload), "a time outside the years 1 to 9999") from error


def _broken(payload: bytes, at: int, why: str) -> DecodeError:
    tag = chr(payload[0])
    name = tag if tag.isascii() and tag.isprintable() else f"0x{payload[0]:02x}"
    return DecodeError(f"pgoutput message {name!r} of {len(payload)} bytes, at byte {at}: {why}")


def _miscounted(payload: bytes, at: int, count: int, relation: Relation) -> DecodeError:
    return _broken(payload, at, f"{count} columns, but {relation.table} was described with {len(relation.columns)}")
