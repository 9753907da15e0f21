"""Bugs put in by hand, each a small change of the real code at run time: a simulation that finds none of them is none.

``python -m tests.simulation.mutations`` looks for the first seed that catches each, and says by what.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cdcsync import coalesce, jobs, plan
from cdcsync.apply.breaker import Breaker
from cdcsync.apply.limiter import Limiter
from cdcsync.apply.rate import RateController
from cdcsync.backlog import Backlog
from cdcsync.books import Books
from cdcsync.coalesce import Fold, PendingRow
from cdcsync.deferral import Deferral
from cdcsync.entries import Job, Reject, Tick
from cdcsync.errors import RateLimitedError
from cdcsync.lane import Lane
from cdcsync.model import START, Applied, Batch, JobState, Op
from cdcsync.parents import Parents
from cdcsync.pipeline import Pipeline
from cdcsync.plan import Draft
from cdcsync.rejects import Rejects
from cdcsync.retries import Retries
from cdcsync.route import Route
from cdcsync.shares import Shares
from cdcsync.state import State
from cdcsync.verdicts import Verdicts
from tests.simulation.plot import Plot, draw
from tests.simulation.runner import play_one

MOST = 200
"""Histories within which each has to be caught."""
SECONDS = 4
"""Of real time, after which a history counts as one without an end."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug: what is put where, and in which plots it could show."""

    name: str
    patches: Sequence[tuple[Any, str, Any]]
    where: Callable[[Plot], bool] = lambda _: True

    def seeds(self) -> Iterator[int]:
        """Yield the seeds whose plots it could show in."""
        return (seed for seed in itertools.count(1) if self.where(draw(seed)))


