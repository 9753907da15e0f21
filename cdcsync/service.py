"""The daemon: builds source, lanes and ticker from the config, runs them in one task group, and ends cleanly.

Crash-only: what is not translated into one of our errors ends the process, and nothing is lost. SIGTERM and SIGINT stop
reading, let what is in flight settle, write a last tick, and exit with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import structlog

from cdcsync.alerting import Alerting
from cdcsync.apply.base import Destination
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.metering import Meters
from cdcsync.apply.registry import create
from cdcsync.claim import Claim
from cdcsync.config import Config, CrmConfig, MapConfig, PostgresConfig
from cdcsync.copies import copy_condition
from cdcsync.entries import CopyState, Identity
from cdcsync.errors import REBUILD, CdcsyncError, SourceError, SourceUnavailableError, StateError
from cdcsync.foreign_keys import follow, in_order
from cdcsync.guard import Finding, Guard, publish, survey
from cdcsync.lane import THREAD_PREFIX, Lane
from cdcsync.model import Relation, format_lsn
from cdcsync.notify import Notifier
from cdcsync.page import serve as serve_page
from cdcsync.pipeline import Pipeline
from cdcsync.report import SlotWatch, live_snapshot
from cdcsync.route import Route
from cdcsync.standby import stand_by
from cdcsync.state import State
from cdcsync.wal import catalog, slot
from cdcsync.wal.blockers import telling_blockers
from cdcsync.wal.connect import Connection, connect, connect_again
from cdcsync.wal.row_filter import RowFilter
from cdcsync.wal.snapshot import Backfill
from cdcsync.wal.source import Source

SETTLE_SECONDS = 20.0
"""How long a stop waits for what is in flight; it is taken up at the next start anyway."""
ONCE_POLL = 0.05
REPORT_SECONDS = 1.0


class _Ended(Exception):  # noqa: N818 — not an error: the way out of the task group
    """The daemon has stopped as asked."""


class Service:
    """One run of the daemon."""

    def __init__(
        self,
        config: Config,
        log: structlog.typing.FilteringBoundLogger,
        *,
        once: bool = False,
        standby: bool = False,
    ) -> None:
        self.config = config
        self.log = log
        self.once = once
        self.standby = standby
        self.started = time.time()
        self.stopping = asyncio.Event()
        self.notifier = Notifier()

    async def run(self) -> None:
        """Run until stopped (or, with ``once``, until the CRMs are as the database was at the start).

        With ``standby``, wait first until no other daemon has the state.
        """
        beating = asyncio.create_task(self.notifier.keep_alive())
        try:
            await self.run_with_state()
        finally:
            beating.cancel()

    async def run_with_state(self) -> None:
        """Take the state, prepare, and serve."""
        place = self.config.state
        claim = await self._stand_by() if self.standby else None
        if self.stopping.is_set():
            if claim is not None:
                claim.release()
            return
        state = await asyncio.to_thread(State.open, place.path, place.mirror, claim)
        try:
            types: dict[int, int] = {}
            identity, found = await prepare(self.config, state, self.log, types)
            pipeline = Pipeline(state, self.config.batch.max_memory, self.config.state.max_journal, self.log)
            try:
                await self.serve(pipeline, identity, found, types)
            finally:
                pipeline.close()
        finally:
            state.close()

    async def _stand_by(self) -> Claim | None:
        place = self.config.state
        with self._signals(asyncio.get_running_loop()):
            return await stand_by(place.path, place.mirror, self.stopping, self.notifier, self.log)

    @staticmethod
    def hanging() -> bool:
        """Whether requests to a CRM are still under way after ``run``: cut off, as a kill would, and taken up later."""
        return any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate())

    async def serve(
        self,
        pipeline: Pipeline,
        identity: slot.SlotIdentity,
        found: Sequence[Finding],
        types: dict[int, int],
        lent: Connection | None = None,
    ) -> None:
        """Run what was prepared until it is to stop; ``lent`` is a connection that has a temporary slot."""
        config, loop = self.config, asyncio.get_running_loop()
        guard = Guard(config.postgres, pipeline, self.log)
        source = Source(
            config.postgres,
            sink=pipeline.receive,
            log=self.log,
            on_connect=pipeline.connected_anew,
            on_gap=guard.gap,
            spill_directory=config.state.path.parent,
            lent=lent,
        )
        source.types = types
        pipeline.reader = source
        pipeline.partitions = source.partitions
        ordered = in_order([one.route for one in found])
        mine = {name: [route for route in ordered if route.config.crm == name] for name in config.crm}
        meters = Meters(loop, {name: crm for name, crm in config.crm.items() if mine[name]})
        for name, routes in mine.items():
            if routes:
                pipeline.add(self._lane(pipeline, name, meters, routes))
        guard.start(found)
        pipeline.plan_copies()
        watch = SlotWatch(config.postgres)
        with self._signals(loop), contextlib.suppress(_Ended):
            async with contextlib.AsyncExitStack() as stack:
                if config.status.listen is not None:
                    url = await stack.enter_async_context(
                        serve_page(
                            config.status.listen, lambda: live_snapshot(pipeline, source, config, watch, self.started)
                        )
                    )
                    self.log.info("status page", url=url)
                alerting = Alerting(config.alert, pipeline, self.log)
                try:
                    await self._tasks(pipeline, source, identity, watch, guard, alerting)
                except CdcsyncError as error:
                    await alerting.ended(error)
                    raise

    async def _tasks(  # noqa: PLR0917 — the parts, each of which has its task
        self,
        pipeline: Pipeline,
        source: Source,
        identity: slot.SlotIdentity,
        watch: SlotWatch,
        guard: Guard,
        alerting: Alerting,
    ) -> None:
        target = await watch.current_lsn() if self.once else 0
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(source.run(pipeline.durable_lsn, identity, pipeline.touched))
                ticking = tasks.create_task(pipeline.run_ticks())
                lanes = [tasks.create_task(lane.run()) for lane in pipeline.lanes]
                copies = pipeline.copies
                side = [
                    tasks.create_task(copies.run(lane, self._connect, self._backfill, guard.look))
                    for lane in pipeline.lanes
                ]
                side.append(tasks.create_task(watch.run()))
                side.append(tasks.create_task(guard.run()))
                side.append(tasks.create_task(self._report(pipeline, source, watch, alerting)))
                side.append(tasks.create_task(alerting.run()))
                if self.once:
                    side.append(tasks.create_task(self._until_drained(pipeline, target)))
                self.notifier.ready()
                await self.stopping.wait()
                self.notifier.stopping()
                for task in side:
                    task.cancel()
                await self._settle(pipeline, source, lanes)
                await pipeline.tick()
                await source.stop()
                for task in (reading, ticking, *lanes):
                    task.cancel()
                raise _Ended
        except BaseExceptionGroup as group:
            raise _first_error(group) from None
        finally:
            for lane in pipeline.lanes:  # a thread that waits for its turn would hold the process up for ever
                lane.limiter.close()

    async def _settle(self, pipeline: Pipeline, source: Source, lanes: Sequence[asyncio.Task[None]]) -> None:
        source.pause()
        for lane in pipeline.lanes:
            lane.stop()
        self.log.info(
            "stopping", in_flight=sum(len(r.backlog.in_flight) for lane in pipeline.lanes for r in lane.routes)
        )
        await asyncio.wait(lanes, timeout=SETTLE_SECONDS)

    async def _until_drained(self, pipeline: Pipeline, target: int) -> None:
        """With ``once``: stop when all up to ``target`` has been fed, and only paused mappings have rows left."""
        await pipeline.reached(target)
        routes = [route for lane in pipeline.lanes for route in lane.routes]
        while pipeline.copying or pipeline.retrying or any(len(r.backlog) and not r.paused for r in routes):  # noqa: ASYNC110 — no one event
            await asyncio.sleep(ONCE_POLL)
        self.stopping.set()

    async def _report(self, pipeline: Pipeline, source: Source, watch: SlotWatch, alerting: Alerting) -> None:
        """Keep systemd informed, and those who are to be told what is wrong."""
        while True:
            snapshot = live_snapshot(pipeline, source, self.config, watch, self.started)
            self.notifier.status(snapshot.sentence)
            await alerting.look(snapshot)
            await asyncio.sleep(REPORT_SECONDS)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await connect_again(self.config.postgres)

    async def _relation(self, connection: Connection, table: str) -> Relation:
        schema, _, name = table.partition(".")
        return await catalog.load_relation(connection, schema, name, self.config.postgres.publication)

    async def _backfill(self, route: Route, entry: CopyState) -> Backfill:
        """Look a mapping's table up as it is now, for a copy that begins or goes on."""
        try:
            async with await self._connect() as connection:
                relation = await self._relation(connection, route.table)
                mapping = route.config.model_copy(update={"table": route.table})
                where = await copy_condition(connection, self.config.postgres.publication, mapping, entry)
                key = await catalog.copy_key(connection, relation)
        except psycopg.Error as error:  # catalogs may change under it, too
            raise SourceUnavailableError(" ".join(str(error).split())) from error
        return Backfill(route.name, relation, key, where, log=self.log)

    def destination(self, name: str, crm: CrmConfig, limiter: Limiter) -> Destination:
        """Make the adapter of a CRM."""
        return create(name, crm, limiter)

    def _lane(self, pipeline: Pipeline, name: str, meters: Meters, routes: list[Route]) -> Lane:
        crm = self.config.crm[name]
        limiter = meters.limiter(name, crm, pipeline.obstacle)
        return Lane(
            name,
            self.destination(name, crm, limiter),
            limiter,
            routes,
            pipeline,
            max_wait=self.config.batch.max_wait,
            patient=not self.once,
            log=self.log,
        )

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        faulthandler.register(signal.SIGUSR1)  # where does it hang? kill -USR1 prints every thread's stack
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


