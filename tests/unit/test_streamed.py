"""Streamed transactions: kept while they are open, delivered at their commit as if they had come at once."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.errors import DecodeError
from cdcsync.model import Begin, Change, ChangeKind, Column, Commit, LogicalMessage, Progress, Relation, Text, Truncate
from cdcsync.wal.messages import (
    InStream,
    Message,
    Origin,
    StreamAbort,
    StreamCommit,
    Streamed,
    StreamStart,
    StreamStop,
    TypeInfo,
)
from cdcsync.wal.session import Event, ReplicationSession
from cdcsync.wal.streamed import ALWAYS, StreamedTransactions
from tests.pgoutput import data, encode, encode_tuple, keepalive

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
TABLE = Relation(16400, "public", "t", "d", (Column("id", 20, -1, in_identity=True),))
ALTERED = Relation(16400, "public", "t", "d", (Column("id", 20, -1, in_identity=True), Column("v", 25, -1, False)))


def row(number: int, relation: Relation = TABLE) -> Change:
    """Return an insert that can be told from others."""
    values: list[Text] = [b"%d" % number, b"v"]
    return Change(ChangeKind.INSERT, relation, encode_tuple(values[: len(relation.columns)]))


@dataclass
class Files:
    """Opens files in memory, and keeps them."""

    opened: list[io.BytesIO] = field(default_factory=list)

    def __call__(self) -> IO[bytes]:
        self.opened.append(io.BytesIO())
        return self.opened[-1]

    @property
    def closed(self) -> bool:
        """Whether every file was given back."""
        return all(file.closed for file in self.opened)


class Talk:
    """A session that streams, and what it gave so far."""

    def __init__(self, start: int = 100, *, memory: int = 1 << 20, piece: int = 1000) -> None:
        self.files = Files()
        self.streamed = StreamedTransactions(self.files, memory)
        self.session = ReplicationSession(start, sender_timeout=60, now=0.0, streamed=self.streamed)
        self.piece = piece
        self.events: list[Event] = []

    def hear(self, *messages: Message) -> None:
        """Receive messages, and replay what they complete."""
        for message in messages:
            self.events += self.session.receive(data(encode(message)), 0.0)
            while self.session.replaying:
                piece = self.session.replay(0.0, self.piece, 1 << 20)
                assert len(piece) <= self.piece
                self.events += piece

    def segment(self, xid: int, *inner: Streamed, first: bool = False) -> None:
        """Hear a segment of ``xid``."""
        self.hear(StreamStart(xid, first), *inner, StreamStop())


def expected(xid: int, lsn: int, end: int, content: Sequence[Change | Truncate | LogicalMessage]) -> list[Event]:
    """Return a whole transaction's events."""
    return [Begin(lsn, NOON, xid), *content, Commit(lsn, end, NOON)] if content else [Progress(end)]


@dataclass
class Model:
    """What an open transaction holds, by the simplest rule there is."""

    rows: list[tuple[int, Change]] = field(default_factory=list)
    subs: list[int] = field(default_factory=list)


@given(st.data(), st.integers(0, 200), st.integers(1, 5))
def test_any_interleaving_gives_what_was_not_rolled_back(draw: st.DataObject, memory: int, piece: int) -> None:
    """Transactions in segments beside each other and ordinary ones, with aborts of any part, equal a simple model."""
    talk = Talk(memory=memory, piece=piece)
    want: list[Event] = []
    opened: dict[int, Model] = {}
    lsn, number, xids = 100, 0, 700
    talk.hear(TABLE)
    for step in draw.draw(st.lists(st.sampled_from(["segment", "abort", "rollback", "commit", "plain"]), max_size=30)):
        lsn += 10
        if step == "plain":
            number += 1
            talk.hear(Begin(lsn, NOON, 5), row(number), Commit(lsn, lsn + 5, NOON))
            want += expected(5, lsn, lsn + 5, [row(number)])
            continue
        xid = draw.draw(st.sampled_from([*opened, 0])) if opened else 0
        if step == "segment":
            xids += 1
            xid = xid or xids
            first = xid not in opened
            model = opened.setdefault(xid, Model(subs=[xid]))
            told: list[Streamed] = [Streamed(xid, TABLE)]
            for _ in range(draw.draw(st.integers(0, 4))):
                if draw.draw(st.booleans()):
                    xids += 1
                    model.subs.append(xids)
                sub = draw.draw(st.sampled_from(model.subs))
                number += 1
                told.append(Streamed(sub, row(number)))
                model.rows.append((sub, row(number)))
            talk.segment(xid, *told, first=first)
        elif not xid:
            continue
        elif step == "abort":
            model = opened[xid]
            sub = draw.draw(st.sampled_from([*model.subs[1:], 99]))
            talk.hear(StreamAbort(xid, sub, None, None))
            model.rows = [(owner, change) for owner, change in model.rows if owner != sub]
            model.subs = [other for other in model.subs if other != sub]
        elif step == "rollback":
            talk.hear(StreamAbort(xid, xid, None, None))
            del opened[xid]
        else:
            talk.hear(StreamCommit(xid, lsn, lsn + 5, NOON))
            want += expected(xid, lsn, lsn + 5, [change for _, change in opened.pop(xid).rows])
    assert talk.events == want
    assert len(talk.streamed) == len(opened)
    assert bool(opened) or talk.files.closed
    talk.session.close()
    assert talk.files.closed


