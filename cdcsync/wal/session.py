"""One replication connection's conversation, without its socket and its clock (both belong to the caller).

The rules of this module:

* ``receive`` takes the content of one CopyData message and gives the events in it. Transactions come whole and in
  commit order; those that are durable already (their commit record starts before the start point) are left out.
* What is reported as flushed is never inside a transaction, never goes back, and is never beyond what was received:
  the server resends a transaction only if its commit record starts at or after the reported position.
* Status updates have a timer of their own. Servers ask for one at half of ``wal_sender_timeout`` and cut the
  connection at the whole of it, so a third of it is the interval. An answer is never given sooner than ``PACE`` after
  the last: a server that shuts down asks anew at each answer, tens of thousands of times a second if it is let.

Times are seconds of the caller's monotonic clock. Envelopes: "Streaming Replication Protocol" in PostgreSQL's manual.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

from cdcsync.errors import DecodeError
from cdcsync.model import Begin, Change, Commit, LogicalMessage, Progress, Relation, Truncate
from cdcsync.wal.decode import EPOCH, Decoder
from cdcsync.wal.messages import Message, Origin, TypeInfo

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
_KEEPALIVE = Struct(">xQqB")
_STATUS = Struct(">cQQQqB")
_INTERVAL_BOUNDS = (0.1, 10.0)
_DEFAULT_TIMEOUT = 60.0
_SHUTDOWN_ASKS = 4  # two may be an overlap of the server's request with our own update


class _State(enum.Enum):
    """Where in the stream we are: between transactions, in one, or in one that is durable already."""

    BETWEEN = enum.auto()
    INSIDE = enum.auto()
    SKIPPING = enum.auto()


class ReplicationSession:
    """The protocol state of one connection that streams from ``start_lsn`` (which is durable, or 0: from the slot's).

    ``sender_timeout`` is the server's ``wal_sender_timeout`` in seconds (0: none). ``now`` is the present time, and
    ``epoch`` is what to add to such times for Unix time.
    """

    def __init__(self, start_lsn: int, *, sender_timeout: float, now: float, epoch: float = 0.0) -> None:
        low, high = _INTERVAL_BOUNDS
        self._interval = min(max(sender_timeout / 3, low), high) if sender_timeout > 0 else high
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
        """Whether a transaction has begun and not yet ended."""
        return self._state is not _State.BETWEEN

    def take_user_types(self) -> set[int]:
        """Return the oids of user-defined types that relations named since the last call."""
        taken, self._user_types = self._user_types, set()
        return taken

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Return the events of one CopyData message. Raises DecodeError."""
        self._heard_at = now
        kind = data[:1]
        if kind == b"w":
            if len(data) <= _DATA_HEADER:
                raise DecodeError(f"a data message of {len(data)} bytes")
            return self._message(self._decoder.decode(data[_DATA_HEADER:]))
        if kind == b"k" and len(data) == _KEEPALIVE.size:
            lsn, _, wants_reply = _KEEPALIVE.unpack(data)
            return self._keepalive(lsn, now, asked=bool(wants_reply))
        raise DecodeError(f"a replication message of kind {kind!r} and {len(data)} bytes")

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

    def _message(self, message: Message) -> list[Event]:
        match message:
            case Change() | Truncate():
                return self._in_transaction(message)
            case Begin():
                return self._begin(message)
            case Commit():
                return self._commit(message)
            case LogicalMessage():
                return self._logical_message(message)
            case Relation():
                self._user_types.update(c.type_oid for c in message.columns if c.type_oid >= FIRST_USER_OID)
                return []
            case TypeInfo() | Origin():
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
        if not self.inside:
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


class _Asks:
    """Requests for a status update that repeat the same position ``lsn``."""

    __slots__ = ("count", "latest", "lsn", "since")

    def __init__(self, lsn: int, now: float) -> None:
        self.lsn = lsn
        self.since = now
        self.latest = now
        self.count = 0