async def prepare(
    config: Config, state: State, log: structlog.typing.FilteringBoundLogger, types: dict[int, int]
) -> tuple[slot.SlotIdentity, list[Finding]]:
    """Make publication and slot if they are to be made, once it is clear that the state file belongs to this source.

    Returns what the slot is, and each mapping's table as it was found; ``types`` is filled with users' types. Raises
    ConfigError for a mapping that does not fit its table, SourceError, SourceUnavailableError or StateError.
    """
    postgres = config.postgres
    async with (
        await connect(postgres.dsn) as connection,
        await connect(postgres.dsn, replication=True) as replication,
        telling_blockers(postgres, connection, log),
    ):
        await slot.check_wal_level(connection)
        system = await slot.identify_system(replication)
        info = await slot.show_slot(connection, postgres.slot)
        bound = _bound(config, state, system)
        if bound is None:
            _refuse_first_start(config, state, info)
        elif state.backed_up() is not None:
            _go_on_from_backup(config, state, info, system)
        found = await fit(connection, config, state, types)
    return bound or await _first_start(config, state, info, system, log), found


async def fit(connection: Connection, config: Config, state: State, types: dict[int, int]) -> list[Finding]:
    """See that publication, tables and mappings fit each other. Returns and raises as ``prepare``."""
    postgres = config.postgres
    found = await survey(connection, config, state, types)
    await publish(connection, postgres, found)
    for one in found:
        _filter_here(connection, postgres, one.route)
        if one.drift is None and one.sight.relation is not None:
            place = one.sight.relation.namespace, one.sight.relation.name, postgres.publication
            for shape in (one.sight.relation, *await catalog.load_leaves(connection, *place)):
                one.route.check(shape)
            if one.route.row_filter is not None:
                await one.route.row_filter.check(one.sight.relation)
            await _check_key(connection, one.route.config, one.sight.relation)
    oids = {one.route.name: one.sight.relation.oid for one in found if one.sight.relation is not None}
    await follow(connection, [one.route for one in found], oids)
    return found


