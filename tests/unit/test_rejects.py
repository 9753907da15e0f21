"""Parked rows in a lane at work: tried again by the ladder and by hand, given up, and a mapping that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdcsync import retries
from cdcsync.clock import SystemClock
from cdcsync.coalesce import Refused
from cdcsync.entries import Selection
from cdcsync.ladder import STEP, STEPS
from cdcsync.model import ABSENT, Batch, Change, ChangeKind, Op, Outcome, Record, Rejected
from cdcsync.state import State
from cdcsync.verdicts import LEAST, WINDOW
from cdcsync.wal.decode import join_tuple
from cdcsync.wal.sight import TableSight
from tests.polling import eventually_async
from tests.unit.test_pipeline import (
    COMPANIES,
    PEOPLE,
    Bench,
    MemoryCrm,
    bench,
    companies,
    delete,
    insert,
    people,
    run,
    update,
)

ALL = Selection("companies")


class Wound(SystemClock):
    """The system's clock, whose wall time the test puts forward and back."""

    offset = 0.0

    def time(self) -> float:
        return SystemClock.time() + self.offset


class Refuser:
    """Refuses records by their external key, with a code and a field, and remembers what it judged."""

    def __init__(self, *keys: str, code: str = "BAD", field: str | None = "Name") -> None:
        self.keys = set(keys)
        self.code = code
        self.field = field
        self.everything = False
        self.judged: list[str] = []

    def __call__(self, _: Batch, record: Record) -> Outcome | None:
        self.judged.append(record.key)
        refused = self.everything or record.key in self.keys
        return Rejected(self.code, "not like this", self.field) if refused else None


async def look(at: Bench, *, forward: float = 0.0, clock: Wound | None = None) -> None:
    """Do what a tick does, some time later."""
    if clock is not None:
        clock.offset += forward
    await at.pipeline.tick()
    await at.pipeline._look_at_rejects()
    await at.settled()
    await at.pipeline.tick()


def ask(path: Path, verb: Any, selection: Selection) -> None:
    """Ask for something as the command line does, beside the daemon."""
    beside = State.beside(path / "state.db")
    beside.parked.request(verb, selection, SystemClock.time() + 1e6)
    beside.close()


async def discard(at: Bench, path: Path, selection: Selection = ALL) -> None:
    """Give rows up beside the daemon, and wait until it has done so."""
    ask(path, "discard", selection)
    while at.state.parked.requests():
        await look(at)


def parked(at: Bench, mapping: str = "companies") -> dict[str, Refused | None]:
    """Return how often the parked rows were refused, by key, as the file has it."""
    return {one.row.key: one.row.refused for one in at.state.parked.all(mapping) if not one.discarded}


def times(at: Bench, mapping: str = "companies") -> dict[str, int]:
    """Return how often, alone."""
    return {key: refused.times for key, refused in parked(at, mapping).items() if refused is not None}


# --- the ladder


def test_a_refused_row_is_tried_again_every_twenty_minutes_then_nightly(tmp_path: Path) -> None:
    """It keeps its place over tries and restarts, knows since when it is parked, and is gone once the CRM takes it."""
    clock, refuser = Wound(), Refuser("1")
    crm = MemoryCrm(judge=refuser)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm, clock=clock) as at:
            at.commit(insert(COMPANIES, "1", "a"), insert(COMPANIES, "2", "b"))
            await at.settled()
            await look(at)
            (first,) = parked(at).values()
            assert refuser.judged == ["1", "2"]
            for tries in range(2, 5):
                await look(at, clock=clock, forward=0.8 * STEP)
                assert times(at) == {"1": tries - 1}
                await look(at, clock=clock, forward=0.4 * STEP)
                assert times(at) == {"1": tries}
        async with bench(tmp_path, companies(), crm=crm, clock=clock) as at:
            assert at.lane.rejected == 1
            for tries in range(5, STEPS + 2):
                await look(at, clock=clock, forward=1.2 * STEP)
                assert times(at) == {"1": tries}
            (again,) = parked(at).values()
            assert first is not None
            assert again is not None
            assert again.since == pytest.approx(first.since)
            refuser.keys.clear()
            await look(at, clock=clock, forward=30 * 3600)
            assert at.lane.rejected == 0
            assert at.crm.keys("Account") == {"1", "2"}
            assert not at.route("companies").reasons

    run(work)


