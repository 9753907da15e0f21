"""What is decided for a row, case by case; ``test_backlog`` has the whole machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdcsync.coalesce import PendingRow
from cdcsync.entries import Known
from cdcsync.mappers.compile import Mapped, WantedLink
from cdcsync.mappers.values import field_hash
from cdcsync.model import START, Applied, Column, Link, Op, Relation
from cdcsync.plan import Facts, Shape, decide, redraft
from cdcsync.tombstone import Tombstone

RELATION = Relation(1, "public", "t", "d", (Column("id", 23, -1, True), Column("a", 25, -1, False)))
ROW = PendingRow("k", RELATION, b"", deleted=False, base="k", first=START, last=START, since=0.0, latest=0.0)
MAPPED = Mapped("k", {"A": "x"}, (), (), ())
SAME = Known("7", ("A",), field_hash("x"), {}, START, 0.0)


def test_a_write_that_changes_nothing_is_suppressed() -> None:
    """Equal hashes are the ledger's word, and it counts only for a row that is certain."""
    facts = Facts({"k": SAME})
    assert decide([ROW], {"k": MAPPED}, facts, Shape(("A",))).nothing == [ROW]
    doubtful = replace(ROW, uncertain=True)
    (draft,) = decide([doubtful], {"k": MAPPED}, facts, Shape(("A",))).drafts
    assert draft.op is Op.UPSERT


def test_a_key_change_of_an_unknown_record_asks_the_crm() -> None:
    """A copied row whose settling was lost is held by the CRM under its old key: no second record is made for it."""
    moved = replace(ROW, base="old")
    assert decide([moved], {"k": MAPPED}, Facts({}), Shape(("A",))).ask == [moved]
    (draft,) = decide([moved], {"k": MAPPED}, Facts({}, {"old": "9"}, asked={"k"}), Shape(("A",))).drafts
    assert (draft.op, draft.record.crm_id) == (Op.UPDATE, "9")
    (draft,) = decide([moved], {"k": MAPPED}, Facts({}, {}, asked={"k"}), Shape(("A",))).drafts
    assert draft.op is Op.UPSERT


def test_a_fresh_row_that_changed_its_key_is_not_asked_for() -> None:
    """Inserted and renamed before anything was sent: the CRM cannot have it."""
    (draft,) = decide([replace(ROW, base=None)], {"k": MAPPED}, Facts({}), Shape(("A",))).drafts
    assert draft.op is Op.UPSERT


def test_the_record_that_the_ledger_knows_counts_when_the_crm_is_asked() -> None:
    """It is found by its id, under whichever key; the one under another key is another record, and stays."""
    row = replace(ROW, base="first", tried=("second",), uncertain=True)
    facts = Facts({"first": SAME}, {"first": "7", "k": "2"}, asked={"k"})
    (draft,) = decide([row], {"k": MAPPED}, facts, Shape(("A",))).drafts
    assert (draft.op, draft.record.crm_id) == (Op.UPDATE, "7")
    facts = Facts({}, {"first": "1", "second": "2"}, asked={"k"})
    (draft,) = decide([row], {"k": MAPPED}, facts, Shape(("A",))).drafts
    assert (draft.op, draft.record.crm_id) == (Op.UPDATE, "2"), "the last key that was tried"


def test_a_delete_is_of_the_row_s_own_record() -> None:
    """A record under the key that the row had last, which the row never had in the CRM, is not touched."""
    row = replace(ROW, key="k", deleted=True, base="old", uncertain=True)
    plan = decide([row], {}, Facts({}, {"k": "9"}, asked={"k"}), Shape(("A",)))
    assert plan.nothing == [row]
    (draft,) = decide([row], {}, Facts({}, {"k": "9", "old": "7"}, asked={"k"}), Shape(("A",))).drafts
    assert draft.record.crm_id == "7"


@pytest.mark.parametrize(("base", "tried", "asks"), [(None, (), False), ("k", (), True), (None, ("k",), True)])
def test_a_delete_of_an_unknown_record(*, base: str | None, tried: tuple[str, ...], asks: bool) -> None:
    """Nothing is sent for a row that came and went unseen; any other unknown one is looked up first."""
    row = replace(ROW, deleted=True, base=base, tried=tried, uncertain=bool(tried))
    plan = decide([row], {}, Facts({}), Shape(("A",)))
    assert (plan.ask, plan.nothing) == (([row], []) if asks else ([], [row]))
    assert decide([row], {}, Facts({}, {}, asked={"k"}), Shape(("A",))).nothing == [row]


