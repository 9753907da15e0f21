"""The snapshot: its sentence, its books, and its forms as text, JSON and Prometheus."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdcsync import rejects
from cdcsync.metrics import to_prometheus
from cdcsync.model import Lsn
from cdcsync.proof import PARENT_MISSING, prove
from cdcsync.status import (
    Backfill,
    Counters,
    Event,
    Job,
    LaneStatus,
    MapStatus,
    Quota,
    RejectGroup,
    Snapshot,
    SourceStatus,
    duration,
    size,
)
from cdcsync.status_json import dumps, from_json, to_json, wait_json
from cdcsync.status_text import table, to_text

NOW = dt.datetime(2026, 11, 2, 12, 30, tzinfo=dt.UTC)

SALESFORCE = LaneStatus(
    name="salesforce",
    kind="salesforce",
    state="running",
    applied_lsn=Lsn(0x1_0000_00A0),
    applied_time=NOW,
    lag_seconds=1.23,
    pending=7,
    in_flight=5,
    held=2,
    counters=Counters(
        changes_in=100, applied=60, suppressed=3, coalesced=30, created=20, deleted=4, requests=9, retries=1
    ),
    rate=4.5,
    quotas=(Quota(name="daily", seconds=86400, limit=1000, remaining=900, budget=600, ours=40),),
    jobs=(Job(id="750", object="Contact", op="upsert", state="closed", records=2000, processed=500),),
)
HUBSPOT = LaneStatus(name="hubspot", kind="hubspot", state="running", applied_lsn=Lsn(0x1_0000_0000))
CONTACTS = MapStatus(
    name="customers",
    table="public.customers",
    lane="salesforce",
    target="salesforce.Contact",
    pending=7,
    applied=60,
    backfill=Backfill(state="done", rows=50, estimate=48),
)


def make(**changes: object) -> Snapshot:
    """Build a healthy snapshot of two lanes with some fields replaced."""
    source = SourceStatus(
        connected=True,
        slot="cdcsync",
        received_lsn=Lsn(0x1_0000_0100),
        durable_lsn=Lsn(0x1_0000_00F0),
        server_lsn=Lsn(0x1_0000_0200),
        retained_bytes=16 << 20,
        wal_status="reserved",
    )
    healthy = Snapshot(
        version="0.1.0",
        generated=NOW,
        source=source,
        lanes=(with_rejects(0), HUBSPOT),
        maps=(CONTACTS,),
        events=(Event(time=NOW, level="info", text="slot created"),),
    )
    return dataclasses.replace(healthy, **changes)  # type: ignore[arg-type]  # keyword values are the test's own


def with_rejects(rejected: int) -> LaneStatus:
    """Park some of the pending rows of the Salesforce lane, so that the books still balance."""
    return dataclasses.replace(SALESFORCE, rejected=rejected, pending=7 - rejected)


class TestSentence:
    """The one line says the worst news first."""

    def test_a_healthy_daemon_is_in_step(self) -> None:
        """With small lag everywhere, the sentence is the good one and in_step agrees."""
        assert make().sentence == "In step, 1.2 s behind."
        assert make().in_step

    def test_rejected_rows_are_always_mentioned(self) -> None:
        """Rows that were refused are excepted from the claim, whatever the claim is."""
        assert make(lanes=(with_rejects(3),)).sentence == "In step, 1.2 s behind, except 3 rejected rows."
        assert make(lanes=(with_rejects(1),)).sentence.endswith("except 1 rejected row.")

    def test_a_lane_far_behind_is_named(self) -> None:
        """A lag above the threshold is not called in step."""
        slow = dataclasses.replace(SALESFORCE, lag_seconds=185.0)
        snapshot = make(lanes=(HUBSPOT, slow))
        assert snapshot.sentence == "Catching up: salesforce is 3 min 5 s behind, 7 rows to go."
        assert not snapshot.in_step

    def test_a_lane_that_stands_still_is_named(self) -> None:
        """Backing off comes with what waits; the error itself stands elsewhere."""
        down = dataclasses.replace(SALESFORCE, state="backing off", last_error="503 from /composite.\nmore")
        assert make(lanes=(down, HUBSPOT)).sentence == "salesforce is backing off, 7 rows waiting."

    def test_a_lost_source_outweighs_a_lane(self) -> None:
        """Without Postgres nothing can be said about the lanes' lag."""
        gone = SourceStatus(connected=False, slot="s", received_lsn=Lsn(0), durable_lsn=Lsn(0), last_error="refused")
        assert make(source=gone).sentence == "Postgres is not connected."

    def test_a_daemon_that_is_down_is_not_a_lost_source(self) -> None:
        """Where Postgres answers and nothing reads the slot, the daemon is missing; lag in time is unknown."""
        unread = dataclasses.replace(make().source, connected=False)
        snapshot = make(source=unread)
        assert snapshot.sentence == "The daemon is down: nothing reads its slot."
        assert make(source=unread, pid=7).sentence == "Postgres is not connected."
        assert unread.seconds_behind(SALESFORCE) is None
        assert make().source.seconds_behind(SALESFORCE) == 1.23
        assert unread.bytes_behind(SALESFORCE) == 0x160

    def test_a_paused_mapping_is_named(self) -> None:
        """A pause is never in step, and says what waits."""
        snapshot = make(maps=(dataclasses.replace(CONTACTS, paused="by hand"),))
        assert snapshot.sentence == "customers is paused, 7 rows waiting."
        assert not snapshot.in_step
        assert "customers is paused: by hand" in to_text(snapshot)

    def test_a_lost_balance_outweighs_all(self) -> None:
        """Books that do not balance are an alarm before anything else."""
        lost = dataclasses.replace(SALESFORCE, pending=6, state="stopped")
        assert make(lanes=(lost,)).sentence == "The books of salesforce do not balance: 1 change unaccounted for."

    def test_a_first_copy_tells_how_far_it_is(self) -> None:
        """The share is given where the planner has an estimate, the count otherwise."""
        halfway = dataclasses.replace(CONTACTS, backfill=Backfill(state="copying", rows=500, estimate=1000))
        unknown = dataclasses.replace(CONTACTS, backfill=Backfill(state="copying", rows=1500))
        assert make(maps=(halfway,)).sentence == "Copying public.customers to salesforce.Contact (50%)."
        assert not make(maps=(halfway,)).in_step
        assert make(maps=(unknown,)).sentence == "Copying public.customers to salesforce.Contact (1,500 rows)."

    def test_nothing_mapped(self) -> None:
        """A snapshot without lanes still has a sentence."""
        assert make(lanes=(), maps=()).sentence == "Nothing is mapped."


