"""The log's lines about logical messages."""

from __future__ import annotations

import datetime as dt

import structlog
from structlog.testing import capture_logs

from cdcsync.model import Begin, Commit, LogicalMessage
from cdcsync.wal.announce import Announcer

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
ALONE = LogicalMessage(0x150, transactional=False, prefix="deploy", content=b"not for the log")
WITHIN = LogicalMessage(0x180, transactional=True, prefix="deploy", content=b"nor this")
OTHER = LogicalMessage(0x190, transactional=True, prefix="other", content=b"")
BEGIN, COMMIT = Begin(0x200, NOON, 7), Commit(0x200, 0x210, NOON)


def test_messages_with_a_wanted_prefix_are_announced_once() -> None:
    """One line each, without the content, and none when they come again after a reconnection."""
    with capture_logs() as lines:
        announcer = Announcer(["deploy"], structlog.get_logger())
        for _ in range(2):
            announcer.look([ALONE, BEGIN, WITHIN, OTHER, COMMIT])
    common = {"event": "message", "log_level": "info", "prefix": "deploy"}
    assert lines == [
        {**common, "lsn": "0/150", "transactional": False, "size": 15},
        {**common, "lsn": "0/180", "transactional": True, "size": 8},
    ]


def test_order_is_that_of_commits() -> None:
    """A message of a transaction that began earlier and committed later is new, though its own place is lower."""
    early = LogicalMessage(0x170, transactional=True, prefix="deploy", content=b"")
    with capture_logs() as lines:
        announcer = Announcer(["deploy"], structlog.get_logger())
        announcer.look([BEGIN, WITHIN, COMMIT, Begin(0x300, NOON, 6), early])
    assert [line["lsn"] for line in lines] == ["0/180", "0/170"]


def test_without_prefixes_nothing_is_said() -> None:
    """The default."""
    with capture_logs() as lines:
        Announcer([], structlog.get_logger()).look([ALONE])
    assert lines == []