def test_the_rows_next_change_starts_afresh(tmp_path: Path) -> None:
    """A change of the row, refused as well, is at the foot of the ladder, whatever the row went through before."""
    clock, refuser = Wound(), Refuser("1")

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser), clock=clock) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            for _ in range(3):
                await look(at, clock=clock, forward=1.2 * STEP)
            assert times(at) == {"1": 4}
            at.commit(update(COMPANIES, ["1", "a"], ["1", "b"]))
            await look(at)
            assert times(at) == {"1": 1}

    run(work)


def test_a_row_that_was_being_tried_when_the_daemon_died_keeps_its_place(tmp_path: Path) -> None:
    """The journal has it with its refusals; it does not begin anew on the ladder."""
    clock, refuser = Wound(), Refuser("1")
    crm = MemoryCrm(judge=refuser)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm, clock=clock) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            await look(at, clock=clock, forward=1.2 * STEP)
            at.route("companies").paused = "by the test"
            ask(tmp_path, "retry", ALL)
            await look(at)
            assert times(at) == {"1": 2}
            at.route("companies").paused = None
            at.route("companies").active = 1 << 30  # and none of it goes out
            await at.pipeline._look_at_rejects()
            await at.pipeline.tick()
            assert at.state.pending() == {"companies": 1}
            assert not parked(at)
            at.route("companies").active = 0
            at.route("companies").paused = "by the test"
        async with bench(tmp_path, companies(), crm=crm, clock=clock) as at:
            await at.settled()
            await at.pipeline.tick()
            assert times(at) == {"1": 3}

    run(work)


