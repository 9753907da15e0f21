"""Which result or error of a batch answer belongs to which record."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcsync.apply.hubspot_links import Tie, changes
from cdcsync.apply.hubspot_rows import sort
from cdcsync.errors import FatalError
from cdcsync.model import Applied, Batch, Link, Missing, Op, Record, Rejected, Retry, Target

CONTACTS = Target("contacts", "email")


def upsert(*keys: str) -> Batch:
    """Give an upsert of contacts by e-mail."""
    return Batch(CONTACTS, Op.UPSERT, tuple(Record(key) for key in keys))


def result(key: str, crm_id: str, *, new: bool = False) -> dict[str, Any]:
    """Give a result as upsert answers it."""
    return {"id": crm_id, "properties": {"email": key}, "new": new}


def error(trace: int, category: str = "VALIDATION_ERROR") -> dict[str, Any]:
    """Give a row error of a 207."""
    return {"status": "error", "category": category, "message": "no", "context": {"objectWriteTraceId": [str(trace)]}}


@given(st.lists(st.sampled_from(["new", "old", "bad"]), min_size=1, max_size=30), st.randoms())
def test_any_mix_in_any_order_finds_its_records(kinds: list[str], shuffle: random.Random) -> None:
    """Results come in any order; each record gets its own outcome, and nothing is stray."""
    batch = upsert(*(f"Person{place}@Example.com" for place in range(len(kinds))))
    results = [
        result(f"person{place}@example.com", str(place), new=kind == "new")
        for place, kind in enumerate(kinds)
        if kind != "bad"
    ]
    errors = [error(place) for place, kind in enumerate(kinds) if kind == "bad"]
    shuffle.shuffle(results)
    shuffle.shuffle(errors)
    answer = sort(batch, {"results": results, "errors": errors})
    expected = {
        place: Rejected("VALIDATION_ERROR", "no") if kind == "bad" else Applied(str(place), created=kind == "new")
        for place, kind in enumerate(kinds)
    }
    assert answer.outcomes == expected
    assert not answer.stray


def test_gaps_and_strays_are_told_apart() -> None:
    """A record that nothing names has no outcome; an entry that no record claims is reported as stray."""
    assert sort(upsert("a@x.com", "b@x.com"), {"results": [result("a@x.com", "1")]}).stray is False
    strange = sort(upsert("a@x.com", "b@x.com"), {"results": [result("a@x.com", "1"), result("other@x.com", "2")]})
    assert strange.stray
    assert strange.outcomes.keys() == {0}


def test_alone_every_entry_is_the_records_own() -> None:
    """A contact found by its second address answers with its first one; sent alone it is settled all the same."""
    assert sort(upsert("second@x.com"), {"results": [result("first@x.com", "7")]}).outcomes == {0: Applied("7")}
    nameless = {"category": "CONFLICT", "message": "no"}
    assert sort(upsert("a@x.com"), {"errors": [nameless]}).outcomes == {0: Rejected("CONFLICT", "no")}


def test_vanished_records_of_an_update_are_missing() -> None:
    """HubSpot groups the ids that it does not know into one error."""
    batch = Batch(CONTACTS, Op.UPDATE, tuple(Record(f"{n}@x.com", crm_id=str(n), rekeyed=True) for n in range(3)))
    grouped = {"category": "OBJECT_NOT_FOUND", "message": "gone", "context": {"ids": ["0", "2"]}}
    outcomes = sort(batch, {"results": [{"id": "1", "properties": {}}], "errors": [grouped]}).outcomes
    assert outcomes == {0: Missing("gone"), 1: Applied("1"), 2: Missing("gone")}


def test_an_update_that_keeps_the_key_is_found_by_it() -> None:
    """The ids that the ledger has play no part: the answer may have others, and errors name what was asked for."""
    batch = Batch(Target("contacts", "number"), Op.UPDATE, tuple(Record(f"k{n}", crm_id=str(n)) for n in range(3)))
    grouped = {"category": "OBJECT_NOT_FOUND", "message": "gone", "context": {"ids": ["k2"]}}
    results = [{"id": "0", "properties": {"number": "k1"}}, {"id": "9", "properties": {"number": "k0"}}]
    outcomes = sort(batch, {"results": results, "errors": [grouped]}).outcomes
    assert outcomes == {0: Applied("9"), 1: Applied("0"), 2: Missing("gone")}


def test_passing_row_errors_are_to_be_retried() -> None:
    """A row that is locked now is not rejected."""
    assert sort(upsert("a@x.com"), {"errors": [error(0, "LOCKED")]}).outcomes == {0: Retry("LOCKED", "no")}


def test_a_row_error_of_the_mapping_is_fatal() -> None:
    """A property that does not exist fails every row, so it is no reject."""
    details = {"code": "PROPERTY_DOESNT_EXIST", "message": "x", "context": {"propertyName": ["x"]}}
    with pytest.raises(FatalError, match="x"):
        sort(upsert("a@x.com"), {"errors": [error(0) | {"errors": [details]}]})


@pytest.mark.parametrize("body", [{}, {"results": None, "errors": None}, {"results": [7, {}], "errors": ["x"]}])
def test_nonsense_settles_nothing(body: dict[str, Any]) -> None:
    """Bodies without usable entries leave the record without outcome, and raise nothing."""
    assert sort(upsert("a@x.com"), body).outcomes == {}


def test_association_changes_follow_the_applied_records() -> None:
    """Former ends are archived and new ones made, for applied records only, grouped by the other object."""
    records = (
        Record("a", links=(Link("companies", "contact_to_company", "c1", ("c0", "c1")), Link("deals", "x", "d1"))),
        Record("b", links=(Link("companies", "contact_to_company", None, ("c2",)),)),
        Record("c", links=(Link("companies", "contact_to_company", "c3"),)),
    )
    outcomes = (Applied("1"), Applied("2"), Rejected("X", "no"))
    companies, deals = changes(records, outcomes)
    assert companies.to_object == "companies"
    assert companies.archive == [Tie(0, "1", "c0", "contact_to_company"), Tie(1, "2", "c2", "contact_to_company")]
    assert companies.create == [Tie(0, "1", "c1", "contact_to_company")]
    assert (deals.archive, deals.create) == ([], [Tie(0, "1", "d1", "x")])
