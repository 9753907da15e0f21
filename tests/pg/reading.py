"""A published database with a slot, and a consumer that reads it through ``wal.source``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from cdcsync.config import PostgresConfig
from cdcsync.model import Begin, Change, Commit, Progress, Text
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import Connection
from cdcsync.wal.publication import ensure_publication
from cdcsync.wal.session import Event
from cdcsync.wal.slot import SlotIdentity, create_slot, show_slot
from cdcsync.wal.source import Source
from cdcsync.wal.tuples import split_tuple
from tests.polling import eventually_async


@dataclass
class Setup:
    """A database with a published table ``t`` and a slot."""

    dsn: str
    connection: Connection
    identity: SlotIdentity

    @property
    def slot(self) -> str:
        """The slot's name."""
        return self.identity.slot

    @property
    def start(self) -> int:
        """Where the slot starts."""
        return self.identity.consistent_point

    async def execute(self, statements: str) -> None:
        """Run SQL."""
        await self.connection.execute(statements.encode())

    async def confirmed(self) -> int:
        """Return what the server holds as confirmed."""
        return (await show_slot(self.connection, self.slot)).confirmed_flush_lsn or 0

    async def tip(self) -> int:
        """Return where the server's WAL ends."""
        ((lsn,),) = await rows(self.connection, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
        return int(lsn)

    async def terminate(self) -> None:
        """End the walsender."""
        await rows(
            self.connection,
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
            [self.slot],
        )


TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text, w text)"


async def set_up(dsn: str, connection: Connection, tables: str = TABLE) -> Setup:
    """Make the tables, publish them all, and make a slot."""
    await connection.execute(tables.encode())
    found = await rows(
        connection, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    await ensure_publication(connection, "cdcsync", {f"public.{name}": None for (name,) in found}, create=True)
    return Setup(dsn, connection, await create_slot(dsn, f"s_{uuid.uuid4().hex[:12]}"))


@dataclass
class Reader:
    """A source with a consumer that keeps what it is given, and confirms it (or not)."""

    dsn: str
    slot: str
    confirms: bool = True
    options: Mapping[str, object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    connections: int = 0
    gaps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = PostgresConfig.model_validate({"dsn": self.dsn, "slot": self.slot, **self.options})
        log = structlog.get_logger()
        self.source = Source(settings, sink=self.take, log=log, on_connect=self.connected, on_gap=self.gaps.append)

    def take(self, events: list[Event]) -> None:
        """Keep events, and confirm what is complete."""
        self.events += events
        for event in events:
            if self.confirms and isinstance(event, Commit):
                self.source.confirm(event.end_lsn)
            if self.confirms and isinstance(event, Progress):
                self.source.confirm(event.lsn)

    def connected(self) -> None:
        """Count connections."""
        self.connections += 1

    @property
    def changes(self) -> list[Change]:
        """The row changes so far."""
        return [event for event in self.events if isinstance(event, Change)]

    @property
    def commits(self) -> list[Commit]:
        """The commits so far, without those of transactions with nothing in them, which 13 and 14 send too."""
        return [event for _, event in self._ends()]

    @property
    def keys(self) -> list[Text]:
        """The first columns of the new rows so far."""
        return [split_tuple(change.new)[0] for change in self.changes if change.new is not None]

    def transaction(self, number: int) -> list[Change]:
        """Return the changes of the transaction with the given commit (0 is the first), as it came last."""
        commit, _ = self._ends()[number]
        begin = max(place for place, event in enumerate(self.events[:commit]) if isinstance(event, Begin))
        return [event for event in self.events[begin:commit] if isinstance(event, Change)]

    def _ends(self) -> list[tuple[int, Commit]]:
        return [
            (place, event)
            for place, event in enumerate(self.events)
            if isinstance(event, Commit) and not isinstance(self.events[place - 1], Begin)
        ]

    async def commits_reach(self, count: int) -> None:
        """Wait until so many transactions came."""
        await eventually_async(lambda: len(self.commits) >= count, what=f"{count} commits; there are {self.events}")


@asynccontextmanager
async def reading(
    db: Setup,
    *,
    start: int | None = None,
    confirms: bool = True,
    dsn: str | None = None,
    paused: bool = False,
    **options: object,
) -> AsyncIterator[Reader]:
    """Run a source on the database's slot; it ends in good order. ``options`` are further ones of ``[postgres]``."""
    reader = Reader(dsn or db.dsn, db.slot, confirms, options)
    if paused:
        reader.source.pause()
    task = asyncio.ensure_future(reader.source.run(db.start if start is None else start, db.identity))
    try:
        await eventually_async(lambda: reader.source.connected or task.done(), what="the source does not connect")
        yield reader
    finally:
        await reader.source.stop()
        await asyncio.wait_for(task, 10)
