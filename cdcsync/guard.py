"""Looks after the mapped tables while the daemon runs: what the stream does not say of them, the catalogs do.

* A table that was dropped, renamed, made anew or changed in its mapped columns is told to the pipeline, which acts as
  the mapping's ``on_drift`` says.
* A table whose replica identity would make its applications' UPDATE fail is taken out of our publication.
* A publication that was dropped or altered is put right, and its tables are compared again: rows written meanwhile are
  lost to the stream.
* A mapping that was paused for such a change, and is resumed, is taken up again: it has to fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psycopg
import structlog

from cdcsync.config import Config, MapConfig, PostgresConfig, order
from cdcsync.drift import Drift
from cdcsync.errors import SourceError, SourceUnavailableError
from cdcsync.mappers.needs import columns_read, tables_read
from cdcsync.pipeline import Pipeline
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.wal.blockers import telling_blockers
from cdcsync.wal.catalog import load_types, server_version
from cdcsync.wal.connect import Connection, connect_again
from cdcsync.wal.coverage import row_filters
from cdcsync.wal.owner import claim, refuse_anothers
from cdcsync.wal.publication import ensure_publication, take_out
from cdcsync.wal.sight import TableSight, fingerprint, look
from cdcsync.wal.slot import present_timeline

LOOK_SECONDS: Final = 2.0


@dataclass(slots=True)
class Finding:
    """A mapping and its table as it is, with what is wrong between them, and what was but is accepted."""

    route: Route
    sight: TableSight
    drift: Drift | None = None
    accepted: Drift | None = None

    @property
    def fits(self) -> bool:
        """Whether the mapping works on the table as it is, and does not wait for a person to say that it may."""
        works = self.drift is None or (self.drift.readable and self.route.config.on_drift == "warn")
        return works and not (self.route.drift_mark and self.route.paused)

    @property
    def readable(self) -> bool:
        """Whether the table's rows mean something to the mapping, so that they are to be published."""
        return self.drift is None or self.drift.readable

    @property
    def table(self) -> str:
        """``schema.name`` of the table under its present name."""
        return self.sight.relation.table if self.sight.relation is not None else self.route.config.table

    @property
    def published(self) -> MapConfig:
        """The mapping as far as the table has its columns, of the table under its present name."""
        relation = self.sight.relation
        applicable = self.route.config if relation is None else self.route.applicable(relation)
        return applicable.model_copy(update={"table": self.table})

    @property
    def why_compare(self) -> str | None:
        """Why the CRM has to be compared with the whole table, if it has."""
        seen, relation = self.route.seen, self.sight.relation
        if seen is None or relation is None:
            return None
        if relation.oid != seen.oid:
            return "the table was made anew"
        if self.route.passes_over:
            return "the table did not fit the mapping for a while"
        if seen.publication != self.sight.publication:
            return "the publication was altered, and rows written meanwhile are lost to the stream"
        if any(self.sight.columns.get(name, definition) != definition for name, definition in seen.columns.items()):
            return "a mapped column was defined anew, which may change all rows without a word in the stream"
        return "the mapping was changed" if seen.meaning != self.route.config.meaning else None


async def survey(connection: Connection, config: Config, state: State, types: dict[int, int]) -> list[Finding]:
    """Look at the mapped tables before the start, parents first.

    A mapping that is new, or was changed, has to fit as it is written; only where the table has changed since is it
    drift. ``types`` is filled with those of users. Raises SourceError for drift that is to fail, and psycopg's errors.
    """
    types.update(await load_types(connection))
    paused = state.pauses.standing()
    found = []
    for one in order(config.maps):
        route = Route(one, types)
        route.paused = paused.of(one.name, one.crm)
        route.seen, route.drift_mark = state.seen(one.name), state.drift_mark(one.name)
        found.append(await _find(connection, config.postgres.publication, route))
        if found[-1].drift is not None and one.on_drift == "fail":
            raise found[-1].drift.error(one.name)
    return found


async def _find(connection: Connection, publication: str, route: Route) -> Finding:
    seen = route.seen
    sight = await look(connection, publication, route.config.table, seen.oid if seen else 0)
    if seen is None or seen.meaning != route.config.meaning:
        return Finding(route, sight)
    drift = route.table_drift(sight)
    resumed = route.drift_mark is not None and route.paused is None
    if drift is not None and (resumed or route.config.on_drift == "warn"):
        return Finding(route, sight, route.table_drift(sight, anew=True), accepted=drift)
    return Finding(route, sight, drift)


async def publish(connection: Connection, settings: PostgresConfig, found: Sequence[Finding]) -> None:
    """See that the publication covers the tables that can be read, and no others of ours, and note what it is then.

    Raises as ``ensure_publication``. A standby has the publication from its primary.
    """
    writable = await present_timeline(connection) is not None
    try:
        await _publish(connection, settings, found, create=settings.create and writable)
    except SourceError as error:
        if writable:
            raise
        message = f"{error.message}; this server is a standby, which takes it from its primary"
        raise SourceError(message, hint=f"on the primary: {error.hint}") from error
    for one in found:
        if one.sight.relation is not None:
            one.sight = await look(connection, settings.publication, one.table, one.sight.relation.oid)


