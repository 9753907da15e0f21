"""pgoutput decoding, against an encoder written from the protocol's description."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.errors import DecodeError
from cdcsync.model import (
    ABSENT,
    Begin,
    Change,
    ChangeKind,
    Column,
    Commit,
    LogicalMessage,
    Relation,
    Text,
    Truncate,
)
from cdcsync.wal.decode import Decoder, join_tuple, pick, split_tuple
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
from tests.pgoutput import cstr, encode, encode_tuple, u8, u16, u32, u64

oids = st.integers(0, 2**32 - 1)
lsns = st.integers(0, 2**64 - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
times = st.datetimes(timezones=st.just(dt.UTC))
texts: st.SearchStrategy[Text] = st.one_of(st.binary(max_size=20), st.none(), st.just(ABSENT))
columns = st.builds(Column, names, oids, st.integers(-(2**31), 2**31 - 1), st.booleans())
relations = st.builds(Relation, oids, names, names, st.sampled_from("dnfi"), st.lists(columns, max_size=5).map(tuple))


@st.composite
def rows(draw: st.DrawFn, relation: Relation) -> Change:
    """Draw a change of a row of ``relation``."""
    count = len(relation.columns)
    row = st.lists(texts, min_size=count, max_size=count).map(encode_tuple)
    kind = draw(st.sampled_from([ChangeKind.INSERT, ChangeKind.UPDATE, ChangeKind.DELETE]))
    new = None if kind is ChangeKind.DELETE else draw(row)
    with_old = kind is ChangeKind.DELETE or (kind is ChangeKind.UPDATE and draw(st.booleans()))
    old = draw(row) if with_old else None
    return Change(kind, relation, new, old, old is not None and draw(st.booleans()))


@st.composite
def inner_messages(draw: st.DrawFn, relation: Relation) -> InStream:
    """Draw a message that may also stand in a stream."""
    return draw(
        st.one_of(
            rows(relation),
            st.builds(Truncate, st.lists(st.just(relation), max_size=3).map(tuple), st.booleans(), st.booleans()),
            st.builds(LogicalMessage, lsns, st.booleans(), names, st.binary(max_size=20)),
            st.builds(TypeInfo, oids, names, names),
        )
    )


outer_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Begin, lsns, times, oids),
    st.builds(Commit, lsns, lsns, times),
    st.builds(Origin, lsns, names),
    st.builds(StreamCommit, oids, lsns, lsns, times),
    st.builds(StreamAbort, oids, oids, st.none(), st.none()),
    st.builds(BeginPrepare, lsns, lsns, times, oids, names),
    st.builds(Prepare, lsns, lsns, times, oids, names, st.booleans()),
    st.builds(CommitPrepared, lsns, lsns, times, oids, names),
    st.builds(RollbackPrepared, lsns, lsns, times, times, oids, names),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Draw messages in an order a server could send them in: relations before rows, streams told anew."""
    relation = draw(relations)
    messages: list[Message] = [
        relation,
        *draw(st.lists(st.one_of(inner_messages(relation), outer_messages), max_size=5)),
    ]
    for xid in draw(st.lists(oids, max_size=2)):
        inside = [relation, *draw(st.lists(inner_messages(relation), max_size=4))]
        messages += [StreamStart(xid, first=True), *(Streamed(xid, m) for m in inside), StreamStop()]
    return messages


TABLE = Relation(
    16400, "public", "t", "d", (Column("id", 20, -1, in_identity=True), Column("v", 25, -1, in_identity=False))
)
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def knowing(*relations: Relation) -> Decoder:
    """Return a decoder that was told ``relations``."""
    decoder = Decoder()
    for relation in relations:
        decoder.decode(encode(relation))
    return decoder


@given(conversations())
def test_every_message_comes_back(messages: list[Message]) -> None:
    """What an independent encoder writes, the decoder reads, through all versions' messages."""
    decoder = Decoder()
    assert [decoder.decode(encode(m)) for m in messages] == messages


@given(conversations(), st.data())
def test_truncated_messages_give_decode_errors(messages: list[Message], data: st.DataObject) -> None:
    """A message cut anywhere gives DecodeError, at the latest when its tuple is taken apart."""
    decoder = Decoder()
    for message in messages[:-1]:
        decoder.decode(encode(message))
    whole = encode(messages[-1])
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(DecodeError):
        deep(decoder.decode(cut))