def test_every_kind_of_message_comes_back() -> None:
    """Rows, truncates and transactional messages in their order; relations, types and origins are no events."""
    message = LogicalMessage(5, transactional=True, prefix="p", content=b"x")
    content: list[Change | Truncate | LogicalMessage] = [
        row(1),
        Truncate((TABLE,), cascade=False, restart_identity=True),
        message,
    ]
    talk = Talk(memory=0)
    talk.hear(StreamStart(7, first=True), Origin(1, "o"), Streamed(7, TypeInfo(16500, "s", "mood")), Streamed(7, TABLE))
    talk.hear(*(Streamed(7, inner) for inner in content), StreamStop())
    assert talk.events == []
    talk.hear(StreamCommit(7, 200, 210, NOON))
    assert talk.events == expected(7, 200, 210, content)
    assert (talk.session.received, talk.session.inside) == (210, False)


def test_a_relation_told_in_a_rolled_back_part_still_counts() -> None:
    """The server tells a relation once per streamed transaction, though it be in a savepoint that is undone."""
    talk = Talk()
    talk.segment(7, Streamed(8, TABLE), Streamed(8, row(1)), first=True)
    talk.hear(StreamAbort(7, 8, None, None))
    talk.segment(7, Streamed(7, row(2)))
    talk.hear(StreamCommit(7, 200, 210, NOON))
    assert talk.events == expected(7, 200, 210, [row(2)])


def test_each_row_has_the_shape_of_its_moment() -> None:
    """A table that is altered within the transaction; what it was before is the object that others know."""
    talk = Talk()
    talk.hear(TABLE, Begin(150, NOON, 5), row(0), Commit(150, 160, NOON))
    inner: tuple[InStream, ...] = (TABLE, row(1), ALTERED, row(2, ALTERED))
    talk.segment(7, *(Streamed(7, message) for message in inner), first=True)
    talk.hear(StreamCommit(7, 200, 210, NOON), Begin(300, NOON, 9), row(3, ALTERED), Commit(300, 310, NOON))
    changes = [event for event in talk.events if isinstance(event, Change)]
    assert changes == [row(0), row(1), row(2, ALTERED), row(3, ALTERED)]


def test_repeated_relations_are_the_same_object_through_a_stream() -> None:
    """Whoever compiles for a relation does it once, though a streamed transaction is told all of them anew."""
    talk = Talk()
    talk.hear(TABLE, Begin(150, NOON, 5), row(0), Commit(150, 160, NOON))
    talk.segment(7, Streamed(7, TABLE), Streamed(7, row(1)), first=True)
    talk.hear(StreamCommit(7, 200, 210, NOON))
    first, second = (event.relation for event in talk.events if isinstance(event, Change))
    assert first is second


def test_memory_is_bounded() -> None:
    """Above the bound the largest goes to a file; what stays in memory never exceeds the bound."""
    talk = Talk(memory=1000)
    for xid in (7, 8):
        talk.segment(xid, Streamed(xid, TABLE), first=True)
    for number in range(1000):
        talk.segment(7 if number % 3 else 8, Streamed(7, row(number)))
        assert sum(transaction.buffered for transaction in talk.streamed._open.values()) <= 1000
    assert len(talk.files.opened) == 2
    talk.hear(StreamCommit(7, 200, 210, NOON), StreamAbort(8, 8, None, None))
    assert talk.events == expected(7, 200, 210, [row(number) for number in range(1000) if number % 3])
    assert talk.files.closed
    assert talk.streamed._buffered == 0


