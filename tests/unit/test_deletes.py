"""The guard against mass deletes: its arithmetic, and the lane at work on a real state file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.config.units import Allowance, format_allowance, parse_allowance
from cdcsync.deletes import FLOOR, SLICES, Spent, most
from cdcsync.entries import Known, Tick
from cdcsync.model import START, Batch, Op, Outcome, Position, Record, Retry
from cdcsync.state import State
from tests.polling import eventually_async
from tests.unit.test_pipeline import COMPANIES, Bench, MemoryCrm, bench, companies, delete, insert, opened, run

TENTH = Allowance(0.1, 3600.0)


@pytest.mark.parametrize(
    ("text", "allowance"),
    [
        ("10% per hour", TENTH),
        ("12.5% per day", Allowance(0.125, 86400.0)),
        ("500 per day", Allowance(500, 86400.0)),
        ("0 per week", Allowance(0, 604800.0)),
        ("off", None),
    ],
)
def test_an_allowance_is_read_and_printed(text: str, allowance: Allowance | None) -> None:
    """What is printed is what was read."""
    assert parse_allowance(text) == allowance
    assert format_allowance(allowance) == text


@pytest.mark.parametrize("wrong", ["", "10%", "10 an hour", "-1 per day", "101% per day", "1 per eon", 10, True])
def test_what_is_no_allowance_is_refused(wrong: object) -> None:
    """Whatever else stands there gets a sentence with the forms that there are."""
    with pytest.raises(ValueError, match=r"expected "):
        parse_allowance(wrong)


def test_a_share_has_a_floor_and_a_number_has_none() -> None:
    """Small tables can be worked on; who gives a number means it."""
    assert (most(TENTH, 5), most(TENTH, 100_000)) == (FLOOR, 10_000)
    assert most(Allowance(3, 60.0), 100_000) == 3


def test_the_base_does_not_shrink_with_what_was_deleted() -> None:
    """A tenth is one of the records that there were, so as much as was promised may go, and no more."""
    spent = Spent().add(TENTH, 6_000, 100_000, now=0.0)
    assert spent.left(TENTH, 94_000) == 4_000
    spent = spent.add(TENTH, 4_000, 94_000, now=10.0)
    assert spent.left(TENTH, 90_000) == 0
    assert spent.within(TENTH, 3600.0 + 3600.0 / SLICES).left(TENTH, 90_000) == 9_000


@given(st.lists(st.tuples(st.floats(0, 20_000), st.integers(1, 50)), max_size=60), st.floats(0, 20_000))
def test_no_span_ever_has_more_than_the_allowance(wishes: list[tuple[float, int]], start: float) -> None:
    """Whatever is asked for and when: within any span no more is let go than the allowance; few numbers are kept."""
    allowance, spent = Allowance(120, 3600.0), Spent()
    gone: list[tuple[float, int]] = []
    for now, number in sorted(wishes):
        spent = spent.within(allowance, now)
        going = min(number, spent.left(allowance, 1))
        spent = Spent.parse(spent.add(allowance, going, 1, now).to_text())
        gone.append((now, going))
        assert len(spent.slices) <= SLICES + 1
    assert sum(number for at, number in gone if start <= at < start + allowance.seconds) <= 120


# --- the count of records


def test_the_number_of_records_is_kept_with_the_ledger(tmp_path: Path) -> None:
    """New, written again, gone, found only: after every tick the kept number is what counting finds."""
    with opened(tmp_path) as state:
        for number, entries in enumerate([_known("a", "b", "c"), _known("b", "d"), _gone("a", "x"), _gone("b", "c")]):
            state.write(Tick(number, Position(number, 1), ledger=entries))
            assert state.deletes.records("m") == state.deletes._counted("m")
        found = Known("1", (), b"", {}, START, 1.0)
        state.write(Tick(9, Position(9, 1), ledger=[("m", "found", found)]))
        assert (state.deletes.records("m"), state.records("m"), state.records("other")) == (1, 1, 0)


def test_a_file_that_has_no_number_yet_is_counted_once(tmp_path: Path) -> None:
    """Files of before are counted, and go on from there."""
    with opened(tmp_path) as state:
        state.write(Tick(1, Position(1, 1), ledger=_known("a", "b")))
        with state._transaction():
            state._db.execute("DELETE FROM meta WHERE key LIKE 'records:%'")
        assert state.records("m") == 2
        state.write(Tick(2, Position(2, 1), ledger=[*_known("c"), *_gone("a")]))
        assert state.records("m") == state.deletes._counted("m") == 2


def _known(*keys: str) -> list[tuple[str, str, Known | None]]:
    return [("m", key, Known(key, ("A",), b"x" * 8, {}, Position(1, 1), 1.0)) for key in keys]


def _gone(*keys: str) -> list[tuple[str, str, Known | None]]:
    return [("m", key, None) for key in keys]


# --- at work


def keys(number: int) -> list[str]:
    """Name rows."""
    return [f"{one:05}" for one in range(number)]


async def filled(at: Bench, number: int) -> None:
    """Let the CRM hold so many records."""
    at.commit(*(insert(COMPANIES, key, "x") for key in keys(number)))
    await at.settled()


async def paused(at: Bench) -> str:
    """Wait until the mapping is paused, and nothing is in flight; returns the reason, as it is on disk."""
    route = at.route("companies")
    await eventually_async(lambda: route.paused is not None and not route.backlog.in_flight)
    await eventually_async(lambda: "deletes wait, of" in at.state.paused().get("companies", ""))
    return at.state.paused()["companies"]


async def resumed(at: Bench) -> None:
    """Resume the mapping as a command does, and let the daemon hear of it."""
    await at.pipeline.tick()
    assert at.state.resume("companies")
    await at.pipeline._apply_pauses()


def test_a_mass_delete_sends_the_allowance_and_asks_about_the_rest(tmp_path: Path) -> None:
    """Of 2,000 deletes 200 go; the rest waits, and says how many that is. Resumed all go, and the books balance."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            await filled(at, 2_000)
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(2_000)))
            reason = await paused(at)
            assert len(at.crm.keys("Account")) == 1_800
            assert reason.startswith("1,800 deletes wait, of 2,000 records: more than max_deletes")
            assert "cdcsync resume companies" in reason
            assert at.lane.balance() == 0
            await resumed(at)
            await at.settled()
            assert at.crm.keys("Account") == set()

    run(work)


