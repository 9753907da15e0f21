"""Copies of tables: first ones, those that make up for changes that went unseen, and those asked for by hand.

All are one thing: a ``CopyState`` in the state file, read in chunks (``wal.snapshot``) and fed to a lane, where the
ledger turns what the CRM holds already into nothing. It goes on at its cursor after a crash. One copy at a time runs in
each lane, parents first; a paused mapping's waits, and lets the others go before.

A copy that *sweeps* deletes at its end the records that nobody met. The keys that it met, and those that the stream
touched meanwhile, are written with the same tick as its cursor (table ``met``), so neither is ever ahead of the other:
memory holds only those since the last tick, and after a crash the copy knows everything up to its cursor, while the
stream brings again what came after it. That is why a copy under way has to be known before the stream starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller
from typing import Protocol, TypeAlias, TypeVar

import structlog
from psycopg import sql

from cdcsync.clock import Clock
from cdcsync.coalesce import Event, shown
from cdcsync.config import MapConfig
from cdcsync.entries import CopyState, PausedBy, Tick
from cdcsync.errors import ConfigError, SourceError, SourceUnavailableError
from cdcsync.lane import Lane
from cdcsync.model import Change, ChangeKind, Position, Relation
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.wal.connect import Connection
from cdcsync.wal.published import load_publication
from cdcsync.wal.snapshot import Backfill, Connect, Cursor

T = TypeVar("T")

Make: TypeAlias = Callable[[Route, CopyState], Awaitable[Backfill]]
"""Looks a mapping's table up and makes the backfill for a copy. Raises SourceUnavailableError or SourceError."""

COPY_ROOM = 20_000
"""Rows that a lane may have pending before a copy waits."""
SWEEP_PAGE = 5_000
LOOK_SECONDS = 0.2
RETRY_SECONDS = 2.0


class Surroundings(Protocol):
    """What copies need of the pipeline."""

    clock: Clock

    @property
    def position(self) -> Position:
        """The stream's position."""

    @property
    def full(self) -> bool:
        """Whether pending rows fill the budget."""

    @property
    def received_lsn(self) -> int:
        """Everything that was committed before it has been fed."""

    async def reached(self, lsn: int) -> None:
        """Wait until everything that was committed before ``lsn`` has been fed."""

    async def on_file(self, work: Callable[[State], T]) -> T:
        """Run ``work`` on the state file, in the file's thread."""

    def pause(self, route: Route, reason: str, by: PausedBy = "daemon") -> None:
        """Pause a mapping until a person resumes it."""

    async def tick(self) -> None:
        """Write everything down now."""

    async def after_tick(self, ask: Callable[[State], T]) -> T:
        """Ask the state file right after a tick, before anything else is written."""


class Paused(Exception):  # noqa: N818 — not an error: the way out of a copy whose mapping was paused
    """The copy lets others go before."""


@dataclass(slots=True, eq=False)
class Copy:
    """A copy that is to be done, or is under way; ``met`` are the keys met since the last tick, if it sweeps."""

    lane: Lane
    route: Route
    entry: CopyState
    backfill: Backfill | None = None
    met: set[str] = field(default_factory=set)
    dirty: bool = False
    asked: bool = False
    """Whether a person was asked if many records may be deleted."""
    began: tuple[float, int] | None = None
    """When this process began to read (monotonic), and the rows that had been read before."""

    def key_of(self, row: bytes) -> str | None:
        """Return the external key of a row that was read in the table's present shape."""
        return self.route.mapper(self.shape).key_of(row)

    @property
    def shape(self) -> Relation:
        """The table as the copy reads it now."""
        assert self.backfill is not None  # noqa: S101 — for the type checker; nothing is read before it is made
        return self.backfill.relation

    @property
    def told(self) -> bool:
        """Whether a person knows what the copy deletes at its end, and lets it."""
        return self.asked or self.entry.asker == "person"

    def meet(self, keys: Iterable[str | None]) -> None:
        """Note that rows with these keys exist, or that the stream has to do with them."""
        if self.entry.sweep:
            self.met.update(key for key in keys if key is not None)

    def seconds_left(self, now: float) -> float | None:
        """Say how long the rest will take at the pace so far; None where that is not known."""
        done = self.entry.rows - self.began[1] if self.began else 0
        if self.began is None or done <= 0 or not self.entry.estimate:
            return None
        return max(0, self.entry.estimate - self.entry.rows) * (now - self.began[0]) / done