@given(conversations(), st.binary(min_size=1, max_size=8))
def test_trailing_bytes_give_decode_errors(messages: list[Message], extra: bytes) -> None:
    """Bytes after a message's end give DecodeError, at the latest when its tuple is taken apart."""
    decoder = Decoder()
    for message in messages[:-1]:
        decoder.decode(encode(message))
    with pytest.raises(DecodeError):
        deep(decoder.decode(encode(messages[-1]) + extra))


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                bytes.__add__, st.sampled_from([bytes([t]) for t in b"BCORYIUDTMSEcAbPKrp"]), st.binary(max_size=40)
            ),
        )
    )
)
def test_any_bytes_give_messages_or_decode_errors(payloads: list[bytes]) -> None:
    """Whatever comes, nothing but a message or DecodeError comes out."""
    decoder = knowing(TABLE)
    for payload in payloads:
        with suppress(DecodeError):
            deep(decoder.decode(payload))


def deep(message: Message) -> None:
    """Take apart the tuples that a message holds, in each way there is."""
    inner = message.message if isinstance(message, Streamed) else message
    if isinstance(inner, Change):
        for raw in (inner.new, inner.old):
            if raw is not None:
                values = split_tuple(raw)
                assert pick(raw, range(len(values))) == values


@given(st.binary(max_size=30), st.lists(st.integers(0, 6), max_size=3))
def test_any_tuple_gives_values_or_decode_errors(raw: bytes, indexes: list[int]) -> None:
    """A tuple is taken apart, or refused by DecodeError."""
    with suppress(DecodeError):
        split_tuple(raw)
    with suppress(DecodeError):
        pick(raw, indexes)


@given(st.lists(texts, max_size=8), st.data())
def test_tuples(values: list[Text], data: st.DataObject) -> None:
    """Split and join are inverse, the form is the protocol's, and pick agrees with split in any order."""
    raw = encode_tuple(values)
    assert join_tuple(values) == raw
    assert split_tuple(raw) == values
    indexes = data.draw(st.lists(st.integers(0, len(values) - 1)) if values else st.just([]))
    assert pick(raw, indexes) == [values[index] for index in indexes]
    with pytest.raises(DecodeError):
        pick(raw, [len(values)])


def test_pick_reads_no_further_than_needed() -> None:
    """Damage behind the last wanted column is not looked at: keys are read from rows that are never split."""
    raw = encode_tuple([b"7", b"x"])[:-3]
    assert pick(raw, [0]) == [b"7"]
    with pytest.raises(DecodeError):
        pick(raw, [1])


def test_four_states_stay_apart() -> None:
    """NULL, not sent, empty and a text are four values."""
    assert split_tuple(u16(4) + b"n" + b"u" + b"t" + u32(0) + b"t" + u32(1) + b"x") == [None, ABSENT, b"", b"x"]


def test_binary_values_are_given_as_bytes() -> None:
    """The binary form of later protocols is read too."""
    assert split_tuple(u16(1) + b"b" + u32(2) + b"\0\7") == [b"\0\7"]


def test_repeated_relation_is_the_same_object() -> None:
    """A relation sent again with the same content (after a vacuum, say) is no new one; with another it is."""
    decoder = Decoder()
    first = decoder.decode(encode(TABLE))
    assert decoder.decode(encode(TABLE)) is first
    changed = decoder.decode(encode(replace(TABLE, name="renamed")))
    assert changed is not first
    assert changed == replace(TABLE, name="renamed")


def test_rows_hold_the_relation_object() -> None:
    """All rows share one relation object: comparing by identity is enough downstream."""
    decoder = Decoder()
    relation = decoder.decode(encode(TABLE))
    row = Change(ChangeKind.INSERT, TABLE, encode_tuple([b"1", b"x"]))
    for _ in range(2):
        got = decoder.decode(encode(row))
        assert isinstance(got, Change)
        assert got.relation is relation


def test_empty_namespace_is_pg_catalog() -> None:
    """The protocol leaves the namespace empty for pg_catalog."""
    got = Decoder().decode(encode(replace(TABLE, namespace="")))
    assert isinstance(got, Relation)
    assert got.namespace == "pg_catalog"