def test_deletes_that_come_back_are_not_counted(tmp_path: Path) -> None:
    """A table that is emptied and filled again in one transaction makes updates."""

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="10 per day")) as at:
            await filled(at, 300)
            gone = [delete(COMPANIES, key, "x") for key in keys(300)]
            at.commit(*gone, *(insert(COMPANIES, key, "y") for key in keys(300)))
            await at.settled()
            assert at.route("companies").paused is None
            assert len(at.crm.keys("Account")) == 300
            assert at.state.deletes.account("companies").spent.deletes == 0

    run(work)


def test_withheld_deletes_can_be_undone_instead(tmp_path: Path) -> None:
    """Rows that are put back while the mapping is paused keep their records: nothing is deleted when it goes on."""

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="0 per day")) as at:
            await filled(at, 50)
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(50)))
            await paused(at)
            at.commit(*(insert(COMPANIES, key, "back") for key in keys(50)))
            await resumed(at)
            await at.settled()
            assert len(at.crm.keys("Account")) == 50
            assert at.lane.totals()["deleted"] == 0

    run(work)


def test_a_resume_lets_go_what_waits_and_nothing_later(tmp_path: Path) -> None:
    """Deletes that come after the resume are asked about again, also behind a restart."""

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="5 per day")) as at:
            await filled(at, 60)
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(30)))
            await paused(at)
            await resumed(at)
            await at.settled()
            assert len(at.crm.keys("Account")) == 30
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(60)[30:]))
            assert (await paused(at)).startswith("30 deletes wait, of ")
            assert len(at.crm.keys("Account")) == 30
        async with bench(tmp_path, companies(max_deletes="5 per day"), crm=at.crm) as again:
            await again.pipeline._apply_pauses()
            again.lane.nudge()
            await asyncio.sleep(0.1)
            assert len(again.crm.keys("Account")) == 30
            await resumed(again)
            await again.settled()
            assert again.crm.keys("Account") == set()

    run(work)


