"""The demo's oracle has to find what is wrong, and its views have to say what they are told."""

from __future__ import annotations

import datetime as dt
import io
from typing import Any

import pytest
from rich.console import Console

from cdcsync.demo.live import Frame, LineView, TableView, view
from cdcsync.demo.shop import Inventor
from cdcsync.demo.verdict import Difference, Holdings, Verdict, compare
from cdcsync.demo.workload import Tally
from cdcsync.model import Lsn
from cdcsync.status import Counters, LaneStatus, Snapshot, SourceStatus


def record(object_name: str, record_id: str, key: dict[str, str], **more: Any) -> dict[str, Any]:
    """Build a record as a sandbox's admin port shows it."""
    return {"object": object_name, "id": record_id, "key": key, "fields": {}, "archived": False, **more}


class TestCompare:
    """Each way in which a CRM can differ from the database is told apart."""

    def test_equal_records_make_no_difference(self) -> None:
        """Numbers are compared as numbers, and an empty value is as good as none."""
        wanted = {"1": {"Name": "Acme", "Amount": "10.50", "Phone": None}}
        assert not list(compare(wanted, [("1", {"Name": "Acme", "Amount": "10.5", "Extra": "x"})]))

    @pytest.mark.parametrize(
        ("found", "text"),
        [
            ([], "is missing"),
            ([("1", {"Name": "Acme"}), ("1", {"Name": "Acme"})], "is there twice"),
            ([("1", {"Name": "Acne"})], "Name is 'Acne', not 'Acme'"),
            ([("1", {})], "Name is None, not 'Acme'"),
        ],
    )
    def test_a_record_that_differs_is_named(self, found: list[tuple[str, dict[str, str]]], text: str) -> None:
        """Missing, doubled and wrong records are found."""
        assert list(compare({"1": {"Name": "Acme"}}, found)) == [("1", text)]

    def test_records_that_no_row_asks_for_are_found(self) -> None:
        """Left-overs of deleted rows and records without a key are differences too."""
        found: list[tuple[str | None, dict[str, str]]] = [("2", {}), (None, {})]
        assert list(compare({}, found)) == [("2", "should not be there"), ("(no key)", "should not be there")]

    def test_a_null_that_should_have_cleared_a_field_is_found(self) -> None:
        """A stale value behind a NULL is a difference."""
        assert list(compare({"1": {"Phone": None}}, [("1", {"Phone": "555"})])) == [("1", "Phone is '555', not None")]


class TestHoldings:
    """Records of a CRM, with references as keys of the source."""

    def test_references_become_keys_of_the_source(self) -> None:
        """An AccountId is read as the External_Id__c of that account."""
        holdings = Holdings(
            [
                record("Account", "001A", {"External_Id__c": "7"}),
                record("Contact", "003B", {"External_Id__c": "c"}, fields={"AccountId": "001A", "LastName": ""}),
            ]
        )
        found = dict(holdings.of("Contact", "External_Id__c"))
        assert found == {"c": {"AccountId": "7", "LastName": None}}

    def test_archived_records_do_not_count(self) -> None:
        """A deleted record is gone, though the CRM keeps it in a bin."""
        assert not list(Holdings([record("deals", "1", {"order_id": "9"}, archived=True)]).of("deals", "order_id"))


def test_a_verdict_is_only_good_without_any_fault() -> None:
    """Equal records are not enough if something was doubled or put back on the way."""
    clean = {"double_creates": 0, "steps_back": 0}
    assert Verdict(1, (), {"a": clean, "b": clean}).ok
    assert not Verdict(1, (), {"a": clean, "b": clean | {"double_creates": 1}}).ok
    assert not Verdict(1, (), {"a": clean | {"steps_back": 1}, "b": clean}).ok
    assert not Verdict(1, (Difference("a", "b", "c", "d"),), {"a": clean}).ok


def test_the_same_seed_invents_the_same_rows() -> None:
    """A run can be repeated, and unique values are never invented twice."""
    one, other = Inventor(5), Inventor(5)
    assert [one.customer() for _ in range(50)] == [other.customer() for _ in range(50)]
    assert [one.order() for _ in range(50)] == [other.order() for _ in range(50)]
    assert len({one.email() for _ in range(50)}) == 50


FRAME = Frame(
    elapsed=12.3,
    tally=Tally(transactions=10, inserted=3, updated=96, deleted=1, rolled_back=2),
    pid=4711,
    restarts=1,
    snapshot=Snapshot(
        version="0",
        generated=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        source=SourceStatus(connected=True, slot="s", received_lsn=Lsn(1), durable_lsn=Lsn(1)),
        lanes=(
            LaneStatus(
                name="hubspot",
                kind="hubspot",
                state="running",
                applied_lsn=Lsn(1),
                pending=2,
                counters=Counters(changes_in=1200, applied=198, coalesced=900, suppressed=100, created=7, deleted=3),
            ),
        ),
        maps=(),
    ),
    requests={"hubspot": 24},
)


def test_lines_are_printed_where_there_is_no_terminal() -> None:
    """A pipe gets plain lines without control sequences."""
    out = io.StringIO()
    chosen = view(Console(file=out))
    assert isinstance(chosen, LineView)
    with chosen as lines:
        lines.say("hello [bold]")
        lines.show(FRAME)
    assert out.getvalue().splitlines() == [
        "hello [bold]",
        "  12 s  100 row changes written  |  hubspot: 198 sent, 1,000 saved, 2 pending, 0.0 s behind",
    ]


def test_a_terminal_gets_a_table() -> None:
    """The table shows what flowed, what folding saved and how to try a kill."""
    out = io.StringIO()
    chosen = view(Console(file=out, force_terminal=True, width=100, no_color=True))
    assert isinstance(chosen, TableView)
    with chosen as shown:
        shown.show(FRAME)
    for words in ("In step", "folded into another", "900", "7 / 3", "50.0", "kill -9 4711", "Started again so far: 1."):
        assert words in out.getvalue()


def test_a_daemon_that_does_not_answer_is_no_reason_to_stop_showing() -> None:
    """Between a kill and the restart there is no snapshot."""
    gone = Frame(1.0, Tally(), 1, 0, None, {})
    for console in (Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True, width=100)):
        with view(console) as shown:
            shown.show(gone)
        assert isinstance(console.file, io.StringIO)
        assert "does not answer yet" in console.file.getvalue()