async def _publish(connection: Connection, settings: PostgresConfig, found: Sequence[Finding], *, create: bool) -> None:
    name, maps = settings.publication, [one.published for one in found if one.readable]
    if create:
        await refuse_anothers(connection, name, settings.slot)
    if maps:
        tables = row_filters(server_version(connection), tables_read(maps))
        made = await ensure_publication(connection, name, tables, columns_read(maps), create=create)
        if create and made.own_list:
            await claim(connection, name, settings.slot)
    elif create:
        await take_out(connection, name, [one.table for one in found if one.sight.publication])


class Guard:
    """The watch over one daemon's tables. ``gap`` may be called from the event loop at any time."""

    def __init__(
        self, settings: PostgresConfig, pipeline: Pipeline, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._log = log
        self._gap: str | None = None
        self._wake = asyncio.Event()
        self._looking = asyncio.Lock()

    def start(self, found: Iterable[Finding]) -> None:
        """Take the tables up as they were found, before the stream starts. Raises SourceError as ``on_drift`` says."""
        for one in found:
            if one.drift is not None:
                self._pipeline.drift(one.route, one.drift)
            if one.fits:
                self._adopt(one)

    def gap(self, reason: str) -> None:
        """Take note that the stream has lost rows of any table."""
        self._log.error("rows are lost to the stream", reason=reason)
        self._gap = reason
        self._wake.set()

    async def look(self) -> None:
        """Look now. Raises SourceUnavailableError, and SourceError for what is to end the daemon."""
        try:
            async with (
                await connect_again(self._settings) as connection,
                telling_blockers(self._settings, connection, self._log),
            ):
                await self._look(connection)
        except psycopg.Error as error:  # catalogs may change under a look, too
            raise SourceUnavailableError(" ".join(str(error).split())) from error

    async def run(self) -> None:
        """Look for ever. Raises SourceError for what is to end the daemon."""
        while True:
            try:
                async with await connect_again(self._settings) as connection:
                    await self._watch(connection)
            except (psycopg.Error, SourceUnavailableError) as error:
                self._log.debug("the tables cannot be looked at", reason=str(error))
            await self._pause()

    async def _watch(self, connection: Connection) -> None:
        """Look again whenever something in the catalogs has changed, or a person has resumed a mapping."""
        looked = ""
        while True:
            async with telling_blockers(self._settings, connection, self._log):
                now = await self._fingerprint(connection)
                if now != looked or self._gap or any(route.drift_mark and not route.paused for route in self._routes):
                    await self._look(connection)
                    looked = now
            await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._wake.wait()
        self._wake.clear()

    @property
    def _routes(self) -> list[Route]:
        return [route for lane in self._pipeline.lanes for route in lane.routes]

    async def _fingerprint(self, connection: Connection) -> str:
        names = {route.config.table for route in self._routes}
        oids = {route.seen.oid for route in self._routes if route.seen}
        return await fingerprint(connection, self._settings.publication, sorted(names), sorted(oids))

    async def _look(self, connection: Connection) -> None:
        async with self._looking:
            await self._look_through(connection)

    async def _look_through(self, connection: Connection) -> None:
        gap = self._gap
        found = [await _find(connection, self._settings.publication, route) for route in self._routes]
        for one in found:
            if one.drift is not None:
                self._pipeline.drift(one.route, one.drift)
        due = [one for one in found if one.fits and (gap or self._is_due(one))]
        wrong = None
        if due or any(one.drift is not None and one.sight.publication is not None for one in found):
            wrong = await self._mend(connection, found)
        for one in due:
            if wrong is None:
                self._adopt(one, gap)
            else:
                hint = f"{wrong.hint} Then cdcsync resume {one.route.name}; the table is compared again"
                self._pipeline.drift(one.route, Drift(wrong.message, hint, readable=False))
        if self._gap is gap:
            self._gap = None

    @staticmethod
    def _is_due(one: Finding) -> bool:
        return bool(one.route.drift_mark or one.accepted or one.why_compare)

    async def _mend(self, connection: Connection, found: Sequence[Finding]) -> SourceError | None:
        """Put the publication right; returns what is wrong with it where that is not ours to do."""
        try:
            await publish(connection, self._settings, found)
        except SourceError as error:
            return error
        return None

    def _adopt(self, one: Finding, gap: str | None = None) -> None:
        """Let a mapping work on its table as it is now, and compare the CRM with it where rows may be missing."""
        reason = gap or one.why_compare
        if one.sight.relation is None or one.sight.publication is None:
            return
        if one.accepted is not None:
            self._log.warning("the table has changed", map=one.route.name, reason=one.accepted.reason)
        self._pipeline.adopt(one.route, one.sight, reason)
