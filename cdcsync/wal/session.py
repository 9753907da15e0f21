"""One replication connection's conversation, without its socket and its clock (both belong to the caller).

The rules of this module:

* ``receive`` takes the content of one CopyData message and gives the events in it. Transactions come whole and in
  commit order; those that are durable already (their commit record starts before the start point) are left out.
* A streamed transaction gives nothing until it commits; then ``replay`` gives it in pieces, as if it had come at once.
  While one is open, positions beyond its rows may well be confirmed: what counts is where its commit record starts,
  and the server keeps the WAL from its beginning on (``restart_lsn``) as long as it is open.
* What is reported as flushed is never inside a transaction, never goes back, and is never beyond what was received:
  the server resends a transaction only if its commit record starts at or after the reported position.
* Status updates have a timer of their own. Servers ask for one at half of ``wal_sender_timeout`` and cut the
  connection at the whole of it, counted from the last one they received. A fifth of it is the interval, so that one may
  come late by almost as much as the server's patience. An answer is never given sooner than ``PACE`` after the last: a
  server that shuts down asks anew at each answer, tens of thousands of times a second if it is let.

Times are seconds of the caller's monotonic clock. Envelopes: "Streaming Replication Protocol" in PostgreSQL's manual.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from struct import Struct
from typing import Final

from cdcsync.errors import DecodeError
from cdcsync.model import Begin, Change, Commit, LogicalMessage, Progress, Relation, Truncate
from cdcsync.wal.decode import EPOCH, Decoder
from cdcsync.wal.messages import (
    Message,
    Origin,
    StreamAbort,
    StreamCommit,
    Streamed,
    StreamStart,
    StreamStop,
    TypeInfo,
)
from cdcsync.wal.streamed import ALWAYS, StreamedTransaction, StreamedTransactions

Event = Begin | Change | Truncate | Commit | LogicalMessage | Progress
"""What the stream delivers. Between Begin and Commit stand only changes, truncates and transactional messages."""

PACE: Final = 0.05
"""The least time between two status updates, in seconds."""

SILENCE: Final = 5
"""How many of its own timeouts a server may stay silent while we ask it for a word; then the connection is dead.

Generous, because a server that digests a large transaction answers nobody, and dropping it makes it start anew.
"""

SHUTDOWN_PATIENCE: Final = 1.0
"""How long a server that shuts down is let wait for a position that we cannot confirm, in seconds."""

FIRST_USER_OID: Final = 16384
"""Types with lower oids are built in and the same everywhere."""

_DATA_HEADER: Final = 25
_XID_END: Final = 5  # where the transaction id ends that messages of a segment carry behind their tag
_KEEPALIVE = Struct(">xQqB")
_STATUS = Struct(">cQQQqB")
_INTERVAL_BOUNDS = (0.1, 10.0)
_DEFAULT_TIMEOUT = 60.0
_SHUTDOWN_ASKS = 4  # two may be an overlap of the server's request with our own update


class _State(enum.Enum):
    """Where in the stream we are: between transactions, in one, in one that is durable already, or in one's segment."""

    BETWEEN = enum.auto()
    INSIDE = enum.auto()
    SKIPPING = enum.auto()
    SEGMENT = enum.auto()