async def _check_key(connection: Connection, one: MapConfig, relation: Relation) -> None:
    """Refuse a key that two rows may share for a moment: the stream does not say which of them moves on."""
    if await catalog.uniqueness(connection, relation, one.key_column) == "deferred":
        raise SourceError(
            f"map {one.name}: the key {one.key_column} of {relation.table} is unique only at the end of a transaction"
            " (DEFERRABLE), so that changes of keys cannot be followed",
            hint="make its constraint NOT DEFERRABLE, add a unique index (CREATE UNIQUE INDEX CONCURRENTLY), or map"
            " another key",
        )


def _filter_here(connection: Connection, postgres: PostgresConfig, route: Route) -> None:
    """Let a mapping's ``where`` be applied here on a server without row filters."""
    condition = route.config.where
    if condition is not None and catalog.server_version(connection) < catalog.VERSION_15:
        route.row_filter = RowFilter(postgres, route.config.table, condition)


def _bound(config: Config, state: State, system: slot.System) -> slot.SlotIdentity | None:
    """Return the slot that the state file is bound to; None before the first start. Raises StateError for another."""
    bound, name = state.identity(), config.postgres.slot
    if bound is None:
        return None
    if (system.system_id, system.database, name) != bound[:3]:
        raise StateError(
            f"the state file {state.path} belongs to slot {bound.slot!r} in database {bound.database!r} of cluster "
            f"{bound.system_id}; this is slot {name!r} in {system.database!r} of {system.system_id}",
            hint="Point dsn and slot back, or give this source its own [state] path. If the database was moved here:"
            f" {REBUILD}.",
        )
    timeline = state.timeline() or system.timeline
    return slot.SlotIdentity(system.system_id, timeline, system.database, name, bound.consistent_point)