class Copies:
    """The copies of all lanes: for each mapping at most one; further requests wait in the state file."""

    def __init__(self, around: Surroundings, log: structlog.typing.FilteringBoundLogger) -> None:
        self._around = around
        self._log = log
        self._by_mapping: dict[str, Copy] = {}
        self._finished: set[int] = set()
        """What the state file may still have shown as open to a look that was under way."""

    def of(self, mapping: str) -> Copy | None:
        """Return a mapping's copy that is to be done or under way."""
        return self._by_mapping.get(mapping)

    @property
    def pending(self) -> bool:
        """Whether there is a copy that nothing but time keeps from its end."""
        return any(not copy.route.paused for copy in self._by_mapping.values())

    def take_up(self, lanes: Sequence[Lane], entries: Iterable[CopyState]) -> None:
        """Take up what the state file asks for, where a mapping has nothing to do yet."""
        routes = {route.name: (lane, route) for lane in lanes for route in lane.routes}
        for entry in entries:
            found = routes.get(entry.mapping)
            if found is None or entry.mapping in self._by_mapping or entry.id in self._finished:
                continue
            lane, route = found
            if route.config.backfill or entry.asker != "config":
                self._by_mapping[entry.mapping] = Copy(lane, route, entry)

    # --- what the stream brings

    def note(
        self, route: Route, shape: Relation | None, keys: Sequence[str | None], xid: int, *, partial: bool = False
    ) -> None:
        """Note a streamed change of a mapping by its keys, before and after, and the table's ``shape`` if it is new."""
        copy = self._by_mapping.get(route.name)
        if copy is None or not copy.entry.started:
            return
        copy.meet(keys)
        if copy.backfill is not None:
            if shape is not None and shape.oid == copy.shape.oid:  # not a partition's, with its own order of columns
                copy.backfill.relation = shape
            for key in set(keys) - {None}:
                copy.backfill.note(str(key), xid, partial=partial)

    def note_truncate(self, route: Route, xid: int) -> None:
        """Note a streamed TRUNCATE of a mapping's table."""
        copy = self._by_mapping.get(route.name)
        if copy is not None and copy.backfill is not None:
            copy.backfill.note_truncate(xid)

    # --- what a tick takes

    @property
    def dirty(self) -> bool:
        """Whether a tick has anything to write."""
        return any(copy.dirty or copy.met for copy in self._by_mapping.values())

    def collect(self, tick: Tick) -> list[tuple[Route, int]]:
        """Add everything since the last tick; what is returned is for ``written``."""
        copied = []
        for copy in self._by_mapping.values():
            if copy.dirty:
                tick.copies.append(copy.entry)
                copied.append((copy.route, copy.route.emitted))
            tick.met.extend((copy.entry.id, key) for key in copy.met)
            copy.dirty, copy.met = False, set()
        return copied

    @staticmethod
    def written(copied: Iterable[tuple[Route, int]]) -> None:
        """Note that a tick is on disk."""
        for route, chunks in copied:
            route.written = chunks

    # --- running

    async def run(self, lane: Lane, connect: Connect, make: Make, look: Callable[[], Awaitable[None]]) -> None:
        """Run a lane's copies for ever, parents first, one at a time.

        ``look`` has the tables looked at, and mappings paused whose table has changed. Raises SourceError or
        ConfigError where the first copy of a mapping is not possible. One that makes up for what was missed waits, its
        mapping paused; one that was asked for is given up.
        """
        while True:
            copy = self._next(lane)
            if copy is None:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            try:
                await self._run(copy, connect, make)
            except Paused:
                continue
            except SourceUnavailableError as error:
                self._log.warning("copy interrupted", map=copy.route.name, reason=error.message)
                await asyncio.sleep(RETRY_SECONDS)
            except (SourceError, ConfigError) as error:
                if await self._has_changed(copy, make, look):
                    continue
                if copy.entry.asker == "config" and not copy.entry.sweep:
                    raise
                await self._fail(copy, error)

    async def _fail(self, copy: Copy, error: SourceError | ConfigError) -> None:
        name = copy.route.name
        if copy.entry.asker != "person":
            reason = f"it cannot be compared with the CRM, which is due: {error.message}; {error.hint}"
            copy.backfill = None
            self._around.pause(copy.route, f"{reason}; then cdcsync resume {name}")
            self._log.error("comparison not possible", map=name, error=error.message, hint=error.hint)
            return
        self._log.error("copy given up", map=name, error=error.message, hint=error.hint)
        await self._finish(copy, error.message)

    @staticmethod
    async def _has_changed(copy: Copy, make: Make, look: Callable[[], Awaitable[None]]) -> bool:
        """Whether the table has changed under the copy: its mapping is paused by now, or it is read in a new shape."""
        try:
            await look()
            if copy.route.paused or copy.backfill is None:
                return copy.route.paused is not None
            before, copy.backfill = copy.shape, await make(copy.route, copy.entry)
        except SourceUnavailableError:
            return True
        return copy.shape != before

    def _next(self, lane: Lane) -> Copy | None:
        for route in lane.routes:
            copy = self._by_mapping.get(route.name)
            if copy is not None and not route.paused:
                return copy
        return None

    async def _run(self, copy: Copy, connect: Connect, make: Make) -> None:
        if not copy.entry.started:
            number = copy.entry.id
            copy.entry = await self._around.on_file(lambda state: state.begin_copy(number))
            self._log.info("copy begins", map=copy.route.name, reason=copy.entry.reason)
        if copy.backfill is None:
            copy.backfill = await make(copy.route, copy.entry)
        entry = self._in_order(copy, copy.backfill.key_columns)
        copy.began = (self._around.clock.monotonic(), entry.rows)
        await copy.backfill.run(
            connect,
            received=lambda: self._around.received_lsn,
            reached=self._around.reached,
            room=partial(self._room, copy),
            emit=partial(self._emit, copy),
            key_of=copy.key_of,
            cursor=Cursor(entry.cursor, entry.rows, entry.estimate, entry.read),
        )
        if entry.sweep and not await self._is_superseded(copy):
            await self._sweep(copy)
        await self._finish(copy)

    async def _is_superseded(self, copy: Copy) -> bool:
        """Whether another copy of all rows is to come: what this one met has holes then, and that one will sweep."""
        return await self._around.after_tick(methodcaller("superseded", copy.entry))

    def _in_order(self, copy: Copy, columns: tuple[str, ...]) -> CopyState:
        """Let a copy read in the order of ``columns``: a cursor of another order says nothing in it."""
        if not copy.entry.read:
            if copy.entry.order not in {(), columns}:
                self._log.warning("copy begins anew: the table has another key", map=copy.route.name)
                copy.entry = replace(copy.entry, cursor=None, rows=0)
            copy.entry = replace(copy.entry, order=columns)
        return copy.entry

    async def _room(self, copy: Copy) -> None:
        """Wait until few rows can go; those that are held may wait for the very rows that are still to be copied."""
        while True:
            if copy.route.paused:
                raise Paused
            counted = [route.backlog for route in copy.lane.routes if not route.paused]
            if not self._around.full and sum(backlog.moving for backlog in counted) <= COPY_ROOM:
                return
            await asyncio.sleep(0.05)  # sinks with every answer; no event says more

    def _emit(self, copy: Copy, rows: list[bytes], cursor: Cursor) -> None:
        now = self._around.clock.time()
        for row in rows:
            key = copy.key_of(row)
            if key is not None:
                copy.meet((key,))
                change = Change(ChangeKind.COPY, copy.shape, row)
                copy.lane.feed(copy.route, Event(change, key, None, self._around.position, now, copied=True))
        copy.entry = replace(
            copy.entry, cursor=cursor.after, rows=cursor.rows, estimate=cursor.estimate, read=cursor.done
        )
        copy.route.emitted += 1
        copy.dirty = True

    # --- the end

    async def _sweep(self, copy: Copy) -> None:
        """Delete the records of rows that went away while nobody listened.

        They are known to the ledger, or wait or are parked since before; neither the copy nor the stream met them.
        """
        if copy.entry.keys:
            number = copy.entry.id
            position = await self._position(copy)
            met = await self._around.after_tick(lambda state: state.met(number))
            deleted = self._delete(copy, [key for key in copy.entry.keys if key not in met], position)
        else:
            deleted = await self._sweep_all(copy)
        await self._around.tick()
        self._log.info("sweep done", map=copy.route.name, deleted=deleted)

    async def _ask_first(self, copy: Copy) -> None:
        """Pause a mapping whose sweep would delete many records; to resume it is to say that they may go."""
        unmet, known = await self._around.after_tick(methodcaller("count_unmet", copy.entry))
        if copy.told or await copy.lane.deletes.lets(copy.route, unmet):
            return
        copy.asked = True
        self._around.pause(
            copy.route,
            f"{unmet} of {known} records have no row in {copy.shape.table} any more ({copy.entry.reason});"
            f" cdcsync resume {copy.route.name} deletes them",
            by="sweep",
        )
        raise Paused

    async def _position(self, copy: Copy) -> Position:
        """Return the position to feed a sweep's next deletes with; where a person was told of them, they may go."""
        position = self._around.position
        if copy.told:
            await copy.lane.deletes.let_go(copy.route, position)
        return position

    async def _sweep_all(self, copy: Copy) -> int:
        await self._ask_first(copy)
        deleted, start = 0, ""
        while True:
            await self._room(copy)
            position = await self._position(copy)
            page = await self._around.after_tick(methodcaller("unmet", copy.entry, start, SWEEP_PAGE))
            deleted += self._delete(copy, [key for key in page if _gone(copy.route, key)], position)
            if len(page) < SWEEP_PAGE:
                return deleted
            start = page[-1] + "\0"

    def _delete(self, copy: Copy, keys: Iterable[str], position: Position) -> int:
        """Feed deletes of keys that were not met before the last tick, nor since."""
        gone = [key for key in keys if key not in copy.met]
        now = self._around.clock.time()
        for key in gone:
            change = Change(ChangeKind.DELETE, copy.shape, None)
            copy.lane.feed(copy.route, Event(change, key, None, position, now, copied=True))
        return len(gone)

    async def _finish(self, copy: Copy, error: str | None = None) -> None:
        await self._around.tick()
        del self._by_mapping[copy.route.name]
        self._finished.add(copy.entry.id)
        await self._around.on_file(lambda state: state.finish_copy(copy.entry, self._around.clock.time(), error))
        if error is None:
            self._log.info("copy done", map=copy.route.name, rows=copy.entry.rows)
            copy.route.whole = copy.route.whole or copy.entry.whole
            if copy.entry.makes_up:
                copy.route.copied_to = self._around.position
            copy.route.read = copy.entry.rows
            copy.lane.look_again(copy.route)


def _gone(route: Route, key: str) -> bool:
    """Whether a record that nobody met is to be deleted under this key, and not under one that its row moved to."""
    if shown(key) != key:  # a delete already
        return key in route.backlog.parked
    return route.backlog.owes(key) or not route.backlog.knows(key)


async def copy_condition(
    connection: Connection, publication: str, mapping: MapConfig, entry: CopyState | None = None
) -> str | None:
    """Return which rows of a mapping's table a copy reads, in SQL; None for all.

    Those that the stream would carry, by the mapping's ``where`` and the publication's row filter, and of these what
    the copy was asked for.
    """
    published = await load_publication(connection, publication)
    conditions = [mapping.where, published.tables.get(mapping.table) if published is not None else None]
    if entry is not None:
        conditions.append(entry.condition)
    if entry is not None and entry.keys:
        keys = sql.SQL(", ").join(map(sql.Literal, entry.keys))
        chosen = sql.SQL("{} IN ({})").format(sql.Identifier(mapping.key_column), keys)
        conditions.append(chosen.as_string(connection))
    given = [condition for condition in conditions if condition]
    return " AND ".join(f"({condition}\n)" for condition in given) or None
