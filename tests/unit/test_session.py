"""The replication session, on a virtual clock."""

from __future__ import annotations

import datetime as dt
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.errors import DecodeError
from cdcsync.model import Begin, Change, Commit, LogicalMessage, Progress, Truncate
from cdcsync.wal.session import PACE, SHUTDOWN_PATIENCE, SILENCE, Event, ReplicationSession
from cdcsync.wal.tuples import join_tuple

STAMP = 1_000_000  # one second after 2000-01-01
TABLE_OID = 16400
ENUM_OID = 16500
BUILTIN_OID = 20


def data(payload: bytes) -> bytes:
    """Wrap a pgoutput message in the envelope of WAL data."""
    return b"w" + struct.pack(">QQq", 0, 0, STAMP) + payload


def keepalive(lsn: int, *, asks: bool = False) -> bytes:
    """Return a keepalive of a server that has read up to ``lsn``."""
    return b"k" + struct.pack(">QqB", lsn, STAMP, asks)


def begin(lsn: int) -> bytes:
    """Return a transaction's beginning."""
    return data(b"B" + struct.pack(">QqI", lsn, STAMP, 7))


def commit(lsn: int, end: int) -> bytes:
    """Return a transaction's end."""
    return data(b"C\0" + struct.pack(">QQq", lsn, end, STAMP))


def relation(type_oid: int = BUILTIN_OID) -> bytes:
    """Return the description of a table of one column."""
    column = b"\1id\0" + struct.pack(">Ii", type_oid, -1)
    return data(b"R" + struct.pack(">I", TABLE_OID) + b"public\0t\0d" + struct.pack(">H", 1) + column)


def insert(value: bytes = b"1") -> bytes:
    """Return an insert into that table."""
    return data(b"I" + struct.pack(">I", TABLE_OID) + b"N" + join_tuple([value]))


def truncate() -> bytes:
    """Return a truncate of that table."""
    return data(b"T" + struct.pack(">IBI", 1, 0, TABLE_OID))


def logical(lsn: int, *, transactional: bool) -> bytes:
    """Return an application's message."""
    return data(b"M" + struct.pack(">BQ", transactional, lsn) + b"p\0" + struct.pack(">I", 1) + b"x")


def session(start: int = 100, *, timeout: float = 60.0, now: float = 0.0) -> ReplicationSession:
    """Return a fresh session."""
    return ReplicationSession(start, sender_timeout=timeout, now=now)


def feed(it: ReplicationSession, *messages: bytes, now: float = 0.0) -> list[Event]:
    """Give messages to a session and return all events."""
    return [event for message in messages for event in it.receive(message, now)]


def kinds(events: list[Event]) -> list[type]:
    """Return the kinds of events."""
    return [type(event) for event in events]


def reported(status: bytes | None) -> tuple[int, int, int, bool]:
    """Return written, flushed and applied position of a status update, and whether it asks for a reply."""
    assert status is not None
    tag, written, flushed, applied, _, asks = struct.unpack(">cQQQqB", status)
    assert tag == b"r"
    return written, flushed, applied, bool(asks)


def test_a_transaction_arrives_in_order() -> None:
    """Begin, rows, truncates and messages come as sent; relations, types and origins are no events."""
    it = session()
    origin, named = data(b"O" + struct.pack(">Q", 1) + b"o\0"), data(b"Y" + struct.pack(">I", ENUM_OID) + b"s\0t\0")
    events = feed(
        it,
        begin(200),
        origin,
        named,
        relation(),
        insert(),
        truncate(),
        logical(150, transactional=True),
        commit(200, 210),
    )
    assert kinds(events) == [Begin, Change, Truncate, LogicalMessage, Commit]
    assert events[0] == Begin(200, dt.datetime(2000, 1, 1, 0, 0, 1, tzinfo=dt.UTC), 7)
    assert (it.received, it.server, it.inside) == (210, 210, False)


def test_a_durable_transaction_is_left_out_whole() -> None:
    """A transaction whose commit record starts before the start point came before; the next one is new."""
    it = session(200)
    old = feed(it, begin(199), relation(), insert(), logical(150, transactional=True), truncate(), commit(199, 200))
    assert old == []
    assert kinds(feed(it, begin(200), insert(), commit(200, 210))) == [Begin, Change, Commit]