def _go_on_from_backup(config: Config, state: State, info: slot.SlotInfo, system: slot.System) -> None:
    """Take up a restored backup, if nothing has been confirmed to the slot that it lacks. Raises StateError."""
    durable, confirmed = state.checkpoint().durable_lsn, info.confirmed_flush_lsn or 0
    if confirmed > durable:
        raise StateError(
            f"the state file {state.path} is a backup of {state.backed_up()}: it ends at {format_lsn(durable)}, and"
            f" slot {info.name!r} has gone on to {format_lsn(confirmed)}; the changes between are in neither",
            hint=REBUILD,
        )
    state.go_on_from_backup(list(config.crm), system.lsn)


def _refuse_first_start(config: Config, state: State, info: slot.SlotInfo) -> None:
    """Refuse a slot that is another one's, or that is not to be made. Raises StateError."""
    postgres = config.postgres
    if info.exists and state.intended_slot() != postgres.slot:
        raise StateError(
            f"slot {postgres.slot!r} exists, but the state file {state.path} is new and knows no position in it",
            hint=f"If the state file was lost: {REBUILD}. If another program uses the slot, choose another name in"
            " [postgres] slot.",
        )
    if not info.exists and not postgres.create:
        raise StateError(
            f"there is no slot {postgres.slot!r}", hint="Run `cdcsync slot create`, or set postgres.create = true."
        )


async def _first_start(
    config: Config,
    state: State,
    info: slot.SlotInfo,
    system: slot.System,
    log: structlog.typing.FilteringBoundLogger,
) -> slot.SlotIdentity:
    postgres = config.postgres
    if info.exists:
        start = info.confirmed_flush_lsn or 0
        identity = slot.SlotIdentity(system.system_id, system.timeline, system.database, postgres.slot, start)
    else:
        state.intend_slot(postgres.slot)
        identity = await slot.create_slot(postgres.dsn, postgres.slot, failover=postgres.failover)
        log.info("slot made", slot=postgres.slot, at=format_lsn(identity.consistent_point))
    state.bind(
        Identity(identity.system_id, identity.database, identity.slot, identity.consistent_point),
        identity.consistent_point,
        identity.timeline,
    )
    return identity


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Find what ended the daemon: one of our errors if there is one, else the first."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    for leaf in leaves:
        if isinstance(leaf, CdcsyncError):
            return leaf
    real = [leaf for leaf in leaves if not isinstance(leaf, _Ended)]
    return real[0] if real else _Ended()