def test_a_clock_that_jumps_makes_no_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year forward, and all are due: they go a bounded number at a time, those with one reason together. So back."""
    monkeypatch.setattr(retries, "AT_ONCE", 10)
    clock, refuser = Wound(), Refuser()
    refuser.everything = True

    def judge(batch: Batch, record: Record) -> Outcome | None:
        refuser.code = "ODD" if int(record.key) % 2 else "EVEN"
        return refuser(batch, record)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=judge), clock=clock) as at:
            at.commit(*(insert(COMPANIES, str(number), "a") for number in range(30)))
            await at.settled()
            for jump in (365 * 86_400, -365 * 86_400):
                refuser.judged.clear()
                await look(at, clock=clock, forward=jump)
                assert len(refuser.judged) == 10
                for _ in range(4):
                    await look(at)
                assert sorted(refuser.judged, key=int) == [str(number) for number in range(30)]
                runs = [len(list(run)) for _, run in itertools.groupby(refuser.judged, lambda key: int(key) % 2)]
                assert len(runs) == 2, refuser.judged

    run(work)


def test_a_paused_mapping_and_a_crm_that_is_down_keep_their_rejects(tmp_path: Path) -> None:
    """They are not taken up to wait elsewhere; they are due when the pause is lifted and the CRM answers."""
    clock, refuser = Wound(), Refuser("1")

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser), clock=clock) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.route("companies").paused = "by the test"
            await look(at, clock=clock, forward=2 * STEP)
            at.route("companies").paused = None
            at.route("companies").backoff.until = at.pipeline.clock.monotonic() + 60
            await look(at)
            assert refuser.judged == ["1"]
            at.route("companies").backoff.until = 0.0
            await look(at)
            assert refuser.judged == ["1", "1"]

    run(work)


def test_an_orphan_goes_when_others_have_made_its_parent(tmp_path: Path) -> None:
    """Its parent is no row of ours: nothing but the ladder can find out that the CRM has it by now."""
    clock = Wound()
    child = people(fields={"Name": "name"}, associate=[{"to": "crm.Account", "column": "company", "type": "works_at"}])

    async def work() -> None:
        async with bench(tmp_path, companies(), child, clock=clock) as at:
            at.commit(insert(PEOPLE, "7", "x", "theirs"))
            await at.settled()
            assert at.lane.rejected == 1
            at.crm.records["Account", "theirs"] = {"id": "Account-theirs"}
            await look(at, clock=clock, forward=1.2 * STEP)
            assert at.lane.rejected == 0
            assert at.crm.keys("Contact") == {"7"}

    run(work)


def test_rejects_cost_no_look_at_the_file_before_they_are_due(tmp_path: Path) -> None:
    """A look asks the file nothing while the next due time is ahead."""

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=Refuser("1"))) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            await at.pipeline.tick()
            statements: list[str] = []
            at.state._db._db.set_trace_callback(statements.append)
            await at.lane.rejects.retries.look()
            assert statements == []

    run(work)


# --- by hand


@pytest.mark.parametrize(
    ("selection", "tried"),
    [
        (ALL, ["1", "2", "3"]),
        (Selection("companies", code="OTHER"), ["3"]),
        (Selection("companies", field="Name"), ["1", "2"]),
        (Selection("companies", keys=("2", "nobody")), ["2"]),
        (Selection("companies", code="BAD", field="Name", keys=("1", "3")), ["1"]),
    ],
)
def test_rows_are_retried_by_hand(tmp_path: Path, selection: Selection, tried: Sequence[str]) -> None:
    """All, by code, by field, by key: they are tried within a tick, and nothing else is."""
    refuser = Refuser("1", "2")
    crm = MemoryCrm(judge=lambda batch, record: refuser(batch, record) or other(record))

    def other(record: Record) -> Outcome | None:
        return Rejected("OTHER", "neither like this", None) if record.key == "3" else None

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.commit(*(insert(COMPANIES, key, "a") for key in "1234"))
            await at.settled()
            await at.pipeline.tick()
            refuser.judged.clear()
            ask(tmp_path, "retry", selection)
            await look(at)
            assert sorted(refuser.judged) == tried
            assert at.state.parked.requests() == []

    run(work)


def test_what_was_asked_for_while_the_daemon_was_down_is_done_at_its_start(tmp_path: Path) -> None:
    """Requests stand in the state file, and a run that drains waits for them."""
    refuser = Refuser("1", "2")
    crm = MemoryCrm(judge=refuser)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"), insert(COMPANIES, "2", "a"))
            await at.settled()
        ask(tmp_path, "discard", Selection("companies", keys=("1",)))
        ask(tmp_path, "retry", ALL)
        refuser.keys.clear()
        async with bench(tmp_path, companies(), crm=crm) as at:
            looks = 0
            while at.pipeline.retrying:
                await look(at)
                looks += 1
            assert looks > 0
            assert at.crm.keys("Account") == {"2"}
            assert at.lane.rejected == 0
            assert at.lane.totals()["discarded"] == 1

    run(work)


def test_requests_for_a_mapping_of_another_lane_are_left_alone(tmp_path: Path) -> None:
    """Whose mapping is not configured now finds its request when it is again."""

    async def work() -> None:
        async with bench(tmp_path, companies()) as at:
            ask(tmp_path, "discard", Selection("elsewhere"))
            await look(at)
            assert not at.pipeline.retrying
            assert [one.selection.mapping for one in at.state.parked.requests()] == ["elsewhere"]

    run(work)


# --- giving rows up


def test_a_discarded_row_that_the_crm_never_had_leaves_nothing(tmp_path: Path) -> None:
    """It is in the balance, also after a restart; its next change goes as if it were the first."""
    refuser = Refuser("1")
    crm = MemoryCrm(judge=refuser)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"), insert(COMPANIES, "2", "a"))
            await at.settled()
            await at.pipeline.tick()
            await discard(at, tmp_path)
            assert list(at.state.parked.all("companies")) == []
            assert (at.lane.rejected, at.lane.totals()["discarded"]) == (0, 1)
        async with bench(tmp_path, companies(), crm=crm) as at:
            assert at.lane.balance() == 0
            refuser.keys.clear()
            at.commit(update(COMPANIES, ["1", "a"], ["1", "b"]))
            await at.settled()
            assert at.crm.records["Account", "1"]["Name"] == "b"

    run(work)


def test_rows_refused_after_the_request_are_not_given_up(tmp_path: Path) -> None:
    """A person means what was there to be seen."""

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=Refuser("1"))) as at:
            at.state.parked.request("discard", ALL, SystemClock.time() - 1)
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            while at.state.parked.requests():
                await look(at)
            assert times(at) == {"1": 1}

    run(work)


@pytest.mark.parametrize("restart", [False, True])
def test_the_change_after_a_discarded_one_carries_what_that_one_changed(tmp_path: Path, *, restart: bool) -> None:
    """A large value came with the change that was given up, and does not come again: it is not lost to the CRM."""
    refuser = Refuser()
    crm = MemoryCrm(judge=refuser)
    wide = companies(fields={"Name": "name", "Again": "id"})

    async def work() -> None:
        async with bench(tmp_path, wide, crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "small"))
            await at.settled()
            refuser.keys.add("1")
            at.commit(update(COMPANIES, ["1", "small"], ["1", "large"]))
            await at.settled()
            await at.pipeline.tick()
            await discard(at, tmp_path)
            assert (at.lane.rejected, at.state.parked.count("companies"), parked(at)) == (0, 0, {})
            assert at.state.parked.groups() == []
            refuser.keys.clear()
            if not restart:
                at.commit(Change(ChangeKind.UPDATE, COMPANIES, join_tuple([b"1", ABSENT])))
                await at.settled()
                assert at.crm.records["Account", "1"]["Name"] == "large"
        if restart:
            async with bench(tmp_path, wide, crm=crm) as at:
                assert (at.lane.rejected, at.lane.balance()) == (0, 0)
                at.commit(Change(ChangeKind.UPDATE, COMPANIES, join_tuple([b"1", ABSENT])))
                await at.settled()
                assert at.crm.records["Account", "1"]["Name"] == "large"

    run(work)


def test_a_discarded_row_is_not_tried_again_until_it_changes(tmp_path: Path) -> None:
    """Neither the ladder nor a retry by hand, nor the coming of a parent, takes up what is left of it."""
    clock, refuser = Wound(), Refuser()

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser), clock=clock) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            refuser.keys.add("1")
            at.commit(update(COMPANIES, ["1", "a"], ["1", "b"]))
            await at.settled()
            await at.pipeline.tick()
            await discard(at, tmp_path)
            refuser.judged.clear()
            ask(tmp_path, "retry", ALL)
            await look(at, clock=clock, forward=1e6)
            await at.lane.rejects.readmit_unchanged(at.route("companies"), "1")
            await look(at)
            assert refuser.judged == []

    run(work)


def test_a_discarded_key_change_moves_the_record_later(tmp_path: Path) -> None:
    """The record still stands under the old key: the row's next change moves it, and makes no second one."""
    refuser = Refuser()

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser)) as at:
            at.commit(insert(COMPANIES, "old", "a"))
            await at.settled()
            before = at.crm.records["Account", "old"]["id"]
            refuser.keys.add("new")
            at.commit(update(COMPANIES, ["old", "a"], ["new", "a"]))
            await at.settled()
            await at.pipeline.tick()
            await discard(at, tmp_path)
            assert at.crm.keys("Account") == {"old"}
            refuser.keys.clear()
            at.commit(update(COMPANIES, ["new", "a"], ["new", "b"]))
            await at.settled()
            assert at.crm.records == {("Account", "new"): {"id": before, "Name": "b"}}

    run(work)


