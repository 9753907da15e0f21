"""One history: a database at work, a daemon that is killed and started, a CRM with faults; and whether all ends well.

Everything is drawn from one seed, and nothing waits, so a history takes milliseconds and runs again the same way (with
``PYTHONHASHSEED=0``: sets of keys have an order of their own). Real are pipeline, lanes, copies, state file and limiter;
simulated are time, threads, the source's socket and the CRM behind its adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
from asyncio_throttle import throttler

from cdcsync.apply.base import Limits
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.rate import RateController
from cdcsync.config import MapConfig
from cdcsync.entries import CopyState, Identity
from cdcsync.lane import Lane
from cdcsync.model import Op, Progress, Relation, Target
from cdcsync.pipeline import Pipeline
from cdcsync.route import Route
from cdcsync.state import State
from cdcsync.wal.snapshot import Cursor
from tests.simulation.crm import ACCOUNT, CONTACT, KEY, Account, Adapter, Crm, Weather
from tests.simulation.database import BAD, COMPANIES, PEOPLE, Database, Feed, Habits, Row
from tests.simulation.virtual import Deadlock, VirtualClock, VirtualLoop

LOG = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
STILL = 5
"""Looks, half a second apart, in which nothing may be left to do."""
MENDS = 3
"""A row that waited for a rejected one may be rejected when that one is mended: for a large value that did not come."""
QUIET_SECONDS = 7_200.0
"""Virtual seconds within which everything has to settle once nothing changes and nothing fails any more."""


class Wrong(AssertionError):
    """A history ended badly, or did on its way what must never be done."""


@dataclass(slots=True)
class Plot:
    """What a history is made of, drawn from its seed."""

    seed: int
    habits: Habits
    weather: Weather
    linked: bool
    managed: bool
    """Whether people refer to people."""
    limits: Limits
    whole_batches: bool
    backfill: bool
    max_wait: float
    max_memory: int
    quota: int
    seconds: float
    pace: float
    """Transactions a second."""
    kills: float
    """Seconds that the daemon lives, on average."""

    @classmethod
    def draw(cls, seed: int) -> Plot:
        """Draw a plot."""
        rng = random.Random(seed)
        linked = rng.random() < 0.4
        stormy = rng.choice((0.0, 0.5, 1.0, 1.0, 3.0))

        def chance(most: float) -> float:
            return rng.choice((0.0, 0.3, 1.0)) * most * stormy

        return cls(
            seed=seed,
            habits=Habits(
                identity=rng.choice("fd"),
                keys=rng.choice((3, 6, 6, 15)),
                bad=rng.choice((0.0, 0.05, 0.2)),
                cascade=rng.random() < 0.5,
                insert=rng.choice((1, 3)),
                touch=rng.choice((0, 1)),
                rename=rng.choice((0, 1, 3)),
                delete=rng.choice((0, 1, 2)),
                replace=rng.choice((0, 0.5)),
                swap=rng.choice((0, 0, 0.5)),
                hire=rng.choice((0, 1)),
            ),
            weather=Weather(
                unreachable=chance(0.05),
                refused=chance(0.03),
                lost=chance(0.1),
                partly=chance(0.05),
                locked=chance(0.05),
                fatal=chance(0.01),
                unsaid=chance(0.03),
                slow=rng.choice((0.02, 0.3, 2.0)),
            ),
            linked=linked,
            managed=rng.random() < 0.4,
            limits=Limits(
                dict.fromkeys(Op, rng.choice((1, 3, 5))),
                rng.choice((1, 2, 4)),
                bulk_from=rng.choice((None, 4)) if not linked else None,  # associations do not go by bulk
                bulk_records=8,
            ),
            whole_batches=rng.random() < 0.2,
            backfill=rng.random() < 0.4,
            max_wait=rng.choice((0.0, 0.1, 1.0)),
            max_memory=rng.choice((1 << 30, 1 << 30, 40_000)),
            quota=rng.choice((30, 100, 1000)),
            seconds=rng.choice((4.0, 10.0, 30.0)),
            pace=rng.choice((0.5, 2.0, 5.0)),
            kills=rng.choice((1e9, 3.0, 10.0)),
        )


def mappings(plot: Plot) -> list[MapConfig]:
    """Return the config's mappings, parents first."""
    plain = {"Name": "name", "Big": "big", "Uid": "uid", "Version": "version"}
    shared = {"key": {KEY: "id"}, "backfill": plot.backfill}
    child: dict[str, Any] = {"fields": {**plain, "Account": {"column": "company", "ref": f"crm.{ACCOUNT}.{KEY}"}}}
    if plot.linked:
        child = {"fields": plain, "associate": [{"to": f"crm.{ACCOUNT}", "column": "company", "type": "works_at"}]}
    if plot.managed and plot.linked:
        child["associate"].append({"to": f"crm.{CONTACT}", "column": "manager", "type": "reports_to"})
    elif plot.managed:
        child["fields"]["Manager"] = {"column": "manager", "ref": f"crm.{CONTACT}.{KEY}"}
    given = [
        {"name": COMPANIES, "table": COMPANIES, "to": f"crm.{ACCOUNT}", "fields": plain},
        {"name": PEOPLE, "table": PEOPLE, "to": f"crm.{CONTACT}", **child},
    ]
    return [MapConfig.model_validate({**shared, **one}) for one in given]