@contextlib.contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Put a bug in for a while."""
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in mutation.patches]
    try:
        for owner, name, value in mutation.patches:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def catch(mutation: Mutation) -> tuple[int, int, str] | None:
    """Return the first seed that catches a bug, after how many histories, and by what; None if none does.

    Without the bug the history of this seed ends well. Raises Wrong where it does not.
    """
    for count, seed in enumerate(itertools.islice(mutation.seeds(), MOST), 1):
        try:
            with mutated(mutation):
                play_one(seed, SECONDS)
        except Exception as error:  # noqa: BLE001 — whatever ends a daemon is a finding
            words = f"{type(error).__name__}: {error}".partition("\n")[0][:100]
            play_one(seed)
            return seed, count, words
    return None


# --- what a plot has


def _stormy(plot: Plot) -> bool:
    return any(terms.weather.lost > 0.05 for terms in plot.terms)


def _hurried(plot: Plot) -> bool:
    return any(terms.weather.refused for terms in plot.terms) and plot.pace > 1


def _crashes(plot: Plot) -> bool:
    return plot.kills < plot.seconds and plot.graceful == 0


def _links(plot: Plot) -> bool:
    return any(terms.linked and terms.weather.lost >= 0.1 for terms in plot.terms) and plot.pace > 1


def _bulk(plot: Plot) -> bool:
    return any(terms.limits.bulk_from is not None for terms in plot.terms) and plot.pace > 1


def _daily(plot: Plot) -> bool:
    return any(terms.daily is not None for terms in plot.terms) and plot.pace > 1


def _busy(plot: Plot) -> bool:
    return plot.seconds > 60


def _bad(plot: Plot) -> bool:
    return plot.habits.bad > 0


# --- bugs


async def _settle_first(lane: Lane, route: Route, op: Op, chunk: list[Draft]) -> None:
    await lane._announce(route, chunk)
    lane.settle(route, chunk, [Applied(draft.record.crm_id) for draft in chunk])
    await lane.call(lane.destination.send, Batch(route.target, op, tuple(draft.record for draft in chunk)))


def _dropping(real: Any) -> Any:
    async def send_chunk(lane: Lane, route: Route, op: Op, chunk: list[Draft]) -> None:
        try:
            await real(lane, route, op, chunk)
        except RateLimitedError:
            for draft in chunk:
                lane._suppress(route, draft.row)

    return send_chunk


def _swapped(older: PendingRow, newer: PendingRow) -> PendingRow:
    newer.image, newer.relation, newer.deleted = older.image, older.relation, older.deleted
    coalesce._inherit(newer, older)
    return newer


def _forgetting_journal(real: Any) -> Any:
    def collect(lane: Lane, tick: Tick) -> None:
        real(lane, tick)
        tick.journal.clear()

    return collect


def _confirming_first(real: Any) -> Any:
    async def write(pipeline: Pipeline, tick: Tick, copied: Any) -> None:
        if pipeline.reader is not None:
            pipeline.reader.confirm(tick.durable_lsn)
        await real(pipeline, tick, copied)

    return write


def _missing_is_applied(lane: Lane, route: Route, row: PendingRow, _outcome: object) -> None:
    lane._suppress(route, row)


def _without_horizon(real: Any) -> Any:
    def restore(lane: Lane, state: State) -> None:
        real(lane, state)
        lane._replay = START

    return restore


async def _ready(*_: object) -> bool:
    return True


def _not_waiting(real: Any) -> Any:
    def in_the_way(backlog: Backlog, row: PendingRow) -> str | None:
        busy, backlog._busy = backlog._busy, {}
        try:
            return real(backlog, row)  # type: ignore[no-any-return]
        finally:
            backlog._busy = busy

    return in_the_way


def _forgetting_parked(rejects: Rejects, route: Route, reject: Reject) -> None:
    lane = rejects._lane
    lane.books.rejects[route.name, reject.row.key] = None
    if not reject.discarded:
        rejects._forget_reason(route, reject)
        lane.books.counters["suppressed"] += 1
    route.backlog.unpark(reject.row, lane.clock.monotonic())


def _sent_anew(real: Any) -> Any:
    async def submit(runner: jobs.JobRunner, job: Job, batch: Batch, *, resumed: bool) -> Job:
        if resumed:
            job = replace(job, state=JobState.PLANNED, crm_job=None)
        return await real(runner, job, batch, resumed=False)  # type: ignore[no-any-return]

    return submit


def _not_whole(real: Any) -> Any:
    def decide(write: Any, to: plan.Plan) -> None:
        write.row.whole = False
        real(write, to)

    return decide


def _made_from_parts(real: Any) -> Any:
    def decide(write: Any, to: plan.Plan) -> None:
        write.mapped = write.mapped._replace(absent=())
        real(write, to)

    return decide


def _fixed_order(_shares: Shares, waiting: Mapping[Any, float]) -> Any:
    return min(waiting, default=None)


def _nothing(*_: object, **__: object) -> None:
    return None


async def _no_look(*_: object) -> int:
    return 0


MUTATIONS = [
    Mutation("settles before the answer", [(Lane, "_send_chunk", _settle_first)], _stormy),
    Mutation("drops rows on 429", [(Lane, "_send_chunk", _dropping(Lane._send_chunk))], _hurried),
    Mutation("swaps the order of a row's two states", [(coalesce, "over", _swapped)], _stormy),
    Mutation("forgets the journal at a tick", [(Lane, "collect", _forgetting_journal(Lane.collect))], _crashes),
    Mutation(
        "confirms before the tick is on disk",
        [(Pipeline, "_write", _confirming_first(Pipeline._write))],
        lambda plot: _crashes(plot) and plot.disk > 0.1,
    ),
    Mutation("believes the ledger after a lost answer", [(PendingRow, "doubt", _nothing)], _stormy),
    Mutation(
        "takes a missing record for a written one",
        [(Lane, "_missing", _missing_is_applied)],
        lambda plot: plot.people.removals > 0,
    ),
    Mutation("ignores the horizon", [(Lane, "restore", _without_horizon(Lane.restore))], _crashes),
    Mutation("sends children before parents", [(Parents, "_is_ready", _ready)]),
    Mutation(
        "deletes parents before children", [(Deferral, "defer", _nothing)], lambda p: p.habits.delete > 1 and p.pace > 1
    ),
    Mutation("does not wait for keys in flight", [(Backlog, "_in_the_way", _not_waiting(Backlog._in_the_way))]),
    Mutation("loses what was rejected when it changes", [(Rejects, "take_up", _forgetting_parked)], _bad),
    Mutation("forgets the links that it sent", [(Books, "link_sent", lambda *_: False)], _links),
    Mutation("does not count its calls", [(RateController, "sent", _nothing)], _daily),
    Mutation("forgets its calls at a restart", [(Limiter, "restore", _nothing)], lambda p: _daily(p) and _crashes(p)),
    Mutation("forgets the ceiling", [(RateController, "_follow_ceiling", _nothing)], _busy),
    Mutation("never opens the breaker", [(Breaker, "refused", _nothing)], lambda p: any(t.outage for t in p.terms)),
    Mutation(
        "sends a job again after a crash",
        [(jobs.JobRunner, "_submit", _sent_anew(jobs.JobRunner._submit))],
        lambda plot: _bulk(plot) and _crashes(plot),
    ),
    Mutation("makes records from parts", [(plan._Write, "decide", _made_from_parts(plan._Write.decide))]),
    Mutation(
        "ignores that a record was another row's",
        [(plan._Write, "decide", _not_whole(plan._Write.decide))],
        lambda plot: plot.habits.swap > 0,
    ),
    Mutation("writes what has not changed", [(plan._Write, "_before", lambda *_: {})], lambda plot: plot.calm),
    Mutation("serves one mapping before all others", [(Shares, "first", _fixed_order)], _busy),
    Mutation("never tries again", [(Retries, "_take_up", _no_look)], lambda plot: plot.patient and _bad(plot)),
    Mutation(
        "goes on when all is refused",
        [(Verdicts, "mass", property(lambda _: False))],
        lambda plot: plot.habits.bad == 1 and plot.judges[0] < 20 and plot.pace > 1,
    ),
    Mutation(
        "writes over what is the CRM's own",
        [(plan._Write, "_without_owned", lambda _self, values, *_: values)],
        lambda plot: plot.owned and plot.people.edits > 0,
    ),
    Mutation("asks for no record when a key changes", [(plan._Write, "_has_to_ask", lambda *_: False)], _crashes),
    Mutation("takes a crash for nothing", [(Fold, "contested", lambda *_: False)], _crashes),
]


def main() -> int:
    """Tell which seed catches each bug; returns 1 if one is not caught."""
    missed = 0
    for mutation in MUTATIONS:
        began = time.process_time()
        found = catch(mutation)
        missed += found is None
        seed, count, words = found or (0, MOST, "NOT CAUGHT")
        print(f"{mutation.name}: seed {seed}, {count} histories, {time.process_time() - began:.1f} s: {words}")
    return missed > 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        command = [sys.executable, "-m", "tests.simulation.mutations"]
        os.execve(sys.executable, command, {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606 — no shell is needed
    sys.exit(main())