def test_messages_of_their_own_are_not_doubled() -> None:
    """A non-transactional message before the start point came before."""
    it = session(200)
    assert feed(it, logical(199, transactional=False)) == []
    assert kinds(feed(it, logical(200, transactional=False))) == [LogicalMessage]


def test_progress_only_when_it_is_one() -> None:
    """A keepalive is progress between transactions, when it is beyond what was received."""
    it = session(100)
    assert feed(it, keepalive(100)) == []
    assert feed(it, keepalive(120)) == [Progress(120)]
    assert feed(it, keepalive(120), keepalive(110)) == []
    assert kinds(feed(it, begin(130), keepalive(140))) == [Begin]
    assert it.received == 120
    assert kinds(feed(it, commit(130, 150), keepalive(150))) == [Commit]
    assert feed(it, keepalive(160)) == [Progress(160)]


@given(
    st.lists(st.tuples(st.sampled_from(["confirm", "progress", "transaction", "begin"]), st.integers(1, 50))),
)
def test_flushed_never_goes_back_nor_beyond_received(steps: list[tuple[str, int]]) -> None:
    """Whatever is confirmed and received in whatever order, the reported position stays within its bounds."""
    it = session(100)
    tip, wanted, open_since = 100, 100, None
    before = it.flushed
    for step, distance in steps:
        if step == "confirm":
            wanted = max(wanted, tip + distance - 25)
            it.confirm(tip + distance - 25)
        elif open_since is not None:
            tip += distance
            feed(it, commit(open_since, tip))
            open_since = None
        elif step == "progress":
            tip += distance
            feed(it, keepalive(tip))
        elif step == "begin":
            open_since = tip
            feed(it, begin(tip))
        else:
            feed(it, begin(tip), commit(tip, tip + distance))
            tip += distance
        assert before <= it.flushed <= it.received == tip
        assert it.flushed == min(wanted, tip)
        assert reported(it.status(0.0)) == (it.received, it.flushed, it.flushed, False)
        before = it.flushed


def test_confirmation_from_before_a_reconnection_counts_later() -> None:
    """What the last connection had received may be durable before this one receives it again."""
    it = session(100)
    it.confirm(200)
    assert it.flushed == 100
    feed(it, begin(190), commit(190, 200))
    assert it.flushed == 200


@pytest.mark.parametrize(("timeout", "interval"), [(60, 10), (6, 1.2), (1, 0.2), (0.1, 0.1), (0, 10)])
def test_status_updates_have_a_timer_of_their_own(timeout: float, interval: float) -> None:
    """A status update is due at a fifth of the server's timeout, within bounds, without being asked."""
    it = session(timeout=timeout, now=5.0)
    assert it.deadline() == pytest.approx(5 + interval)
    assert it.due(5 + interval - 0.01) is None
    assert reported(it.due(5 + interval + 0.01)) == (100, 100, 100, False)
    assert it.due(5 + interval + 0.02) is None


def test_requests_are_answered_in_paces() -> None:
    """A requested reply comes soon, but not within ``PACE`` of the last update."""
    it = session(now=0.0)
    feed(it, keepalive(100, asks=True), now=0.0)
    assert it.due(0.01) is None
    assert it.due(PACE) is not None
    feed(it, keepalive(100, asks=True), now=PACE)
    assert it.due(PACE + 0.01) is None
    assert it.due(2 * PACE) is not None


def test_confirmations_are_told_soon() -> None:
    """A new durable position is reported without waiting for the timer, once."""
    it = session(now=0.0)
    feed(it, keepalive(150))
    it.confirm(150)
    assert reported(it.due(PACE)) == (150, 150, 150, False)
    assert it.due(1.0) is None


def test_status_can_ask_for_progress() -> None:
    """The server is asked for its position by the update's last byte."""
    assert reported(session().status(0.0, reply_now=True))[3]


def test_status_carries_the_time() -> None:
    """The update's time is microseconds since 2000, made of the caller's clock and its offset."""
    unix = dt.datetime(2026, 5, 4, tzinfo=dt.UTC).timestamp()
    it = ReplicationSession(1, sender_timeout=60, now=40.0, epoch=unix - 40.0)
    micros = struct.unpack(">cQQQqB", it.status(41.0))[4]
    told = dt.datetime(2000, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=micros)
    assert told == dt.datetime(2026, 5, 4, 0, 0, 1, tzinfo=dt.UTC)