def test_the_books_balance_exactly_or_not_at_all() -> None:
    """One change too many or too few is found, with its sign."""
    assert with_rejects(2).balanced
    assert dataclasses.replace(SALESFORCE, pending=6).missing == 1
    assert dataclasses.replace(SALESFORCE, pending=8).missing == -1
    assert not make(lanes=(dataclasses.replace(SALESFORCE, pending=8),)).balanced


def test_what_was_given_up_is_in_the_books_and_is_told() -> None:
    """A discarded change is settled as far as the balance goes, and every form of the status shows it."""
    books = dataclasses.replace(SALESFORCE.counters, discarded=2)
    lane = dataclasses.replace(SALESFORCE, pending=5, counters=books)
    snapshot = make(lanes=(lane, HUBSPOT))
    assert lane.balanced
    assert from_json(to_json(snapshot)) == snapshot
    assert "salesforce: 2 rejected changes discarded by hand" in to_text(snapshot)
    assert 'cdcsync_changes_discarded_total{crm="salesforce"} 2.0' in to_prometheus(snapshot).decode()


def test_lag_in_bytes_is_known_only_when_the_server_was_asked() -> None:
    """The distance is counted to what is durable, and never negative."""
    source = make().source
    assert source.lag_bytes == 0x110
    assert dataclasses.replace(source, server_lsn=None).lag_bytes is None
    assert dataclasses.replace(source, server_lsn=Lsn(5)).lag_bytes == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (7800, "2 h 10 min"),
        (1e5, "1 d 3 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    """Two units at most, the smaller one only if it is not zero."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (5 << 40, "5.0 TB")])
def test_sizes_read_as_people_say_them(number: int, text: str) -> None:
    """The units are PostgreSQL's, powers of 1024."""
    assert size(number) == text


def test_json_holds_everything_and_comes_back_equal() -> None:
    """A reader of the JSON gets the same snapshot, so `status` can render what the daemon serves."""
    rejects = (RejectGroup(code="INVALID_EMAIL", field="Email", rows=2),)
    snapshot = make(maps=(dataclasses.replace(CONTACTS, rejects=rejects),))
    assert from_json(json.loads(dumps(snapshot))) == snapshot


def test_json_form_is_the_documented_one() -> None:
    """LSNs are text, times are ISO, and the computed values stand beside the raw ones."""
    document = to_json(make())
    assert document["format"] == 1
    assert document["sentence"] == "In step, 1.2 s behind."
    assert document["source"]["durable_lsn"] == "1/F0"
    assert document["source"]["lag_bytes"] == 0x110
    assert document["lanes"][0]["applied_time"] == "2026-11-02T12:30:00+00:00"
    assert document["lanes"][0]["balanced"] is True
    assert document["lanes"][1]["applied_time"] is None


class TestProof:
    """What is claimed of a CRM, and what is excepted from it."""

    def test_the_words_are_the_same_everywhere(self) -> None:
        """Position, time and exceptions stand in the text, in the JSON of the status and in that of a wait."""
        groups = (RejectGroup(code="BAD", field=None, rows=2), RejectGroup(code=PARENT_MISSING, field=None, rows=1))
        snapshot = make(lanes=(with_rejects(3),), maps=(dataclasses.replace(CONTACTS, rejected=3, rejects=groups),))
        words = "current as of LSN 1/A0 (2026-11-02 12:30:00 UTC), except 3 rows (2 rejected, 1 waiting for a parent)"
        proof = prove(snapshot, snapshot.lanes[0])
        assert proof.sentence == words
        assert f"  salesforce is {words}" in to_text(snapshot).splitlines()
        entry = to_json(snapshot)["lanes"][0]["proof"]
        assert (entry["sentence"], entry["as_of"], entry["excepted"], entry["waiting"]) == (words, "1/A0", 3, 1)
        line = json.loads(wait_json(proof, 0x1_0000_0090))
        assert (line["format"], line["lsn"], line["current"], line["sentence"]) == (1, "1/90", True, words)
        assert not json.loads(wait_json(proof, 0x1_0000_00A1))["current"]
        assert PARENT_MISSING == rejects.PARENT_MISSING

    def test_without_exceptions_there_are_no_words_for_them(self) -> None:
        """The time is left out where it is not known."""
        assert prove(make(), HUBSPOT).sentence == "current as of LSN 1/0"

    def test_paused_rows_hold_the_position(self) -> None:
        """They are no exceptions: what was committed before them is settled, and they are said to stand in the way."""
        snapshot = make(maps=(dataclasses.replace(CONTACTS, paused="by hand"),))
        proof = prove(snapshot, SALESFORCE)
        assert proof.sentence.endswith("UTC); 7 paused rows hold it there")
        assert proof.obstacles == "7 rows pending, 7 paused"
        assert proof.covers(0x1_0000_00A0)

    def test_a_mapping_that_is_not_copied_proves_nothing(self) -> None:
        """Its rows may be missing whatever the position is; so it is where the books do not balance."""
        snapshot = make(maps=(dataclasses.replace(CONTACTS, incomplete=True),))
        proof = prove(snapshot, SALESFORCE)
        assert proof.sentence.endswith("UTC), except what is still to be copied of customers")
        assert not proof.covers(1)
        lost = dataclasses.replace(SALESFORCE, pending=6)
        proof = prove(make(lanes=(lost,)), lost)
        assert proof.sentence == "not known to be current: 1 change unaccounted for"
        assert not proof.covers(1)


def test_json_of_another_format_is_refused() -> None:
    """A document of another version, or with a field missing, is an error and not a half-filled snapshot."""
    with pytest.raises(ValueError, match="format 2"):
        from_json({"format": 2})
    with pytest.raises(ValueError, match="missing"):
        from_json({"format": 1})


def test_text_shows_every_lane_and_mapping() -> None:
    """The plain text has the sentence first and a line per CRM and mapping."""
    text = to_text(make())
    lines = text.splitlines()
    assert lines[0] == "In step, 1.2 s behind."
    assert "Postgres connected, slot cdcsync, durable 1/F0, 272 B behind the server, 16.0 MB of WAL retained" in text
    assert any(line.startswith("salesforce  running") and line.endswith("1/A0") for line in lines)
    assert "  salesforce quota: daily 100 of 1,000 (our share 600, 40 used)" in lines
    assert "  salesforce job 750: upsert Contact, closed, 500 of 2,000 rows" in lines
    assert any(line.startswith("customers  public.customers  salesforce.Contact") for line in lines)


def test_a_day_that_runs_out_and_an_open_breaker_are_shown() -> None:
    """When the day's calls will be used up, and when the next request is tried; JSON and metrics have both."""
    until = dt.datetime(2026, 11, 2, 17, 40, tzinfo=dt.UTC)
    lane = dataclasses.replace(SALESFORCE, quota_lasts_until=until, breaker="open", breaker_until=until)
    snapshot = make(lanes=(lane,))
    lines = to_text(snapshot).splitlines()
    assert "  salesforce quota: daily 100 of 1,000 (our share 600, 40 used); lasts until 17:40 UTC" in lines
    assert "  salesforce breaker open until 17:40 UTC: too many failures in a row" in lines
    assert from_json(json.loads(dumps(snapshot))) == snapshot
    metrics = to_prometheus(snapshot).decode()
    assert 'cdcsync_breaker_open{crm="salesforce"} 1.0' in metrics
    assert 'cdcsync_quota_used_requests{crm="salesforce",quota="daily"} 40.0' in metrics
    probing = dataclasses.replace(lane, breaker="probing", breaker_until=None)
    assert "  salesforce breaker open: one request is tried" in to_text(make(lanes=(probing,))).splitlines()


def test_text_shouts_when_the_books_do_not_balance() -> None:
    """The alarm stands under the table of lanes too."""
    text = to_text(make(lanes=(dataclasses.replace(SALESFORCE, pending=6),)))
    assert "salesforce: BOOKS DO NOT BALANCE, +1 changes unaccounted for" in text


def test_a_table_aligns_numbers_to_the_right() -> None:
    """Columns that hold only numbers are right-aligned with their title, others left-aligned."""
    assert table(("name", "rows"), [("a", "1"), ("bcdef", "1,000")]) == "name    rows\na          1\nbcdef  1,000"
    assert table(("name", "rows"), []) == "name  rows"


def test_metrics_parse_and_carry_the_values() -> None:
    """Prometheus reads the text, names are prefixed and counters end in _total."""
    families = list(text_string_to_metric_families(to_prometheus(make()).decode()))
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
    assert all(family.name.startswith("cdcsync") and family.documentation for family in families)
    assert samples["cdcsync_changes_in_total", (("crm", "salesforce"),)] == 100
    assert samples["cdcsync_lane_state", (("crm", "salesforce"), ("state", "running"))] == 1
    assert samples["cdcsync_lane_state", (("crm", "salesforce"), ("state", "paused"))] == 0
    assert samples["cdcsync_source_lag_bytes", ()] == 0x110
    assert samples["cdcsync_quota_remaining_requests", (("crm", "salesforce"), ("quota", "daily"))] == 900
    assert samples["cdcsync_map_pending_rows", (("crm", "salesforce"), ("map", "customers"))] == 7


def test_metrics_leave_out_what_is_not_known() -> None:
    """An unknown value gives no sample, rather than a zero that looks healthy."""
    unknown = dataclasses.replace(make().source, server_lsn=None, retained_bytes=None)
    text = to_prometheus(make(source=unknown)).decode()
    assert "\ncdcsync_slot_retained_bytes" not in text
    assert "\ncdcsync_source_lag_bytes" not in text
