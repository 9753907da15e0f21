"""The daemon between a start and its end: the real pipeline, lanes, copies and limiters, with a simulated rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import structlog

from cdcsync.apply.rate import RateController
from cdcsync.entries import CopyState, Selection
from cdcsync.lane import Lane
from cdcsync.mappers.compile import RowMapper
from cdcsync.model import Progress, Relation
from cdcsync.pipeline import Pipeline
from cdcsync.route import Route
from cdcsync.service import SETTLE_SECONDS
from cdcsync.state import State
from tests.simulation.crm import trace
from tests.simulation.ending import Ending
from tests.simulation.feed import Feed, Pages, shown
from tests.simulation.judge import Wrong
from tests.simulation.network import Adapter
from tests.simulation.side import Side
from tests.simulation.virtual import VirtualClock, VirtualLoop
from tests.simulation.watch import LaneWatch, WatchedLimiter, look_around

if TYPE_CHECKING:
    from tests.simulation.world import World  # a world has lives; here only for its type

LOG = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
JUMPS = (-86_400.0, -3_600.0, -30.0, 30.0, 3_600.0, 86_400.0)
"""Seconds by which the wall clock is put forward or back."""

End: TypeAlias = Literal["kill", "stop", "last"]
"""How a life ends: a kill, a stop as the service does it, or when everything has settled."""

_MAPPERS: dict[str, dict[Relation, RowMapper]] = {}
"""The compiled mappers of all lives, by what the mapping means: to compile them takes longer than a life."""


class Life:
    """One process of the daemon. ``work`` is for how long the application goes on to write (seconds)."""

    def __init__(self, world: World, state: State, loop: VirtualLoop, end: End, work: float) -> None:
        self._world = world
        self._end = end
        self._work_until = loop.now + work
        self._rng = world.rng
        self.plot = world.plot
        self.database = world.database
        self.sides = world.sides
        self.disturbed = world.disturbed
        self.state = state
        self.loop = loop
        self.clock = VirtualClock(loop, world.jump)
        self.feed = Feed(world.slot)
        self.pipeline = Pipeline(state, self.plot.max_memory, 1 << 33, LOG, self.clock)
        self.pipeline.reader = self.feed
        self._fed_at: dict[int, float] = {}
        self.lanes = [self._lane(side) for side in world.sides]
        self._watches = [LaneWatch(*pair, self._fed_at) for pair in zip(self.lanes, world.sides, strict=True)]
        for watch, side in zip(self._watches, world.sides, strict=True):
            side.crm.deleting = watch.deleting
            side.crm.unclear = watch.unclear
            side.begin_life()

    def _lane(self, side: Side) -> Lane:
        plot, terms, loop = self.plot, side.terms, self.loop
        born, last = loop.now, self._end == "last"
        outage = born + terms.outage if last else 0.0
        limiter = WatchedLimiter(
            loop,
            RateController(
                now=loop.now, daily_budget=terms.daily, rolling_day=True, parallel=terms.limits.max_parallel
            ),
            "crm",
            obstacle=self.pipeline.obstacle,
            clock=self.clock.time,
        )
        limiter.wrong = side.crm.books.wrong
        destination: Any = Adapter(
            side.crm,
            side.account,
            limiter,
            terms.limits,
            terms.weather.fair if last else terms.weather,
            rng=random.Random(f"{plot.seed} network {side.number} {self._world.lives}"),
            outage=outage,
            passed=lambda: side.pass_gate(loop.now, loop.now - born, outage),
        )
        routes = [Route(config, {}) for config in plot.mappings(side.number)]
        for route in routes:
            route._mappers = _MAPPERS.setdefault(route.config.meaning, {})
        lane = Lane(f"crm{side.number}", destination, limiter, routes, self.pipeline, max_wait=plot.max_wait, log=LOG)
        self.pipeline.add(lane)
        return lane

    async def run(self) -> None:
        """Start everything, and work to the end."""
        pipeline = self.pipeline
        pipeline.plan_copies()
        async with asyncio.TaskGroup() as tasks:
            lanes = [tasks.create_task(lane.run()) for lane in self.lanes]
            core = [tasks.create_task(pipeline.run_ticks()), tasks.create_task(self._stream())]
            side = [
                tasks.create_task(pipeline.copies.run(lane, self._connect, self._pages, self._look))
                for lane in self.lanes
            ]
            side.append(tasks.create_task(look_around(self._watches, self._rng, self._check)))
            side.append(tasks.create_task(self._work()))
            side.append(tasks.create_task(self._people()))
            if self._end == "kill":
                return
            await asyncio.sleep(self._work_until - self.loop.now)
            if self._end == "last":
                await Ending(self).come()
            for task in side:
                task.cancel()
            await self._stop(lanes)
            for task in (*core, *lanes):
                task.cancel()

    async def _stop(self, lanes: list[asyncio.Task[None]]) -> None:
        """Stop as ``service.Service`` does."""
        self.feed.pause()
        for lane in self.lanes:
            lane.stop()
        await asyncio.wait(lanes, timeout=SETTLE_SECONDS)
        await self.pipeline.tick()

    @property
    def knows_all(self) -> bool:
        """Whether the state file, after a stop, knows of all that may have been sent.

        What it does not know of, it learns from the slot, and would not any more if that were lost.
        """
        return self._end == "stop" and all(lane.caught_up for lane in self.lanes)

    def _check(self) -> None:
        wrong = [words for side in self.sides for words in side.crm.books.wrong]
        if wrong:
            raise Wrong("\n".join(wrong))

    # --- what goes on around the lanes

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(self.plot.pace))
            if self.loop.now >= self._work_until:
                return
            self.database.transact(self.loop.now)

    async def _stream(self) -> None:
        feed, database = self.feed, self.database
        await asyncio.sleep(self._rng.random())
        self.pipeline.connected_anew()
        place = next((n for n, one in enumerate(database.wal) if one.commit.end_lsn > feed.confirmed), None)
        place = len(database.wal) if place is None else place
        told = -1
        while True:
            while place < len(database.wal) and not feed.held:
                entry = database.wal[place]
                trace("stream", entry.begin.commit_lsn, *map(shown, entry.changes))
                self._fed_at[entry.begin.commit_lsn] = self.loop.now
                self.pipeline.receive([entry.begin, *entry.changes, entry.commit])
                place += 1
            if not feed.held and told != database.lsn:
                told = database.lsn
                self.pipeline.receive([Progress(told)])
            await asyncio.sleep(0.05 + 0.4 * self._rng.random())

    async def _connect(self) -> Any:
        raise NotImplementedError

    async def _pages(self, route: Route, entry: CopyState) -> Any:
        del entry
        return Pages(self.database, self.database.relations[route.config.table.partition(".")[2]])

    async def _look(self) -> None:
        """See nothing: tables do not change here."""

    # --- people

    async def _people(self) -> None:
        people = self.plot.people
        kinds: dict[Callable[[], None], float] = {
            self._pause: people.pauses,
            self._retry: people.retries,
            self._discard: people.discards,
            self._edit: people.edits,
            self._remove: people.removals,
            self._set_clock: people.jumps,
        }
        while people.often and any(kinds.values()):
            await asyncio.sleep(self._rng.expovariate(people.often))
            if self.loop.now >= self._work_until:
                return
            act = self._rng.choices(list(kinds), list(kinds.values()))[0]
            trace("people", act.__name__)
            act()

    def _any_route(self) -> Route:
        return self._rng.choice(self._rng.choice(self.lanes).routes)

    def _pause(self) -> None:
        route = self._any_route()
        if not self.state.resume(route.name):
            self.state.pause(route.name, "by hand", self.clock.time())

    def _retry(self) -> None:
        route = self._any_route()
        self.state.parked.request("retry", Selection(route.name), self.clock.time())

    def _discard(self) -> None:
        route = self._any_route()
        table = route.config.table.partition(".")[2]
        for key in route.backlog.parked:
            self.disturbed.update(str(row["uid"]) for row in (self.database.tables[table].get(key),) if row)
            self._world.excused.add((route.target.object, key))
        self.state.parked.request("discard", Selection(route.name), self.clock.time())

    def _edit(self) -> None:
        side = self._rng.choice(self.sides)
        crm = side.crm
        if crm.records:
            crm_id = self._rng.choice(sorted(crm.records))
            text = f"by hand {self.loop.now:.3f}"
            if self.plot.owned and self._rng.random() < 0.5:
                crm.fill(crm_id, text, self.loop.now)
            else:
                crm.note(crm_id, text)
                side.notes[crm_id] = text

    def _remove(self) -> None:
        crm = self._rng.choice(self.sides).crm
        if crm.records:
            crm_id = self._rng.choice(sorted(crm.records))
            self.disturbed.add(crm.records[crm_id].uid)
            self.disturbed.update(one.uid for one in crm.records.values() if one.refers_to(crm_id))
            crm.remove(crm_id)

    def _set_clock(self) -> None:
        self.clock.jump += self._rng.choice(JUMPS)
        self._world.jump = self.clock.jump