def test_a_row_that_comes_to_a_discarded_ones_old_key_does_not_take_its_record(tmp_path: Path) -> None:
    """The record has to leave that key first: what was given up is tried again, and each row has its own record."""
    refuser = Refuser()

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser)) as at:
            at.commit(insert(COMPANIES, "old", "a"))
            await at.settled()
            before = at.crm.records["Account", "old"]["id"]
            refuser.keys.add("new")
            at.commit(update(COMPANIES, ["old", "a"], ["new", "a"]))
            await at.settled()
            await at.pipeline.tick()
            await discard(at, tmp_path)
            refuser.keys.clear()
            at.commit(insert(COMPANIES, "old", "another"))
            await at.settled()
            assert at.crm.records["Account", "new"] == {"id": before, "Name": "a"}
            assert at.crm.records["Account", "old"]["Name"] == "another"

    run(work)


def test_a_discarded_delete_leaves_the_record_to_a_row_that_comes_back(tmp_path: Path) -> None:
    """The record stays; the same key, inserted again, is written to it, and deleted again it goes."""
    refused = [True]
    crm = MemoryCrm(
        judge=lambda batch, _: Rejected("HAS_CHILDREN", "no") if batch.op is Op.DELETE and refused[0] else None
    )

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.commit(delete(COMPANIES, "1", "a"))
            await at.settled()
            await at.pipeline.tick()
            await discard(at, tmp_path)
            assert at.crm.keys("Account") == {"1"}
            at.commit(insert(COMPANIES, "1", "b"))
            await at.settled()
            assert at.crm.records["Account", "1"]["Name"] == "b"
            refused[0] = False
            at.commit(delete(COMPANIES, "1", "b"))
            await at.settled()
            assert at.crm.keys("Account") == set()

    run(work)


