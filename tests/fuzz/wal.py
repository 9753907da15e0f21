"""Coverage-guided fuzzing of what reads the replication stream: decoder, tuples, session and streamed transactions.

    make fuzz                  for CDCSYNC_FUZZ_SECONDS (600 unless said otherwise)
    make fuzz ARGS=crash-…     one input again

An input is a conversation: a byte of options, then messages with their lengths in front. Whatever it is, events or
DecodeError come out, nothing else is raised, what is reported as flushed stays within what was received, and every
file is given back. The corpus starts from real conversations, and is kept in ``.fuzz/``.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cdcsync.wal", "cdcsync.model"]):
    from cdcsync.errors import DecodeError
    from cdcsync.model import Begin, Change, ChangeKind, Column, Commit, LogicalMessage, Relation, Text, Truncate
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
    from cdcsync.wal.session import Event, ReplicationSession
    from cdcsync.wal.streamed import StreamedTransactions
    from cdcsync.wal.tuples import pick, split_tuple

from tests.pgoutput import data, encode, encode_tuple, keepalive

CORPUS = Path(".fuzz")
STREAMING, TINY_MEMORY, ENVELOPED = 1, 2, 4
PIECE = 3
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
TABLE = Relation(
    16400, "public", "t", "d", (Column("id", 20, -1, in_identity=True), Column("v", 16500, -1, in_identity=False))
)


def one_input(raw: bytes) -> None:
    """Hold one conversation."""
    options = raw[0] if raw else 0
    files: list[io.BytesIO] = []

    def open_file() -> io.BytesIO:
        files.append(io.BytesIO())
        return files[-1]

    streamed = StreamedTransactions(open_file, 0 if options & TINY_MEMORY else 1 << 20)
    session = ReplicationSession(100, sender_timeout=60, now=0.0, streamed=streamed if options & STREAMING else None)
    for message in _messages(raw[1:]):
        try:
            for event in _events(session, message if options & ENVELOPED else data(message)):
                _look_into(event)
        except DecodeError:
            break
        session.confirm(session.received)
        assert 100 <= session.flushed <= session.received
    session.close()
    assert all(file.closed for file in files)


def _messages(raw: bytes) -> Iterator[bytes]:
    while raw:
        length = int.from_bytes(raw[:2], "big")
        yield raw[2 : 2 + length]
        raw = raw[2 + length :]


def _events(session: ReplicationSession, message: bytes) -> Iterator[Event]:
    yield from session.receive(message, 0.0)
    while session.replaying:
        yield from session.replay(0.0, PIECE, 1 << 20)


def _look_into(event: Event) -> None:
    if isinstance(event, Change):
        for raw in (event.new, event.old):
            if raw is not None:
                values = split_tuple(raw)
                assert pick(raw, range(len(values))) == values


def seeds() -> Iterator[bytes]:
    """Yield conversations as a server could hold them."""
    values: list[Text] = [b"7", None]
    row = encode_tuple(values)
    inner: list[InStream] = [
        TypeInfo(16500, "s", "mood"),
        TABLE,
        Change(ChangeKind.INSERT, TABLE, row),
        Change(ChangeKind.UPDATE, TABLE, row, row, old_is_key=True),
        Change(ChangeKind.UPDATE, TABLE, row, row),
        Change(ChangeKind.DELETE, TABLE, None, row, old_is_key=True),
        Truncate((TABLE,), cascade=True, restart_identity=False),
        LogicalMessage(150, transactional=True, prefix="p", content=b"x"),
    ]
    whole: list[Message] = [Begin(200, NOON, 7), Origin(5, "o"), *inner, Commit(200, 210, NOON)]
    segment: list[Message] = [StreamStart(9, first=True), *(Streamed(11, message) for message in inner), StreamStop()]
    abort = StreamAbort(9, 11, None, None)
    again: list[Message] = [StreamStart(9, first=False), Streamed(9, inner[2]), StreamStop()]
    commit = StreamCommit(9, 300, 310, NOON)
    for options in range(4):
        yield _conversation(options, whole)
        yield _conversation(options, [*segment, commit, *whole])
        yield _conversation(options, [*segment, abort, *whole, *again, commit])
        yield _conversation(options, [*segment, StreamAbort(9, 9, None, None), *whole])
    prepared: list[Message] = [
        BeginPrepare(1, 2, NOON, 7, "g"),
        Prepare(1, 2, NOON, 7, "g", streamed=False),
        CommitPrepared(1, 2, NOON, 7, "g"),
        RollbackPrepared(1, 2, NOON, NOON, 7, "g"),
    ]
    for message in prepared:
        yield _conversation(STREAMING, [message])
    yield _framed(STREAMING | ENVELOPED, [keepalive(150), data(encode(whole[0])), keepalive(160, asks=True)])


def _conversation(options: int, messages: Sequence[Message]) -> bytes:
    return _framed(options, [encode(message) for message in messages])


def _framed(options: int, messages: Sequence[bytes]) -> bytes:
    return bytes([options]) + b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def main() -> None:
    """Fuzz, or run the inputs that are named."""
    CORPUS.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds()):
        (CORPUS / f"seed-{number:02}").write_bytes(seed)
    seconds = os.environ.get("CDCSYNC_FUZZ_SECONDS", "600")
    arguments = sys.argv[1:] or [f"-max_total_time={seconds}", "-max_len=4096", "-print_final_stats=1", str(CORPUS)]
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
