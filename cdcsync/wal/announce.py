"""The log's lines about logical messages (``pg_logical_emit_message``) that the config asks for by their prefix."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from structlog.typing import FilteringBoundLogger

from cdcsync.model import Begin, LogicalMessage, format_lsn
from cdcsync.wal.session import Event


class Announcer:
    """Writes one line for each message with one of ``prefixes``; never its content, which may be anything.

    A message that comes again after a reconnection is known by its place and not announced twice; one that comes again
    after a restart of the program is.
    """

    def __init__(self, prefixes: Collection[str], log: FilteringBoundLogger) -> None:
        self._prefixes = frozenset(prefixes)
        self._log = log
        self._commit_lsn = 0
        self._alone = 0
        self._within = (0, 0)

    def look(self, events: Iterable[Event]) -> None:
        """Announce the messages among the stream's next events."""
        if not self._prefixes:
            return
        for event in events:
            if isinstance(event, Begin):
                self._commit_lsn = event.commit_lsn
            elif isinstance(event, LogicalMessage) and self._is_new(event) and event.prefix in self._prefixes:
                self._log.info(
                    "message",
                    prefix=event.prefix,
                    lsn=format_lsn(event.lsn),
                    transactional=event.transactional,
                    size=len(event.content),
                )

    def _is_new(self, message: LogicalMessage) -> bool:
        """Compare with the last message; a transactional one's place begins with its transaction's commit."""
        if message.transactional:
            place = (self._commit_lsn, message.lsn)
            before, self._within = self._within, max(self._within, place)
            return place > before
        alone, self._alone = self._alone, max(self._alone, message.lsn)
        return message.lsn > alone