class ReplicationSession:
    """The protocol state of one connection that streams from ``start_lsn`` (which is durable, or 0: from the slot's).

    ``sender_timeout`` is the server's ``wal_sender_timeout`` in seconds (0: none). ``now`` is the present time, and
    ``epoch`` is what to add to such times for Unix time. ``streamed`` keeps transactions that are streamed while they
    are open; without it, streaming was not asked for. ``close`` gives back what it holds.
    """

    def __init__(
        self,
        start_lsn: int,
        *,
        sender_timeout: float,
        now: float,
        epoch: float = 0.0,
        streamed: StreamedTransactions | None = None,
    ) -> None:
        low, high = _INTERVAL_BOUNDS
        self._interval = min(max(sender_timeout / 5, low), high) if sender_timeout > 0 else high
        self._silence = SILENCE * (sender_timeout or _DEFAULT_TIMEOUT)
        self._heard_at = now
        self._clock_zero = epoch - EPOCH.timestamp()
        self._decoder = Decoder()
        self._state = _State.BETWEEN
        self._start = start_lsn
        self._received = start_lsn
        self._begun = start_lsn
        self._server = start_lsn
        self._durable = start_lsn
        self._told = start_lsn
        self._told_at = now
        self._asked = False
        self._asks: _Asks | None = None
        self._user_types: set[int] = set()
        self._described: set[int] = set()
        self._streamed = streamed
        self._replay: _Replay | None = None

    @property
    def received(self) -> int:
        """The end of the last whole transaction, or what the server said to be beyond it without content for us."""
        return self._received

    @property
    def touched(self) -> int:
        """What was delivered, of a transaction that is not complete too, was committed before it."""
        return max(self._received, self._begun)

    @property
    def server(self) -> int:
        """How far the server has read its WAL for us, as far as it said."""
        return self._server

    @property
    def flushed(self) -> int:
        """What is reported as durable."""
        return min(self._durable, self._received)

    @property
    def inside(self) -> bool:
        """Whether a transaction, or a segment of one, has begun and not yet ended."""
        return self._state is not _State.BETWEEN

    @property
    def replaying(self) -> bool:
        """Whether ``replay`` has events to give; they come before those of the next message."""
        return self._replay is not None

    def take_user_types(self) -> set[int]:
        """Return the oids of user-defined types that relations named since the last call."""
        taken, self._user_types = self._user_types, set()
        return taken

    def take_described(self) -> set[int]:
        """Return the oids of relations that were described (again) since the last call."""
        taken, self._described = self._described, set()
        return taken

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Return the events of one CopyData message; not to be called while ``replaying``.

        Raises DecodeError, and OSError when a streamed transaction has to go to a file and cannot.
        """
        self._heard_at = now
        kind = data[:1]
        if kind == b"w":
            if len(data) <= _DATA_HEADER:
                raise DecodeError(f"a data message of {len(data)} bytes")
            payload = data[_DATA_HEADER:]
            return self._message(self._decoder.decode(payload), payload)
        if kind == b"k" and len(data) == _KEEPALIVE.size:
            lsn, _, wants_reply = _KEEPALIVE.unpack(data)
            return self._keepalive(lsn, now, asked=bool(wants_reply))
        raise DecodeError(f"a replication message of kind {kind!r} and {len(data)} bytes")

    def replay(self, now: float, most: int, size: int) -> list[Event]:
        """Return the next events of the streamed transaction that has committed: at most ``most``, of ``size`` bytes.

        May go beyond ``size`` by one event. Raises DecodeError and OSError.
        """
        self._heard_at = now
        events: list[Event] = []
        replay = self._replay
        if replay is None:
            return events
        for event, length in replay.events:
            events.append(event)
            size -= length
            if len(events) == most or size <= 0:
                return events
        self._end_replay(replay)
        return events

    def close(self) -> None:
        """Drop the streamed transactions that are open; nothing more may be received."""
        if self._replay is not None:
            self._replay.transaction.close()
        if self._streamed is not None:
            self._streamed.close()

    def confirm(self, lsn: int) -> None:
        """Take note that everything before ``lsn`` is durable: a commit's ``end_lsn`` or a ``Progress.lsn``.

        May come from before a reconnection, when this session has not received that far: it counts when it has.
        """
        self._durable = max(self._durable, lsn)

    def deadline(self) -> float:
        """Return the time from which ``due`` has something to send."""
        urgent = self._asked or self.flushed > self._told
        return self._told_at + (PACE if urgent else self._interval)

    def due(self, now: float) -> bytes | None:
        """Return a status update if it is time for one."""
        return self.status(now) if now >= self.deadline() else None

    def status(self, now: float, *, reply_now: bool = False) -> bytes:
        """Return a status update, to be sent; ``reply_now`` asks the server for a keepalive with its position.

        So does every update while the server has been silent for long.
        """
        reply_now = reply_now or now - self._heard_at >= self._silence / 2
        self._told, self._told_at, self._asked = self.flushed, now, False
        micros = int((now + self._clock_zero) * 1_000_000)
        return _STATUS.pack(b"r", self._received, self._told, self._told, micros, reply_now)

    def listen(self, now: float) -> None:
        """Start counting the server's silence now: until now nobody read."""
        self._heard_at = now

    def silent(self, now: float) -> bool:
        """Return whether the server has been silent for so long that it, or the network, is gone."""
        return now - self._heard_at >= self._silence

    def should_close(self, now: float) -> bool:
        """Return whether the server shuts down and waits for a position that we have not made durable in time.

        It would wait for ever (up to version 18): the connection has to be closed, and the rest comes again later.
        """
        asks = self._asks
        if asks is None or asks.count < _SHUTDOWN_ASKS or self.flushed >= asks.lsn:
            return False
        return now - asks.since >= SHUTDOWN_PATIENCE and now - asks.latest < self._interval

    def _keepalive(self, lsn: int, now: float, *, asked: bool) -> list[Event]:
        self._server = max(self._server, lsn)
        if asked:
            self._asked = True
            # A server that only fears for the connection asks once, long after our last update; one that shuts down
            # asks again and again for the same position.
            if self._asks is None or self._asks.lsn != lsn or now - self._asks.latest > self._interval:
                self._asks = _Asks(lsn, now)
            self._asks.count += 1
            self._asks.latest = now
        if self.inside or lsn <= self._received:
            return []
        self._received = lsn
        return [Progress(lsn)]

    def _message(self, message: Message, payload: bytes) -> list[Event]:
        match message:
            case Change() | Truncate():
                return self._in_transaction(message)
            case Streamed() if self._streamed is not None:
                return self._keep(self._streamed, message, payload)
            case Begin():
                return self._begin(message)
            case Commit():
                return self._commit(message)
            case LogicalMessage():
                return self._logical_message(message)
            case Relation():
                self._note_shape(message)
                return []
            case TypeInfo() | Origin():
                return []
            case StreamStart() | StreamStop() | StreamAbort() | StreamCommit() if self._streamed is not None:
                self._follow(self._streamed, message)
                return []
        raise DecodeError(f"the server sent {type(message).__name__}, of an option that was not asked for")

    def _begin(self, begin: Begin) -> list[Event]:
        if self.inside:
            raise DecodeError("a transaction begins inside another")
        if begin.commit_lsn < self._start:
            self._state = _State.SKIPPING
            return []
        self._state = _State.INSIDE
        self._begun = begin.commit_lsn + 1
        return [begin]

    def _commit(self, commit: Commit) -> list[Event]:
        if self._state not in (_State.INSIDE, _State.SKIPPING):
            raise DecodeError("a commit without a transaction")
        before, self._state = self._state, _State.BETWEEN
        self._received = max(self._received, commit.end_lsn)
        self._server = max(self._server, commit.end_lsn)
        return [commit] if before is _State.INSIDE else []

    def _logical_message(self, message: LogicalMessage) -> list[Event]:
        if message.transactional:
            return self._in_transaction(message)
        return [message] if message.lsn >= self._start else []

    def _in_transaction(self, message: Change | Truncate | LogicalMessage) -> list[Event]:
        if self._state is _State.INSIDE:
            return [message]
        if self._state is _State.SKIPPING:
            return []
        raise DecodeError(f"{type(message).__name__} outside a transaction")

    # --- streamed transactions

    def _keep(self, streamed: StreamedTransactions, message: Streamed, payload: bytes) -> list[Event]:
        inner = message.message
        subxid = message.xid
        if isinstance(inner, Relation):
            self._note_shape(inner)
            subxid = ALWAYS  # it is told once, and counts for the whole transaction, whatever is rolled back
        if not isinstance(inner, TypeInfo):
            streamed.add(subxid, payload[:1] + payload[_XID_END:])
        return []

    def _follow(
        self, streamed: StreamedTransactions, message: StreamStart | StreamStop | StreamAbort | StreamCommit
    ) -> None:
        """Act on the messages around the segments. They stand between ordinary transactions, not in them."""
        if isinstance(message, StreamStop):
            streamed.stop()
            self._state = _State.BETWEEN
            return
        if self.inside:
            raise DecodeError(f"{type(message).__name__} inside a transaction")
        if isinstance(message, StreamStart):
            streamed.start(message.xid, first=message.first)
            self._state = _State.SEGMENT
        elif isinstance(message, StreamAbort):
            streamed.abort(message.xid, message.subxid)
        else:
            self._start_replay(streamed.take(message.xid), message)

    def _start_replay(self, transaction: StreamedTransaction, commit: StreamCommit) -> None:
        replay = _Replay(transaction, commit, self._decoder.beside())
        if commit.commit_lsn < self._start:
            self._end_replay(replay)
        else:
            self._replay = replay
            self._state = _State.INSIDE

    def _end_replay(self, replay: _Replay) -> None:
        self._replay = None
        self._state = _State.BETWEEN
        replay.transaction.close()
        self._received = max(self._received, replay.commit.end_lsn)
        self._server = max(self._server, replay.commit.end_lsn)

    def _note_shape(self, relation: Relation) -> None:
        self._described.add(relation.oid)
        self._user_types.update(c.type_oid for c in relation.columns if c.type_oid >= FIRST_USER_OID)


