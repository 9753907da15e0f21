"""What is looked at while a history goes on: the gate's breaker, who waits for how long, what goes before what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cdcsync.apply.limiter import Limiter
from cdcsync.apply.permit import Permit
from cdcsync.apply.turns import WEIGHTS, Priority
from cdcsync.lane import Lane
from cdcsync.route import Route
from tests.simulation.crm import Held
from tests.simulation.network import JOB_SECONDS
from tests.simulation.plot import TABLES
from tests.simulation.side import Side

LOOK = 2.0
"""Seconds between two looks, at most."""
ROUND = 4
"""Requests that a row may take until it is settled, on average: lookups, of its parents too, and its parts."""
SLACK = 12
"""Refusals in a row that a daemon may not have heard of: their answers are under way, or were lost."""
GRACE = 30.0
"""Seconds that a row may wait beyond what the plot lets expect."""


class WatchedLimiter(Limiter):
    """The limiter, with an eye on its breaker: while that is open, one request at a time may go, as a probe."""

    wrong: list[str]
    probes = 0

    async def acquire(self, priority: Priority = "normal", scope: str = "burst") -> Permit:
        permit = await super().acquire(priority, scope)
        if permit._probe:
            self.probes += 1
            if self.probes > 1:
                self.wrong.append(f"{self.probes} probes at a time")
        elif self._breaker.until(self._clock()) is not None:
            self.wrong.append("work was let in while the breaker is open")
        return permit

    def end_probe(self, *, failed: bool) -> None:
        self.probes -= 1
        super().end_probe(failed=failed)


@dataclass(slots=True)
class LaneWatch:
    """An eye on one lane."""

    lane: Lane
    side: Side
    fed_at: dict[int, float]
    """When each transaction was fed, by its commit LSN."""
    _waited: dict[tuple[str, str, float], tuple[float, float]] = field(default_factory=dict)
    """Seconds for which rows have been ready while something could be sent, and for how long they might be.

    A row that was sent and has changed again is ready since another time. What was ahead of it counts as it was when
    there was most of it.
    """
    _looked_at: float = 0.0

    def look(self, now: float) -> None:
        """See that the books balance, and that nobody waits for ever."""
        wrong, lane = self.side.crm.books.wrong, self.lane
        if lane.balance():
            wrong.append(f"{lane.balance()} changes unaccounted for: {lane.totals()}")
        passed = min(LOOK, now - self._looked_at)
        self._looked_at = now
        waited, free = self._waited, self._is_free()
        self._waited = {}
        for route in lane.routes:
            self._see_mass(route)
            ready, patience = route.backlog.ready, self._patience(route)
            for key, at in (*ready._changes.items(), *ready._copies.items()):
                since, most = waited.get((route.name, key, at), (0.0, 0.0))
                most = max(most, patience)
                goes = free and not route.paused and route.backoff.until <= lane.clock.monotonic()
                self._waited[route.name, key, at] = since + passed * goes, most
                if since > max(GRACE, most):
                    wrong.append(f"{route.name} {key} has been ready for {since:.0f} s: {most:.0f}")

    def _see_mass(self, route: Route) -> None:
        """See that a mapping of which nearly all is refused is paused."""
        refused, name = self.side.crm.books.refused, route.target.object
        if route.paused:
            refused[name] = 0
        elif refused[name] > self.side.plot.judges[0] + SLACK:
            self.side.crm.books.wrong.append(f"{route.name} goes on after {refused[name]} refusals in a row")

    def _is_free(self) -> bool:
        """Whether nothing but other rows keeps a row from being sent."""
        lane = self.lane
        controller = lane.limiter._main.controller
        now = lane.clock.monotonic()
        calm = controller.ready(now) <= now and not controller.day.rate(now) and not lane.limiter.open_in
        return calm and lane._opened and lane.caught_up

    def _patience(self, route: Route) -> float:
        """Return how long a row may be ready: as long as it takes to send all that has its share of the turns."""
        lane, terms = self.lane, self.side.terms
        mine = WEIGHTS[route.config.priority] / 2  # a copied row is one class lower
        rows = 1 + len(route.backlog)
        ahead = sum(min(len(one.backlog), rows * WEIGHTS[one.config.priority] / mine) for one in lane.routes)
        request = 1 / lane.limiter._main.controller.rate + 2 * terms.weather.slow
        jobs = 4 * max(JOB_SECONDS) if terms.limits.bulk_from is not None else 0.0
        return self.side.plot.max_wait + GRACE + jobs + ROUND * (ahead + 2) * request

    def unclear(self, name: str, key: str) -> bool:
        """Whether the record of a row in flight may have been another row's, as where two rows swap their keys."""
        flights = (r.backlog.in_flight.get(key) for r in self.lane.routes if r.target.object == name)
        return any(flight is not None and flight.row.whole for flight in flights)

    def deleting(self, crm_id: str, held: Held) -> None:
        """See that a record goes after the changes of those that refer to it, where these were ready before it."""
        parent = next((r for r in self.lane.routes if r.target.object == held.object), None)
        if parent is None:
            return
        flights = parent.backlog.in_flight.values()
        row = next((one.row for one in flights if one.row.deleted and held.key in one.row.keys), None)
        came = self.fed_at.get(row.last.commit_lsn) if row is not None else None
        if row is None or came is None or row.copied:
            return
        for other in self.side.crm.records.values():
            if other.refers_to(crm_id):
                self._see_child(TABLES[other.object], other.key, row.first.commit_lsn, came)

    def _see_child(self, table: str, key: str, lsn: int, came: float) -> None:
        name = self.side.plot.names(self.side.number)[table]
        backlog = self.lane.by_name[name].backlog
        child = backlog.fold.waiting.get(key)
        since = backlog.ready._changes.get(key) if child is not None else None
        if child is None or since is None or since > came:
            return
        if child.last.commit_lsn < lsn:
            self.side.crm.books.wrong.append(f"the record that {name} {key} refers to goes before its change")


async def look_around(watches: list[LaneWatch], rng: random.Random, check: Callable[[], Any]) -> None:
    """Look at the lanes for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK * rng.random())
        for watch in watches:
            watch.look(loop.time())
        check()