def test_no_record_is_made_from_part_of_a_row() -> None:
    """Unchanged large values are not in the stream: such a row is rejected with the way out, not written with holes."""
    part = MAPPED._replace(fields={}, absent=("A",))
    ((_, rejected),) = decide([ROW], {"k": part}, Facts({}), Shape(("A",))).rejected
    assert (rejected.code, rejected.field) == ("incomplete-row", "A")
    moved = replace(ROW, base="old", uncertain=True)
    gone = Facts({"old": SAME}, {}, asked={"k"})
    ((_, rejected),) = decide([moved], {"k": part}, gone, Shape(("A",))).rejected
    assert rejected.code == "incomplete-row", "the ledger knows a record that is not there any more"
    known = Facts({"k": SAME})
    assert decide([ROW], {"k": part}, known, Shape(("A",))).nothing == [ROW]
    ((_, rejected),) = decide([replace(ROW, whole=True)], {"k": part}, known, Shape(("A",))).rejected
    assert rejected.code == "incomplete-row"


def test_a_part_goes_by_the_id_of_the_record_that_was_found() -> None:
    """By its key it might make a record from a part, where somebody has deleted that one since it was looked up."""
    part = MAPPED._replace(absent=("B",))
    (draft,) = decide(
        [replace(ROW, uncertain=True)], {"k": part}, Facts({"k": SAME}, {"k": "7"}, asked={"k"}), Shape(("A", "B"))
    ).drafts
    assert (draft.op, draft.record.crm_id) == (Op.UPDATE, "7")


def test_a_field_left_for_later_is_not_believed_after_a_lost_answer() -> None:
    """What the ledger says of it is of before the attempt: the row's second pass has to send it."""
    known, uncertain = Facts({"k": SAME}, later={"k": {"A"}}), replace(ROW, uncertain=True)
    (draft,) = decide([uncertain], {"k": MAPPED}, known, Shape(("A",))).drafts
    assert draft.unfinished
    assert draft.hashes != SAME.hashes
    (draft,) = decide([ROW], {"k": MAPPED}, known, Shape(("A",))).drafts
    assert draft.hashes == SAME.hashes


def test_a_link_left_for_later_is_not_believed_after_a_lost_answer() -> None:
    """The ledger forgets it, and what it may have led to is handed on to the row's second pass."""
    mapped = MAPPED._replace(links=(WantedLink("T", "of", "k"),))
    known = replace(SAME, links={"T:of": "5"})
    facts = Facts({"k": known}, later={"k": {"T:of"}})
    (draft,) = decide([replace(ROW, uncertain=True)], {"k": mapped}, facts, Shape(("A",))).drafts
    assert (draft.unfinished, dict(draft.links), dict(draft.doubted)) == (True, {}, {"T:of": "5"})
    (draft,) = decide([ROW], {"k": mapped}, facts, Shape(("A",))).drafts
    assert (dict(draft.links), dict(draft.doubted)) == ({"T:of": "5"}, {})


def test_a_link_replaces_every_one_that_may_have_been_made() -> None:
    """After a lost answer two earlier targets may be linked; both are removed, and the link that must be is made."""
    mapped = MAPPED._replace(links=(WantedLink("companies", "c", "acme"),))
    known = replace(SAME, links={"companies:c": "1"})
    facts = Facts({"k": known}, ids={("k", "companies:c"): "3"}, sent_links={("k", "companies:c"): frozenset({"2"})})
    (draft,) = decide([ROW], {"k": mapped}, facts, Shape(("A",))).drafts
    assert draft.record.links == (Link("companies", "c", "3", ("1", "2")),)
    assert draft.links == {"companies:c": "3"}