def test_children_of_a_discarded_parent_are_judged_without_it(tmp_path: Path) -> None:
    """They were parked because the parent was; they go to the CRM, whose word on them counts from then on."""
    refuser = Refuser("1")
    crm = MemoryCrm(judge=lambda batch, record: refuser(batch, record) if batch.target.object == "Account" else None)

    async def work() -> None:
        async with bench(tmp_path, companies(), people(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"), insert(PEOPLE, "7", "x", "1"))
            await at.settled()
            assert at.lane.rejected == 2
            await at.pipeline.tick()
            await discard(at, tmp_path)
            await eventually_async(lambda: at.crm.keys("Contact") == {"7"})
            await at.settled()
            assert (at.lane.rejected, at.lane.totals()["discarded"]) == (0, 1)

    run(work)


def test_a_discard_beside_a_waiting_change_lets_that_one_go(tmp_path: Path) -> None:
    """The row changed while its mapping was paused, and its refused state is given up meanwhile."""
    refuser = Refuser("1")

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser)) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            await at.pipeline.tick()
            at.route("companies").paused = "by the test"
            at.commit(update(COMPANIES, ["1", "a"], ["1", "b"]))
            ask(tmp_path, "discard", ALL)
            for _ in range(2):
                await at.pipeline.tick()
                await at.pipeline._look_at_rejects()
                at.route("companies").paused = "by the test"
            refuser.keys.clear()
            at.route("companies").paused = None
            at.lane.nudge()
            await at.settled()
            assert at.crm.records["Account", "1"]["Name"] == "b"
            assert at.lane.totals()["discarded"] == 1

    run(work)


# --- a mapping that is wrong