def test_a_transaction_is_read_back_piece_by_piece() -> None:
    """A replay takes from the file what it gives, and no more, by number and by size."""
    talk = Talk(memory=0)
    talk.segment(7, Streamed(7, TABLE), *(Streamed(7, row(number)) for number in range(1000)), first=True)
    talk.session.receive(data(encode(StreamCommit(7, 200, 210, NOON))), 0.0)
    (file,) = talk.files.opened
    assert [type(event) for event in talk.session.replay(0.0, 3, 1 << 20)] == [Begin, Change, Change]
    assert file.tell() < 200
    assert len(talk.session.replay(0.0, 1000, 1)) == 1
    assert talk.session.inside
    assert talk.session.received == 100
    assert len(talk.session.replay(0.0, 5000, 1 << 20)) == 998
    assert (talk.session.inside, talk.session.replaying, talk.session.received) == (False, False, 210)
    assert file.closed


def test_what_is_durable_already_is_left_out() -> None:
    """A streamed transaction that committed before the start point came before."""
    talk = Talk(200, memory=0)
    talk.segment(7, Streamed(7, TABLE), Streamed(7, row(1)), first=True)
    talk.hear(StreamCommit(7, 199, 205, NOON))
    assert talk.events == []
    assert talk.session.received == 205
    assert talk.files.closed


def test_progress_goes_on_while_a_transaction_is_open() -> None:
    """Between segments positions may be confirmed: the transaction's commit record is still to come. Within, none."""
    talk = Talk()
    talk.segment(7, Streamed(7, TABLE), Streamed(7, row(1)), first=True)
    assert talk.session.receive(keepalive(150), 0.0) == [Progress(150)]
    talk.session.confirm(150)
    assert talk.session.flushed == 150
    talk.hear(StreamStart(7, first=False))
    assert talk.session.inside
    assert talk.session.receive(keepalive(170), 0.0) == []
    talk.hear(StreamStop(), StreamCommit(7, 200, 210, NOON))
    assert talk.events == expected(7, 200, 210, [row(1)])


def test_nothing_within_a_replay_is_confirmed() -> None:
    """While a transaction is delivered, what is reported stays before it, whatever is confirmed."""
    talk = Talk()
    talk.segment(7, Streamed(7, TABLE), Streamed(7, row(1)), Streamed(7, row(2)), first=True)
    talk.session.receive(data(encode(StreamCommit(7, 200, 210, NOON))), 0.0)
    talk.session.replay(0.0, 2, 1 << 20)
    talk.session.confirm(210)
    assert talk.session.flushed == 100
    talk.session.replay(0.0, 5, 1 << 20)
    assert talk.session.flushed == 210


def test_a_file_that_lost_its_end_is_an_error() -> None:
    """Rows never go missing in silence."""
    files = Files()
    streamed = StreamedTransactions(files, 0)
    streamed.start(7, first=True)
    streamed.add(7, b"whole")
    files.opened[0].truncate(10)
    with pytest.raises(OSError, match="too early"):
        list(streamed.take(7).survivors())


def test_closing_gives_files_back_in_mid_replay() -> None:
    """A connection may be lost at any moment."""
    talk = Talk(memory=0)
    for xid in (7, 8):
        talk.segment(xid, Streamed(xid, TABLE), Streamed(xid, row(1)), first=True)
    talk.session.receive(data(encode(StreamCommit(7, 200, 210, NOON))), 0.0)
    talk.session.replay(0.0, 1, 1 << 20)
    talk.session.close()
    assert len(talk.files.opened) == 2
    assert talk.files.closed


def _add_outside(talk: Talk) -> None:
    talk.streamed.add(ALWAYS, b"x")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda talk: talk.segment(8, first=False),
        lambda talk: talk.segment(7, first=True),
        lambda talk: talk.hear(StreamCommit(8, 200, 210, NOON)),
        lambda talk: talk.hear(Begin(200, NOON, 9), StreamStart(7, first=False)),
        lambda talk: talk.hear(Begin(200, NOON, 9), StreamAbort(7, 7, None, None)),
        lambda talk: talk.hear(Begin(200, NOON, 9), StreamCommit(7, 200, 210, NOON)),
        lambda talk: talk.hear(StreamStart(7, first=False), Begin(200, NOON, 9)),
        lambda talk: talk.hear(StreamStart(7, first=False), Commit(200, 210, NOON)),
        lambda talk: talk.hear(StreamStart(7, first=False), StreamCommit(7, 200, 210, NOON)),
        _add_outside,
    ],
)
def test_what_breaks_the_order_is_refused(break_it: Callable[[Talk], None]) -> None:
    """Segments that are missing or out of place mean lost rows."""
    talk = Talk()
    talk.segment(7, Streamed(7, TABLE), first=True)
    with pytest.raises(DecodeError):
        break_it(talk)
