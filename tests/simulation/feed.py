"""How the daemon reads the simulated database: the stream, and pages of tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cdcsync.model import Change, Relation, Truncate
from cdcsync.wal.decode import split_tuple
from cdcsync.wal.snapshot import Cursor
from tests.simulation.database import Database

PAGE = 2
"""Rows that a copy reads at a time."""


def shown(change: Change | Truncate) -> str:
    """Print a change for a person."""
    if isinstance(change, Truncate):
        return f"truncate {' '.join(relation.name for relation in change.relations)}"
    images = [None if image is None else split_tuple(image) for image in (change.old, change.new)]
    return f"{change.relation.name} {change.kind.value} {images[0]} -> {images[1]};"


@dataclass(slots=True)
class Feed:
    """``pipeline.Reader``; ``confirmed`` outlives it as the slot does."""

    confirmed: int
    timeline: int | None = 1
    held: bool = False

    def confirm(self, lsn: int) -> None:
        """Move the slot."""
        self.confirmed = max(self.confirmed, lsn)

    def pause(self) -> None:
        """Stop delivering."""
        self.held = True

    def resume(self) -> None:
        """Deliver again."""
        self.held = False

    def request_progress(self) -> None:
        """Do nothing: how far the server is, is told anyway."""


@dataclass(slots=True)
class Pages:
    """``wal.snapshot.Backfill`` on the simulated database: reads pages when the stream is as far as the table."""

    database: Database
    relation: Relation
    key_columns: tuple[str, ...] = ("id",)
    waiting: str | None = None

    def note(self, key: str, xid: int, *, partial: bool = False) -> None:
        """Need nothing: what is read is as of the stream's position."""

    def note_truncate(self, xid: int) -> None:
        """Need nothing."""

    async def run(
        self,
        connect: object,
        *,
        received: Callable[[], int],
        reached: Callable[[int], Awaitable[None]],
        room: Callable[[], Awaitable[None]],
        emit: Callable[[list[bytes], Cursor], None],
        key_of: object,
        cursor: Cursor,
    ) -> None:
        """Copy the table."""
        del connect, key_of
        while not cursor.done:
            await room()
            await reached(self.database.lsn)
            if received() < self.database.lsn:
                continue
            after = cursor.after[0] if cursor.after else ""
            page = self.database.images(self.relation.name, after, PAGE)
            last = page[-1][0] if page else after
            cursor = Cursor((last,), cursor.rows + len(page), 0, len(page) < PAGE)
            emit([image for _, image in page], cursor)
            await asyncio.sleep(0.05)