def test_a_mapping_of_which_most_is_refused_pauses(tmp_path: Path) -> None:
    """The reason names the most frequent code and field and what to run; resumed, the count starts afresh."""
    refuser = Refuser()
    refuser.everything = True

    async def work() -> None:
        async with bench(tmp_path, companies(), people(), crm=MemoryCrm(judge=refuser)) as at:
            at.commit(*(insert(COMPANIES, str(number), "a") for number in range(10 * LEAST)))
            await eventually_async(lambda: at.route("companies").paused)
            await eventually_async(lambda: not at.route("companies").backlog.in_flight)
            reason = at.route("companies").paused or ""
            assert f"{LEAST} of the last {LEAST} records were refused, most often with BAD for Name" in reason
            for command in ("rejects list", "resume companies", "rejects retry companies"):
                assert f"cdcsync {command}" in reason
            assert len(refuser.judged) <= 4 * 100  # what the lane's four requests had under way
            assert at.route("people").paused is None
            await at.pipeline.tick()
            assert at.state.paused()["companies"] == reason
            assert at.lane.balance() == 0

            before, refuser.everything = len(refuser.judged), False
            at.state.resume("companies")
            await at.pipeline._apply_pauses()
            await at.settled()
            assert len(refuser.judged) == 10 * LEAST > before
            assert at.route("companies").paused is None
            ask(tmp_path, "retry", ALL)
            await look(at)
            assert at.lane.rejected == 0

    run(work)


def test_tries_of_refused_rows_and_orphans_say_nothing_of_the_mapping(tmp_path: Path) -> None:
    """A thousand retries that fail again, or children without parents, pause nothing."""
    clock = Wound()
    refuser = Refuser(*map(str, range(LEAST - 1)))
    child = people(fields={"Name": "name"}, associate=[{"to": "crm.Account", "column": "company", "type": "works_at"}])

    async def work() -> None:
        async with bench(tmp_path, companies(), child, crm=MemoryCrm(judge=refuser), clock=clock) as at:
            at.commit(*(insert(COMPANIES, str(number), "a") for number in range(LEAST - 1)))
            at.commit(*(insert(PEOPLE, str(number), "a", "nobody") for number in range(2 * LEAST)))
            await at.settled()
            for _ in range(5):
                await look(at, clock=clock, forward=1.2 * STEP)
            assert len(refuser.judged) > 5 * (LEAST - 1)
            assert [route.paused for route in at.lane.routes] == [None, None]
            at.commit(insert(COMPANIES, "good", "a"))
            await at.settled()
            assert at.route("companies").paused is not None  # a hundred were judged, and one was taken

    run(work)


def test_a_good_share_keeps_a_mapping_going(tmp_path: Path) -> None:
    """Not quite half of the records, spread among the others, are refused for as long as anybody likes."""
    refuser = Refuser(*(str(number) for number in range(4 * WINDOW) if number % 20 < 9))

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=MemoryCrm(judge=refuser)) as at:
            at.commit(*(insert(COMPANIES, str(number), "a") for number in range(4 * WINDOW)))
            await at.settled()
            assert at.route("companies").paused is None

    run(work)


def test_rejects_of_a_mapping_that_was_changed_are_tried_at_the_next_start(tmp_path: Path) -> None:
    """Not those of one that means what it did: they stay where they are on the ladder."""
    refuser = Refuser("1")
    crm = MemoryCrm(judge=refuser)

    async def work() -> None:
        async with bench(tmp_path, companies(), crm=crm) as at:
            at.pipeline.adopt(at.route("companies"), TableSight(COMPANIES, columns={"id": "1", "name": "2"}), None)
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
        async with bench(tmp_path, companies(), crm=crm) as at:
            await look(at)
            assert refuser.judged == ["1"]
        async with bench(tmp_path, companies(fields={"Title": "name"}), crm=crm) as at:
            refuser.keys.clear()
            assert at.pipeline.retrying
            await look(at)
            assert at.crm.records["Account", "1"]["Title"] == "a"

    run(work)
