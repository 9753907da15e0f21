"""Records that are kept when their rows are deleted: what is set, once, and what a row that comes back does to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cdcsync.config import MapConfig
from cdcsync.model import Batch, Missing, Op, Outcome, Record, Retry
from tests.polling import eventually_async
from tests.unit.test_deletes import keys, paused, resumed
from tests.unit.test_pipeline import COMPANIES, MemoryCrm, bench, companies, delete, insert, opened, run, update

SET = {"set": {"Active": False, "Name": "(gone)"}, "unset": {"Active": True}}


def kept(**changes: Any) -> MapConfig:
    """Map the parents, and keep the records of those that go."""
    return companies(on_delete=SET, max_deletes="off", **changes)


def test_a_deleted_row_leaves_its_record_and_takes_it_up_again(tmp_path: Path) -> None:
    """The same record: with the tombstone set, then with all fields of the row that came back, the unmapped one too."""

    async def work() -> None:
        async with bench(tmp_path, kept()) as at:
            record = at.crm.records.setdefault(("Account", "1"), {"id": "7"})
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            assert record == {"id": "7", "Name": "a", "Active": True}
            at.commit(delete(COMPANIES, "1", "a"))
            await at.settled()
            assert at.crm.records == {("Account", "1"): {"id": "7", "Name": "(gone)", "Active": False}}
            assert at.lane.totals()["deleted"] == 0
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            assert at.crm.records == {("Account", "1"): {"id": "7", "Name": "a", "Active": True}}

    run(work)


def test_a_tombstone_is_set_once(tmp_path: Path) -> None:
    """Neither a second delete nor a comparison sends it again, also after a restart; the record counts as none."""
    crm = MemoryCrm()
    sent: list[str] = []

    def noted(_: Batch, record: Record) -> Outcome | None:
        sent.append(record.key)
        return None

    async def work() -> None:
        async with bench(tmp_path, kept(backfill=True), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"), insert(COMPANIES, "2", "b"))
            await at.settled()
            at.commit(delete(COMPANIES, "1", "a"))
            await at.settled()
            await at.pipeline.tick()
            assert at.state.records("companies") == at.state.deletes._counted("companies") == 1
        crm.judge = noted
        with opened(tmp_path) as state:
            state.unbind()
        async with bench(tmp_path, kept(backfill=True), crm=crm) as at:
            at.commit(delete(COMPANIES, "1", "a"))
            await at.settled()
            copy = await at.under_way("companies")
            at.commit(update(COMPANIES, ["2", "b"], ["2", "b"]))
            assert await at.pipeline.after_tick(lambda state: state.count_unmet(copy.entry)) == (0, 1)
            await at.pipeline.copies._sweep(copy)
            await at.settled()
            assert sent == []

    run(work)


def test_a_row_that_moved_is_buried_where_its_record_lies(tmp_path: Path) -> None:
    """A change of key and a delete that are folded find the record under its old key, and leave it there."""

    async def work() -> None:
        async with bench(tmp_path, kept()) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.commit(update(COMPANIES, ["1", "a"], ["2", "a"]), delete(COMPANIES, "2", "a"))
            await at.settled()
            assert {key: held["Name"] for (_, key), held in at.crm.records.items()} == {"1": "(gone)"}
            at.commit(insert(COMPANIES, "1", "b"), insert(COMPANIES, "2", "c"))
            await at.settled()
            assert {key: held["Name"] for (_, key), held in at.crm.records.items()} == {"1": "b", "2": "c"}

    run(work)


@pytest.mark.parametrize("written", [False, True])
def test_a_lost_answer_to_a_tombstone_leaves_no_trace_of_it_in_a_row_that_came_back(
    tmp_path: Path, *, written: bool
) -> None:
    """The unmapped field is given back even though the ledger never learned that it was set."""
    crm = MemoryCrm(writes_before_judging=written)

    async def work() -> None:
        async with bench(tmp_path, kept(), crm=crm) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            crm.judge = lambda *_: Retry("LOST", "the test loses the answer")
            at.commit(delete(COMPANIES, "1", "a"))
            await eventually_async(lambda: at.lane.totals()["retries"] > 0)
            at.commit(insert(COMPANIES, "1", "a2"))
            crm.judge = lambda *_: None
            await at.settled()
            assert at.crm.records["Account", "1"]["Active"] is True
            assert at.crm.records["Account", "1"]["Name"] == "a2"

    run(work)


def test_a_record_that_is_gone_needs_no_tombstone(tmp_path: Path) -> None:
    """Nor one that was never written; a person who deleted it in the CRM is not overruled."""

    async def work() -> None:
        async with bench(tmp_path, kept()) as at:
            at.commit(insert(COMPANIES, "1", "a"))
            await at.settled()
            at.crm.judge = lambda batch, _: Missing("gone") if batch.op is Op.UPDATE else None
            at.crm.records.clear()
            at.commit(delete(COMPANIES, "1", "a"), insert(COMPANIES, "2", "b"), delete(COMPANIES, "2", "b"))
            await at.settled()
            assert at.crm.records == {}

    run(work)


def test_tombstones_count_as_deletes_to_the_guard(tmp_path: Path) -> None:
    """An emptied table asks before it marks all records as gone."""

    async def work() -> None:
        async with bench(tmp_path, companies(on_delete=SET, max_deletes="5 per day")) as at:
            at.commit(*(insert(COMPANIES, key, "x") for key in keys(20)))
            await at.settled()
            at.commit(*(delete(COMPANIES, key, "x") for key in keys(20)))
            await paused(at)
            assert _gone(at.crm) == 5
            await resumed(at)
            await at.settled()
            assert _gone(at.crm) == 20

    run(work)


def _gone(crm: MemoryCrm) -> int:
    return sum(held["Name"] == "(gone)" for held in crm.records.values())


@pytest.mark.parametrize(
    ("on_delete", "words"),
    [
        ({"set": {"Active": False}}, "say what Active is while the row lives"),
        ({"set": {"Active": False}, "unset": {"Other": True}}, "unset is for fields of set, which Other is not"),
        ({"set": {"name": "x"}, "unset": {"name": "y"}}, "name is mapped"),
        ({"set": {"Key": "x"}}, "Key is the key"),
        ({"set": {}}, "at least 1"),
        ({"unset": {"A": 1}}, "Field required"),
        ("erase", "'delete', 'ignore' or 'archive'"),
    ],
)
def test_what_would_leave_a_field_without_a_value_is_refused(on_delete: object, words: str) -> None:
    """Each mistake has its sentence."""
    with pytest.raises(ValidationError, match=words):
        companies(on_delete=on_delete)


def test_deletes_that_are_ignored_do_not_go_with_a_truncate_that_deletes() -> None:
    """The two say opposite things."""
    with pytest.raises(ValidationError, match="does not go with"):
        companies(on_delete="ignore", on_truncate="delete")


def test_the_mapping_means_something_else_once_rows_that_live_do() -> None:
    """Values for rows that live are compared when they change; those of deleted ones concern no row that there is."""
    assert companies(on_delete={"set": {"Name": "x"}}).meaning == companies().meaning
    assert kept().meaning != companies().meaning
    assert kept().meaning == companies(on_delete={**SET, "set": {"Active": False, "Name": "other"}}).meaning