def test_streamed_relation_counts_after_its_commit_only() -> None:
    """A table altered in a still open streamed transaction keeps its old shape for everybody else."""
    altered = replace(TABLE, columns=(*TABLE.columns, Column("w", 25, -1, in_identity=False)))
    narrow = Change(ChangeKind.INSERT, TABLE, encode_tuple([b"1", b"x"]))
    wide = Change(ChangeKind.INSERT, altered, encode_tuple([b"2", b"x", b"y"]))
    decoder = knowing(TABLE)
    for message in (StreamStart(9, first=True), Streamed(9, altered), Streamed(11, wide), StreamStop(), narrow):
        assert decoder.decode(encode(message)) == message
    decoder.decode(encode(StreamCommit(9, 1, 2, NOON)))
    assert decoder.decode(encode(wide)) == wide


def test_aborted_stream_leaves_relations_as_they_were() -> None:
    """The relations of a streamed transaction go with it; a subtransaction's abort keeps them."""
    altered = replace(TABLE, columns=TABLE.columns[:1])
    wide = Change(ChangeKind.INSERT, TABLE, encode_tuple([b"1", b"x"]))
    narrow = Change(ChangeKind.INSERT, altered, encode_tuple([b"2"]))
    decoder = knowing(TABLE)
    for message in (
        StreamStart(9, first=True),
        Streamed(9, altered),
        StreamStop(),
        StreamAbort(9, 12, None, None),
        StreamStart(9, first=False),
        Streamed(9, narrow),
        StreamStop(),
        StreamAbort(9, 9, None, None),
        wide,
    ):
        assert decoder.decode(encode(message)) == message


def test_origin_in_a_stream_has_no_transaction_id() -> None:
    """All messages in a stream carry a transaction id, but not the origin."""
    decoder = Decoder()
    decoder.decode(encode(StreamStart(9, first=True)))
    assert decoder.decode(encode(Origin(5, "upstream"))) == Origin(5, "upstream")


@given(st.builds(StreamAbort, oids, oids, lsns, times))
def test_parallel_streaming_aborts_are_longer(abort: StreamAbort) -> None:
    """The option, not the version, decides about the fields of a stream abort."""
    assert Decoder(streaming_parallel=True).decode(encode(abort)) == abort
    with pytest.raises(DecodeError):
        Decoder().decode(encode(abort))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "empty"),
        (b"Z", "'Z' of 1 bytes, at byte 0"),
        (b"\x00", "'0x00'"),
        (b"B123", "'B' of 4 bytes, at byte 4"),
        (b"I" + u32(1) + b"N" + u16(1) + b"n", "relation 1, which was not described"),
        (b"I" + u32(16400) + b"N" + u16(1) + b"n", "1 columns, but public.t was described with 2"),
        (b"I" + u32(16400) + b"K" + u16(2) + b"nn", "without a new tuple"),
        (b"U" + u32(16400) + b"K" + u16(2) + b"nn", "without a new tuple"),
        (b"U" + u32(16400) + b"K" + u16(2) + b"nx", "at byte 9"),
        (b"D" + u32(16400) + b"N" + u16(2) + b"nn", "without an old tuple"),
        (b"T" + u32(1) + u8(0) + u32(5), "truncate of relation 5"),
        (b"E", "no stream"),
        (b"R" + u32(1) + cstr("s") + cstr("t") + b"x" + u16(0), "replica identity"),
        (b"B" + u64(1) + u64(2**63 - 1) + u32(1), "years"),
        (b"O" + u64(1) + b"\xff\0", "UTF-8"),
        (b"M\0" + u64(1) + cstr("p") + u32(2**32 - 1), "-1 bytes"),
    ],
)
def test_errors_say_where(payload: bytes, words: str) -> None:
    """An error names the message, the byte and what is wrong there."""
    with pytest.raises(DecodeError, match=words):
        knowing(TABLE).decode(payload)


def test_no_stream_in_a_stream() -> None:
    """Segments do not nest, and commits do not stand inside them."""
    decoder = Decoder()
    decoder.decode(encode(StreamStart(9, first=True)))
    for message in (StreamStart(10, first=True), StreamCommit(9, 1, 2, NOON), StreamAbort(9, 9, None, None)):
        with pytest.raises(DecodeError):
            decoder.decode(encode(message))


def test_errors_never_show_values() -> None:
    """A row's values are personal data: no error about them quotes them."""
    with pytest.raises(DecodeError) as caught:
        split_tuple(encode_tuple([b"secret@example.org"]) + b"secret")
    assert "secret" not in str(caught.value)