def test_where_ids_merge_a_record_is_the_row_s_if_it_has_its_key() -> None:
    """The ledger's id may mean the record that the row's own was merged into: it neither goes nor gets another key."""
    deleted, moved = replace(ROW, deleted=True), replace(ROW, base="old")
    for row, place in ((deleted, "k"), (moved, "old")):
        facts = Facts({place: SAME}, ids_merge=True)
        assert decide([row], {"k": MAPPED}, facts, Shape(("A",))).ask == [row]
        assert not decide([row], {"k": MAPPED}, replace(facts, ids_merge=False), Shape(("A",))).ask
        (draft,) = decide([row], {"k": MAPPED}, replace(facts, asked={"k"}, found={place: "8"}), Shape(("A",))).drafts
        assert draft.record.crm_id == "8", "its own, by the id that it has since it took another one in"
        plan = decide([row], {"k": MAPPED}, replace(facts, asked={"k"}, found={}), Shape(("A",)))
        if row is deleted:
            assert plan.nothing == [row]
        else:
            assert [(draft.op, draft.record.crm_id) for draft in plan.drafts] == [(Op.UPSERT, None)]
    kept = Shape(("A",), tombstone=Tombstone({"Gone": True}))
    (draft,) = decide([deleted], {}, Facts({"k": SAME}, ids_merge=True), kept).drafts
    assert (draft.op, draft.record.key, draft.record.rekeyed) == (Op.UPDATE, "k", False), "which goes by the key"
    assert not draft.replaced_by(Applied("8")), "a deleted row has nothing more to send"
    late = replace(ROW, base=None, deleted=True)
    assert decide([late], {}, Facts({"k": SAME}, ids_merge=True), Shape(("A",))).ask == [late]
    (draft,) = decide([late], {}, Facts({"k": SAME}, {"k": "7"}, {"k"}, ids_merge=True), Shape(("A",))).drafts
    assert draft.record.crm_id == "7"


def test_a_key_change_of_a_row_whose_fields_are_the_crm_s_own_asks_too() -> None:
    """What is in the record is one question, whether it is the row's another."""
    moved = replace(ROW, base="old")
    shape = Shape(("A",), frozenset({"A"}))
    assert decide([moved], {"k": MAPPED}, Facts({"old": SAME}, ids_merge=True), shape).ask == [moved]


def test_an_update_says_whether_the_key_changes() -> None:
    """Only then the id alone tells the record: found under its new key already, it has that."""
    known, shape = replace(SAME, hashes=b"", fields=()), Shape(("A",))
    (draft,) = decide([ROW], {"k": MAPPED}, Facts({"k": known}), shape).drafts
    assert (draft.op, draft.record.rekeyed) == (Op.UPDATE, False)
    moved = replace(ROW, base="old")
    (draft,) = decide([moved], {"k": MAPPED}, Facts({"old": known}), shape).drafts
    assert (draft.op, draft.record.rekeyed) == (Op.UPDATE, True)
    (draft,) = decide([moved], {"k": MAPPED}, Facts({"old": known}, {"k": "7"}, {"k"}), shape).drafts
    assert (draft.op, draft.record.rekeyed) == (Op.UPDATE, False)
    (draft,) = decide([moved], {"k": MAPPED}, Facts({}, {"old": "7"}, {"k"}), shape).drafts
    assert (draft.op, draft.record.rekeyed) == (Op.UPDATE, True)


def test_a_record_that_is_another_one_lacks_what_was_not_sent() -> None:
    """Fields or links that were left out as equal are not in the record that has the key now."""
    link = WantedLink("companies", "c", "acme")
    known, shape = replace(SAME, links={"companies:c": "1"}), Shape(("A", "B"))
    facts = Facts({"k": known}, ids={("k", "companies:c"): "1"})
    both = MAPPED._replace(fields={"A": "x", "B": "y"}, links=(link,))
    (part,) = decide([ROW], {"k": both}, facts, shape).drafts
    assert not part.record.links
    (whole,) = decide([replace(ROW, uncertain=True)], {"k": both}, facts, shape).drafts
    (unlinked,) = decide([replace(ROW, whole=True)], {"k": both}, facts, shape).drafts
    assert [draft.replaced_by(Applied("8")) for draft in (part, whole, unlinked)] == [True, False, True]
    assert [draft.replaced_by(Applied("7")) for draft in (part, whole, unlinked)] == [False] * 3
    (fresh,) = decide([ROW], {"k": both}, Facts({}, ids=facts.ids), shape).drafts
    assert not fresh.replaced_by(Applied("8", created=True))


def test_a_job_that_is_taken_up_again_spares_what_people_may_have_filled() -> None:
    """Nobody knows then what is in the record: such a field waits for the next change, and the rest goes."""
    mapped = MAPPED._replace(fields={"A": "x", "Phone": "1"})
    shape = Shape(("A", "Phone"), frozenset({"Phone"}))
    for op in (Op.UPDATE, Op.UPSERT):
        (draft,) = redraft([ROW], op, {"k": mapped}, Facts({"k": SAME}), shape)
        assert draft.record.fields == {"A": "x"}
    (draft,) = redraft([replace(ROW, base=None)], Op.UPSERT, {"k": mapped}, Facts({}), shape)
    assert draft.record.fields == {"A": "x", "Phone": "1"}