def test_a_resume_of_another_pause_lets_nothing_go(tmp_path: Path) -> None:
    """Who lifts a pause of their own was not told of the deletes that came meanwhile: they are asked about."""

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="5 per day")) as at:
            await filled(at, 30)
            at.state.pause("companies", "by hand", 1.0)
            await at.pipeline._apply_pauses()
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(30)))
            await resumed(at)
            await paused(at)
            assert len(at.crm.keys("Account")) == 25

    run(work)


def test_the_count_survives_restarts(tmp_path: Path) -> None:
    """A daemon that is started again and again, with deletes each time, sends the allowance once."""

    async def work() -> None:
        crm = MemoryCrm()
        async with bench(tmp_path, companies(max_deletes="20 per day"), crm=crm) as at:
            await filled(at, 100)
        for number in range(5):
            async with bench(tmp_path, companies(max_deletes="20 per day"), crm=crm) as at:
                await at.pipeline._apply_pauses()
                at.commit(*(delete(COMPANIES, key, "x") for key in keys(100)[number * 8 : number * 8 + 8]))
                route = at.route("companies")
                await eventually_async(lambda route=route: not len(route.backlog) or route.paused is not None)  # type: ignore[misc]
        assert len(crm.keys("Account")) == 80

    run(work)


class Flaky:
    """Refuses each record's first attempts for a passing reason."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.seen: dict[str, int] = {}

    def __call__(self, batch: Batch, record: Record) -> Outcome | None:
        if batch.op is not Op.DELETE:
            return None
        self.seen[record.key] = self.seen.get(record.key, 0) + 1
        return Retry("LOCKED", "locked") if self.seen[record.key] <= self.attempts else None


def test_a_delete_that_is_sent_again_counts_once(tmp_path: Path) -> None:
    """Locks do not use the allowance up."""

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="20 per day"), crm=MemoryCrm(judge=Flaky(2))) as at:
            await filled(at, 20)
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(20)))
            await at.settled()
            assert at.crm.keys("Account") == set()
            assert at.state.deletes.account("companies").spent.deletes == 20

    run(work)


@pytest.mark.parametrize("on_delete", ["delete", "ignore"])
def test_without_a_guard_all_go(tmp_path: Path, on_delete: str) -> None:
    """``off`` is off; and deletes that are ignored are not asked about."""
    config = companies(on_delete=on_delete, max_deletes="off" if on_delete == "delete" else "0 per day")

    async def work() -> None:
        async with bench(tmp_path, config) as at:
            await filled(at, 200)
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(200)))
            await at.settled()
            assert len(at.crm.keys("Account")) == (0 if on_delete == "delete" else 200)

    run(work)


def test_what_waits_is_told_anew(tmp_path: Path) -> None:
    """Further deletes while the mapping is paused are in the reason some seconds later, which a resume outruns."""

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="0 per day")) as at:
            await filled(at, 50)
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(10)))
            assert (await paused(at)).startswith("10 deletes wait, of 50 records")
            since = at.state.pauses.standing().maps["companies"].since
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(50)[10:]))
            await at.pipeline._apply_pauses()
            at.lane.deletes._retell_at = 0.0
            await at.lane.deletes.retell()
            told = at.state.pauses.standing().maps["companies"]
            assert told.reason.startswith("50 deletes wait, of 50 records")
            assert told.since == since
            assert at.state.resume("companies")
            at.lane.deletes._retell_at = 0.0
            at.lane.deletes._told.clear()
            await at.lane.deletes.retell()
            assert at.state.paused() == {}

    run(work)


def _accounts(state: State, names: Sequence[str]) -> list[int]:
    return [state.deletes.account(name).spent.deletes for name in names]


def test_mappings_have_allowances_of_their_own(tmp_path: Path) -> None:
    """What one mapping deletes leaves another's allowance alone."""
    others = companies(name="others", to="crm.Other", max_deletes="off")

    async def work() -> None:
        async with bench(tmp_path, companies(max_deletes="5 per day"), others) as at:
            at.commit(*(insert(COMPANIES, key, "x") for key in keys(30)))
            await at.settled()
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(30)))
            await paused(at)
            await eventually_async(lambda: at.crm.keys("Other") == set())
            assert _accounts(at.state, ["companies", "others"]) == [5, 0]

    run(work)