def shutting_down(it: ReplicationSession, lsn: int, seconds: float) -> float:
    """Let a server ask for ``lsn`` at each answer for ``seconds``; returns the time then."""
    now = 100.0
    while now < 100.0 + seconds:
        feed(it, keepalive(lsn, asks=True), now=now)
        now += PACE
        it.due(now)
    return now


def test_a_server_that_shuts_down_is_not_held() -> None:
    """When the server asks again and again for what we cannot confirm, the connection is to be closed."""
    it = session()
    assert not it.should_close(shutting_down(it, 500, SHUTDOWN_PATIENCE / 2))
    assert it.should_close(shutting_down(it, 500, SHUTDOWN_PATIENCE * 1.5))


def test_a_confirmed_shutdown_ends_by_itself() -> None:
    """With the position confirmed the server ends the stream; nothing is to be closed."""
    it = session()
    now = shutting_down(it, 500, SHUTDOWN_PATIENCE * 1.5)
    it.confirm(500)
    assert not it.should_close(now)


def test_ordinary_requests_close_nothing() -> None:
    """A server that asks at half of its timeout, for ever at one position, is only idle."""
    it = session(timeout=60)
    for minute in range(20):
        now = 30.0 * minute
        feed(it, keepalive(500, asks=True), now=now)
        assert not it.should_close(now)
        it.due(now + 1)


def test_progress_under_requests_closes_nothing() -> None:
    """A server that asks while it still advances is working, not waiting."""
    it = session()
    for step in range(100):
        now = step * PACE
        feed(it, keepalive(500 + step, asks=True), now=now)
        assert not it.should_close(now)


def test_a_silent_server_is_asked_and_then_given_up() -> None:
    """A dead network behind a live socket is noticed: the server is asked for a word, and has long to give it."""
    it = session(timeout=60, now=0.0)
    limit = SILENCE * 60
    assert not reported(it.status(limit / 2 - 1))[3]
    assert reported(it.status(limit / 2))[3]
    assert not it.silent(limit - 1)
    assert it.silent(limit)
    it.listen(limit)
    assert not it.silent(limit)
    feed(it, keepalive(100), now=2 * limit)
    assert not it.silent(2 * limit)
    assert session(timeout=0).silent(limit)


def test_user_types_are_told_once() -> None:
    """The oids of user-defined column types are collected for whoever resolves them."""
    it = session()
    feed(it, begin(200), relation(ENUM_OID), relation())
    assert it.take_user_types() == {ENUM_OID}
    assert it.take_user_types() == set()


@pytest.mark.parametrize(
    "messages",
    [
        [insert()],
        [truncate()],
        [logical(150, transactional=True)],
        [commit(200, 210)],
        [begin(200), begin(300)],
        [data(b"S" + struct.pack(">IB", 7, 1))],
        [b""],
        [b"w"],
        [b"w" + bytes(24)],
        [b"k" + bytes(16)],
        [b"k" + bytes(18)],
        [b"z"],
    ],
)
def test_what_breaks_the_protocol_is_refused(messages: list[bytes]) -> None:
    """Messages out of order or shape raise DecodeError."""
    it = session()
    it.receive(relation(), 0.0)
    with pytest.raises(DecodeError):
        feed(it, *messages)


@given(st.lists(st.binary(max_size=60).map(lambda b: b"w" + b) | st.binary(max_size=60)))
def test_any_bytes_give_events_or_decode_errors(messages: list[bytes]) -> None:
    """Whatever comes, nothing but events or DecodeError comes out, and the reported position stays."""
    it = session()
    for message in messages:
        try:
            it.receive(message, 0.0)
        except DecodeError:
            continue
    assert it.flushed == 100


def test_what_was_touched_counts_transactions_that_are_not_complete() -> None:
    """Changes are delivered before their commit: a history that lacks that commit is not ours."""
    it = session(100)
    feed(it, begin(190), commit(190, 200))
    assert it.touched == 200
    feed(it, begin(250), relation(), insert())
    assert (it.touched, it.received) == (251, 200)
    feed(it, commit(250, 260))
    assert it.touched == it.received == 260