class _Replay:
    """A streamed transaction that has committed, as the events that it would have been had it come at once."""

    __slots__ = ("commit", "events", "transaction")

    def __init__(self, transaction: StreamedTransaction, commit: StreamCommit, decoder: Decoder) -> None:
        self.transaction = transaction
        self.commit = commit
        self.events = self._decode(decoder)
        """Each event, and how many bytes it came in."""

    def _decode(self, decoder: Decoder) -> Iterator[tuple[Event, int]]:
        commit = self.commit
        end: Event = Progress(commit.end_lsn)  # servers leave out a transaction of which nothing is left
        for payload in self.transaction.survivors():
            message = decoder.decode(payload)
            if isinstance(message, Change | Truncate | LogicalMessage):
                if isinstance(end, Progress):
                    yield Begin(commit.commit_lsn, commit.commit_time, commit.xid), 0
                    end = Commit(commit.commit_lsn, commit.end_lsn, commit.commit_time)
                yield message, len(payload)
        yield end, 0


class _Asks:
    """Requests for a status update that repeat the same position ``lsn``."""

    __slots__ = ("count", "latest", "lsn", "since")

    def __init__(self, lsn: int, now: float) -> None:
        self.lsn = lsn
        self.since = now
        self.latest = now
        self.count = 0
