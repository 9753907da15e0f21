"""Whose record it is that stands under a key that several rows had."""

from __future__ import annotations

from cdcsync.claims import attribute
from cdcsync.coalesce import PendingRow
from cdcsync.entries import Known
from cdcsync.model import START, Position, Relation

RELATION = Relation(1, "public", "t", "d", ())


def row(key: str, base: str | None, *tried: str, deleted: bool = False) -> PendingRow:
    """Make an uncertain row."""
    return PendingRow(key, RELATION, b"", deleted, base, START, START, 0.0, 0.0, tried, uncertain=True)


def entry(crm_id: str) -> Known:
    """Make a ledger entry."""
    return Known(crm_id, (), b"", {}, Position(1, 1), 0.0)


def test_a_known_record_is_followed_by_its_id() -> None:
    """The row that left a key has its record elsewhere by now; what stands under the old key is the next row's."""
    owned = attribute([row("2", "1", "2"), row("1", None, "1")], {"1": "B", "2": "A"}, {"1": entry("A")})
    assert {key: (mine.place, mine.crm_id, mine.sure) for key, mine in owned.items()} == {
        "2": ("2", "A", True),
        "1": ("1", "B", False),
    }


def test_a_row_has_one_record() -> None:
    """Of two records that the ledger does not know, the row that could have only one of them leaves the other."""
    owned = attribute([row("3", None, "1", "3"), row("1", None, "1")], {"1": "A", "3": "B"}, {})
    assert {key: mine.place for key, mine in owned.items()} == {"3": "3", "1": "1"}


def test_a_row_that_may_lack_columns_has_the_record_that_may_be_its_own() -> None:
    """It was there before all that waits, and cannot be created anew; a row inserted since can."""
    owned = attribute([row("1", None, "1"), row("2", "1", "2")], {"1": "A"}, {})
    assert list(owned) == ["2"]


def test_a_record_that_a_row_leaves_is_not_deleted_for_one_that_is_gone() -> None:
    """Both claim the record that the ledger knows under the key: the row that lives has it."""
    owned = attribute([row("1", "1", deleted=True), row("2", "1", "2")], {"1": "A"}, {"1": entry("A")})
    assert list(owned) == ["2"]


def test_rows_that_swapped_keys_have_each_other_s_records() -> None:
    """By their ids both records are the other row's, which never had that key: so they were taken over."""
    rows = [row("2", "1", "2"), row("1", "3", "1")]
    owned = attribute(rows, {"1": "A", "2": "C"}, {"1": entry("A"), "3": entry("C")})
    assert {key: (mine.place, mine.sure) for key, mine in owned.items()} == {"2": ("2", False), "1": ("1", False)}
    assert owned["2"].known == entry("C"), "what the ledger knows of the record goes with it"