@dataclass
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
        while not cursor.done:
            await room()
            await reached(self.database.lsn)
            if received() < self.database.lsn:
                continue
            after = cursor.after[0] if cursor.after else ""
            page = self.database.images(self.relation.name, after, 2)
            last = page[-1][0] if page else after
            cursor = Cursor((last,), cursor.rows + len(page), 0, len(page) < 2)
            emit([image for _, image in page], cursor)
            await asyncio.sleep(0.05)


@dataclass
class World:
    """A history under way."""

    plot: Plot
    directory: Path
    rng: random.Random = field(init=False)
    database: Database = field(init=False)
    crm: Crm = field(init=False)
    account: Account = field(init=False)
    now: float = 0.0
    lives: int = 0
    slot: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.plot.seed} world")
        self.database = Database(random.Random(f"{self.plot.seed} rows"), self.plot.habits)
        self.crm = Crm(random.Random(f"{self.plot.seed} crm"), whole_batches=self.plot.whole_batches)
        self.account = Account(self.plot.quota, 10.0)

    def run(self) -> None:
        """Run the history to its end. Raises Wrong."""
        random.seed(f"{self.plot.seed} jitter")
        for _ in range(self.rng.choice((0, 3, 12)) if self.plot.backfill else 0):
            self.database.transact(self.now)
        self.database.wal.clear()
        self.slot = self.database.lsn
        while self.now < self.plot.seconds:
            left = self.plot.seconds - self.now
            self._live(min(left, self.rng.expovariate(1 / self.plot.kills)), last=False)
        self._live(QUIET_SECONDS, last=True)

    def _live(self, seconds: float, *, last: bool) -> None:
        """Let the daemon live for a while, then kill it; the last time it has to come to an end."""
        self.lives += 1
        self.crm.trace("life", self.lives, "from", self.now)
        loop = VirtualLoop(self.now, self.rng, 0.01)
        setattr(throttler, "time", SimpleNamespace(monotonic=loop.time))  # noqa: B010 — a module that it imports
        state = self._open()
        life = Life(self, state, last=last)
        asyncio.set_event_loop(loop)
        main = loop.create_task(life.run())
        main.add_done_callback(lambda _: loop.stop())
        end = loop.call_at(self.now + seconds, loop.stop)
        try:
            loop.run_forever()
        except Deadlock:
            raise Wrong(f"nothing will ever happen again\n{life.described()}") from None
        finally:
            end.cancel()
            self.now = max(loop.now, self.now + (0 if last else seconds))
            self.slot = max(self.slot, life.feed.confirmed if life.feed else 0)
            _abandon(loop)
            state.close()
        if main.done() and not main.cancelled() and (error := main.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error
        if last and not main.done():
            raise Wrong(f"did not come to an end within {seconds} s\n{life.described()}")
        if self.crm.books.wrong:
            raise Wrong("\n".join(self.crm.books.wrong))

    def _open(self) -> State:
        state = State.open(self.directory / "state.db")
        state._db._db.execute("PRAGMA synchronous = OFF")
        if state.identity() is None:
            state.bind(Identity("1", "db", "slot", self.slot), self.slot, 1)
        return state


def _abandon(loop: VirtualLoop) -> None:
    """Leave everything as a kill does: nobody hears of it."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(RuntimeError, ValueError, BaseExceptionGroup):
            task.get_coro().close()
    asyncio.set_event_loop(None)


class Life:
    """The daemon between a start and a kill."""

    def __init__(self, world: World, state: State, *, last: bool) -> None:
        self._world = world
        self._state = state
        self._last = last
        self.feed: Feed | None = None
        self.lane: Lane | None = None
        self._pipeline: Pipeline | None = None

    async def run(self) -> None:
        """Start everything, and work until killed; the last time until all is settled, which is then judged."""
        plot, world = self._world.plot, self._world
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        pipeline = Pipeline(self._state, plot.max_memory, 1 << 33, LOG, VirtualClock(loop))
        self._pipeline = pipeline
        limiter = Limiter(
            loop, RateController(now=loop.now), "crm", obstacle=pipeline.obstacle, clock=pipeline.clock.time
        )
        rng = random.Random(f"{plot.seed} network {world.lives}")
        weather = plot.weather.calm if self._last else plot.weather
        self.adapter = Adapter(world.crm, world.account, limiter, plot.limits, weather, rng)
        self.feed = pipeline.reader = Feed(world.database, pipeline.durable_lsn)
        routes = [Route(config, {}) for config in mappings(plot)]
        destination: Any = self.adapter
        self.lane = Lane("crm", destination, limiter, routes, pipeline, max_wait=plot.max_wait, log=LOG)
        pipeline.add(self.lane)
        pipeline.plan_copies()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self.lane.run()),
                tasks.create_task(pipeline.run_ticks()),
                tasks.create_task(self._stream(pipeline)),
                tasks.create_task(pipeline.copies.run(self.lane, self._connect, self._pages, self._look)),
                tasks.create_task(self._watch(self.lane)),
            ]
            if not self._last:
                running.append(tasks.create_task(self._work()))
            else:
                await self._end(pipeline, self.lane)
                for task in running:
                    task.cancel()

    # --- what goes on around the lane

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._world.rng.expovariate(self._world.plot.pace))
            self._world.database.transact(loop.time())

    async def _stream(self, pipeline: Pipeline) -> None:
        feed, database = self.feed, self._world.database
        assert feed is not None
        await asyncio.sleep(self._world.rng.random())
        pipeline.connected_anew()
        ahead = [entry for entry in database.wal if entry.commit.end_lsn > feed.confirmed]
        place = len(database.wal) - len(ahead)
        while True:
            while place < len(database.wal) and not feed.held:
                entry = database.wal[place]
                self._world.crm.trace(
                    "stream",
                    entry.begin.commit_lsn,
                    [(c.kind.value, c.relation.name, c.old, c.new) for c in entry.changes],
                )
                pipeline.receive([entry.begin, *entry.changes, entry.commit])
                place += 1
            if not feed.held:
                pipeline.receive([Progress(database.lsn)])
            await asyncio.sleep(0.05 + 0.4 * self._world.rng.random())

    async def _connect(self) -> Any:
        raise NotImplementedError

    async def _pages(self, route: Route, entry: CopyState) -> Any:
        return Pages(self._world.database, self._world.database.relations[route.config.table.partition(".")[2]])

    async def _look(self) -> None:
        pass

    async def _watch(self, lane: Lane) -> None:
        """See that the books balance, at any moment."""
        while True:
            await asyncio.sleep(2 * self._world.rng.random())
            if lane.balance():
                raise Wrong(f"{lane.balance()} changes unaccounted for: {lane.totals()}")

    # --- the end

    async def _end(self, pipeline: Pipeline, lane: Lane) -> None:
        await self._settled(pipeline, lane, all_of_it=False)
        self._judge(lane)
        for turn in range(MENDS):
            parked = {route.name: set(route.backlog.parked) for route in lane.routes}
            self._world.database.mend(asyncio.get_running_loop().time(), parked)
            await self._settled(pipeline, lane, all_of_it=turn == MENDS - 1)
            if not lane.rejected and not lane.pending:
                break
        if lane.rejected:
            raise Wrong(f"{lane.rejected} rows are parked that have nothing wrong\n{self.described()}")
        self._judge(lane)

    async def _settled(self, pipeline: Pipeline, lane: Lane, *, all_of_it: bool) -> None:
        """Wait until nothing is left to do; unless ``all_of_it``, rows may be left that wait for rejected ones."""
        await pipeline.reached(self._world.database.lsn)
        backlogs = [route.backlog for route in lane.routes]
        idle = 0
        while idle < STILL:
            await asyncio.sleep(0.5)
            waiting = any(len(backlog) > len(backlog.held) for backlog in backlogs)
            left = waiting or (lane.pending and (all_of_it or not lane.rejected))
            idle = 0 if left or pipeline.copying else idle + 1

    def _judge(self, lane: Lane) -> None:
        """Compare the CRM with the database; what is parked may stand as it was."""
        parked = {
            route.name: {
                *route.backlog.parked,
                *route.backlog.anchored,
                *(key for row in route.backlog.fold.waiting.values() for key in row.keys),
            }
            for route in lane.routes
        }
        wrong = list(judged(self._world.database, self._world.crm, parked, self._world.plot))
        if wrong:
            raise Wrong("\n".join([*wrong, self.described()]))

    def described(self) -> str:
        """Describe what is there, for a person who looks for the cause."""
        lines = [f"{self._world.plot}", f"life {self._world.lives}, now {self._world.now}"]
        for route in self.lane.routes if self.lane is not None else ():
            backlog = route.backlog
            lines += [
                f"{route.name}: waiting {list(backlog.fold.waiting)} held {backlog.held} in flight "
                f"{list(backlog.in_flight)} cold {len(backlog.cold)} parked {backlog.parked} {route.reasons} "
                f"referred {dict(backlog.referred)}",
                f"  table {self._world.database.tables[route.name]}",
            ]
        lines += [f"  {crm_id} {held}" for crm_id, held in self._world.crm.records.items()]
        return "\n".join(lines)


def judged(database: Database, crm: Crm, parked: dict[str, set[str]], plot: Plot) -> list[str]:
    """Say where the CRM is not what the database maps to."""
    wrong: list[str] = []
    for table, name in ((COMPANIES, ACCOUNT), (PEOPLE, CONTACT)):
        held = {one.key: one for one in crm.records.values() if one.object == name and one.key not in parked[table]}
        rows = {key: row for key, row in database.tables[table].items() if key not in parked[table]}
        wrong += [f"{name} {key} ({held[key].uid}) should not be there" for key in held.keys() - rows]
        for key, row in rows.items():
            wanted = _record_of(crm, table, row, plot)
            found = (held[key].key, held[key].fields, held[key].links) if key in held else None
            if found != wanted:
                wrong.append(f"{name} {key} is {found}, not {wanted}")
            if str(row["name"]).startswith(BAD):
                wrong.append(f"{name} {key} should be parked")
    return wrong


def _record_of(crm: Crm, table: str, row: Row, plot: Plot) -> tuple[str | None, dict[str, Any], dict[str, str]]:
    fields = {"Name": row["name"], "Big": row["big"], "Uid": row["uid"], "Version": row["version"]}
    if table == COMPANIES:
        return row["id"], fields, {}
    references = [("Account", "works_at", ACCOUNT, row["company"])]
    if plot.managed:
        references.append(("Manager", "reports_to", CONTACT, row["manager"]))
    links: dict[str, str] = {}
    for field_name, link, name, key in references:
        there = None if key is None else crm.find(Target(name, KEY), [key]).get(key)
        if not plot.linked:
            fields[field_name] = there
        elif there is not None:
            links[link] = there
    return row["id"], fields, links


def play(seed: int, directory: Path) -> World:
    """Play the history of a seed. Raises Wrong, or whatever the daemon would have died of."""
    world = World(Plot.draw(seed), directory)
    world.run()
    return world


__all__: Sequence[str] = ("Plot", "World", "Wrong", "play")
