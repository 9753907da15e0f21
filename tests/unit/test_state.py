"""The state file: ticks are whole, restarts find what was written, and files that are not ours are refused."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from cdcsync.backlog import IN_BATCH, WAITING
from cdcsync.coalesce import PendingRow, Refused
from cdcsync.entries import Identity, Job, Known, Reject, Selection, Tick
from cdcsync.errors import StateError
from cdcsync.model import Column, JobState, Op, Position, Relation
from cdcsync.state import State
from cdcsync.state_schema import SCHEMA_VERSION

RELATION = Relation(7, "public", "t", "d", (Column("id", 23, -1, True), Column("a", 25, -1, False)))


def row(key: str, **changes: object) -> PendingRow:
    """Make a pending row."""
    values: dict[str, object] = {
        "key": key,
        "relation": RELATION,
        "image": b"\x00\x02",
        "deleted": False,
        "base": None,
        "first": Position(5, 1),
        "last": Position(6, 2),
        "since": 1.5,
        "latest": 2.5,
        **changes,
    }
    return PendingRow(**values)  # type: ignore[arg-type]  # the fields of a pending row


def test_a_tick_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Journal, ledger, rejects, jobs, counters, copies and checkpoint survive a restart unchanged."""
    waiting = row("k", base="old", tried=("older", "k"), uncertain=True, whole=True)
    flying = row("k", deleted=True, image=b"", base="k", refused=Refused(3, 11.5))
    parked = row("bad", tried=("bad",), uncertain=True, refused=Refused(2, 11.0))
    known = Known("003", ("A", "B"), b"x" * 16, {"companies:c": "9"}, Position(4, 4), 10.0)
    job = Job(3, "m", Op.UPSERT, JobState.CREATED, "750", 11.0, 2, "abc")
    state = State.open(tmp_path / "state.db")
    state.want_copy("m", 10.0)
    copying = replace(state.begin_copy(state.copies()[0].id), cursor=("9",), order=("id",), rows=9, estimate=20)
    state.write(
        Tick(
            durable_lsn=70,
            position=Position(60, 3),
            journal=[("m", "k", WAITING, waiting), ("m", "k", IN_BATCH, flying)],
            ledger=[("m", "k", known)],
            rejects=[("m", "bad", Reject(parked, "CODE", "F", "words", 12.0, 13.0))],
            jobs=[(3, job)],
            counters=[("crm", "applied", 5)],
            copies=[copying],
            paces=[("crm", '{"format":1}')],
        )
    )
    state.close()

    again = State.open(tmp_path / "state.db")
    assert again.checkpoint() == (70, Position(60, 3))
    assert sorted(again.journal("m"), key=lambda entry: entry[0]) == [(IN_BATCH, flying), (WAITING, waiting)]
    assert again.known("m", ["k", "unknown"]) == {"k": known}
    assert list(again.parked.all("m")) == [Reject(parked, "CODE", "F", "words", 12.0, 13.0)]
    assert again.jobs() == [job]
    assert again.counters("crm") == {"applied": 5}
    assert again.copies() == [copying]
    assert (again.pace("crm"), again.pace("other")) == ('{"format":1}', None)
    again.write(
        Tick(
            71,
            Position(61, 0),
            journal=[("m", "k", WAITING, None)],
            ledger=[("m", "k", None)],
            rejects=[("m", "bad", None)],
            jobs=[(3, None)],
        )
    )
    assert [job for job, _ in again.journal("m")] == [IN_BATCH]
    assert not again.known("m", ["k"])
    assert not again.jobs()
    assert not list(again.parked.all("m"))
    again.close()


def test_a_tick_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """A tick that cannot be written is a StateError, and the file is as it was before."""
    state = State.open(tmp_path / "state.db")
    state.write(Tick(1, Position(1, 1), journal=[("m", "a", WAITING, row("a"))]))
    broken = row("b", since=object())
    with pytest.raises(StateError, match="cannot write"):
        state.write(Tick(2, Position(2, 2), journal=[("m", "c", WAITING, row("c")), ("m", "b", WAITING, broken)]))
    assert state.checkpoint() == (1, Position(1, 1))
    assert [entry.key for _, entry in state.journal("m")] == ["a"]
    state.close()


def test_two_daemons_do_not_share_a_file(tmp_path: Path) -> None:
    """The second one is told so, and what to do; a reader beside the first is welcome."""
    state = State.open(tmp_path / "state.db")
    with pytest.raises(StateError, match="another cdcsync is running"):
        State.open(tmp_path / "state.db")
    reader = State.read(tmp_path / "state.db")
    assert reader.identity() is None
    reader.close()
    state.close()
    State.open(tmp_path / "state.db").close()


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Rows of customers lie in it: mode 0600, whatever the umask."""
    State.open(tmp_path / "state.db").close()
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be looked at" * 40, b"SQLite format 3\x00" * 90]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Garbage is a StateError with the way out, and is not overwritten."""
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        State.open(path)
    assert path.read_bytes() == content


def test_files_of_others_and_of_the_future_are_refused(tmp_path: Path) -> None:
    """A foreign database and a newer schema are refused by name, not migrated."""
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
    db.close()
    with pytest.raises(StateError, match="not a state file"):
        State.open(foreign)
    newer = tmp_path / "newer.db"
    State.open(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION + 1),))
    db.close()
    with pytest.raises(StateError, match="newer cdcsync"):
        State.open(newer)


def test_forgetting_the_slot_keeps_the_ledger(tmp_path: Path) -> None:
    """After a reset every table is copied again and swept, against the ledger as it was."""
    state = State.open(tmp_path / "state.db")
    state.bind(Identity("1", "db", "s", 5), 5, 1)
    known = Known("003", (), b"", {}, Position(4, 4), 10.0)
    state.write(Tick(9, Position(9, 1), ledger=[("m", "k", known)]))
    state.want_copy("m", 1.0)
    state.finish_copy(state.begin_copy(state.copies()[0].id), 2.0)
    assert state.copied("m")
    state.unbind()
    assert state.identity() is None
    assert not state.copied("m")
    assert state.known("m", ["k"]) == {"k": known}
    state.want_copy("m", 3.0)
    (copy,) = state.copies()
    assert (copy.sweep, copy.asker, copy.reason) == (True, "config", "the slot was given up")
    state.finish_copy(copy, 4.0)
    state.want_copy("m", 5.0)
    assert state.copies() == []
    state.close()


def test_rows_of_mappings_that_are_not_configured_are_counted(tmp_path: Path) -> None:
    """They are neither settled nor pending: the books balance only with them."""
    state = State.open(tmp_path / "state.db")
    parked = Reject(row("b"), "CODE", None, "words", 1.0, 2.0)
    state.write(
        Tick(
            1,
            Position(1, 1),
            journal=[("old", "a", WAITING, row("a")), ("new", "a", WAITING, row("a"))],
            rejects=[("old", "b", parked)],
            counters=[("crm", "applied:old", 0), ("crm", "applied:new", 0)],
        )
    )
    assert state.unmapped("crm", ["new"]) == 2
    assert state.unmapped("crm", ["new", "old"]) == 0
    assert state.unmapped("other", ["new"]) == 0
    state.close()


VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mapping (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE pause (mapping TEXT PRIMARY KEY, reason TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE backfill (mapping INTEGER PRIMARY KEY, cursor TEXT, rows INTEGER NOT NULL, estimate INTEGER NOT NULL,
  done INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE relation (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE);
CREATE TABLE journal (
  mapping INTEGER NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  PRIMARY KEY (mapping, key, job)) WITHOUT ROWID;
CREATE TABLE reject (
  mapping INTEGER NOT NULL, key TEXT NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  code TEXT NOT NULL, field TEXT, message TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (mapping, key)) WITHOUT ROWID;
CREATE TABLE shape (id INTEGER PRIMARY KEY, fields TEXT NOT NULL UNIQUE);
INSERT INTO relation VALUES (1, '[7, "public", "t", "d", [["id", 23, -1, true], ["a", 25, -1, false]]]');
INSERT INTO journal VALUES (1, 'k', 0, 1, X'0002', 0, '["old", "on its way"]', 5, 1, 6, 2, 1.5, 2.5),
  (1, 'plain', 0, 1, X'0002', 0, NULL, 5, 1, 6, 2, 1.5, 2.5);
INSERT INTO meta VALUES ('schema_version', '1'), ('durable_lsn', '70'), ('sweep:lost', '1'), ('sweep:away', '1');
INSERT INTO mapping VALUES (1, 'done'), (2, 'half'), (3, 'lost'), (4, 'away');
INSERT INTO backfill VALUES (1, '["20"]', 20, 20, 1), (2, '["9"]', 9, 20, 0), (3, '["9"]', 9, 20, 1);
"""
"""A file of schema 1, without the tables that are as they were."""


def test_a_file_of_schema_1_is_migrated(tmp_path: Path) -> None:
    """Done copies stay done, others go on at their cursors, but those that have to sweep: what they met is lost.

    Of a row that changed its key it was not known under which keys it was sent: it is to be looked up.
    """
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
    for look in (State.read, State.beside):
        with pytest.raises(StateError, match="older cdcsync"):
            look(path)
    state = State.open(path)
    assert state.checkpoint().durable_lsn == 70
    assert state.copied("done")
    half, lost = state.copies()
    assert (half.mapping, half.cursor, half.rows, half.started, half.sweep) == ("half", ("9",), 9, True, False)
    assert (lost.mapping, lost.cursor, lost.rows, lost.started, lost.sweep) == ("lost", None, 0, False, True)
    for mapping in ("done", "half", "lost", "away"):
        state.want_copy(mapping, 1.0)
    assert [(copy.mapping, copy.sweep) for copy in state.copies()] == [("half", False), ("lost", True), ("away", True)]
    assert [pending for _, pending in state.journal("done")] == [
        row("k", base="old", tried=("on its way",), uncertain=True),
        row("plain", base="plain"),
    ]
    state.close()
    State.read(path).close()


def test_requests_for_a_resync_are_kept_and_taken_together(tmp_path: Path) -> None:
    """One for all rows takes in another until it begins; partial ones and what comes later wait for their turn."""
    path = tmp_path / "state.db"
    State.open(path).close()
    beside = State.beside(path)
    beside.request_resync("m", "drift", 1.0, sweep=False)
    beside.request_resync("m", "by hand", 2.0, asker="person")
    beside.request_resync("m", "by hand", 3.0, condition="a > 1", estimate=7)
    beside.request_resync("m", "by hand", 4.0, keys=["1", "2"])
    beside.close()
    state = State.open(path)
    whole, condition, keys = state.copies()
    assert (whole.reason, whole.sweep, whole.whole, whole.asker) == ("by hand", True, True, "person")
    assert (condition.condition, condition.sweep, condition.whole, condition.estimate) == ("a > 1", False, False, 7)
    assert (keys.keys, keys.sweep, keys.whole) == (("1", "2"), True, False)
    assert state.begin_copy(whole.id).started
    state.write(Tick(1, Position(1, 1), resyncs=[("m", "publication lost", 5.0)]))
    assert [copy.reason for copy in state.copies()] == ["by hand", "by hand", "by hand", "publication lost"]
    state.finish_copy(condition, 6.0, error="it does not fit")
    assert not state.copied("m")
    state.finish_copy(whole, 7.0)
    assert state.copied("m")
    state.finish_copy(keys, 8.0)
    last = state.copies()[0]
    state.finish_copy(last, 9.0)
    assert state.last_copy("m") == replace(last, finished=9.0)
    state.close()


def test_what_a_copy_did_not_meet_is_found_page_by_page(tmp_path: Path) -> None:
    """Keys of the ledger, of the journal and of rejects, whatever they look like; not those that were only found."""
    state = State.open(tmp_path / "state.db")
    known = Known("1", (), b"", {}, Position(4, 4), 1.0)
    found = replace(known, position=Position(0, 0))
    keys = ["", "a", "a\0b", "b", "ä", "💶"]
    state.want_copy("m", 1.0)
    (copy,) = state.copies()
    state.write(
        Tick(
            1,
            Position(1, 1),
            ledger=[*(("m", key, known) for key in keys), ("m", "found", found), ("other", "x", known)],
            journal=[("m", "waits", WAITING, row("waits")), ("m", "waits", IN_BATCH, row("waits"))],
            rejects=[("m", "parked", Reject(row("parked"), "CODE", None, "words", 1.0, 2.0))],
            met=[(copy.id, "b")],
        )
    )
    unmet, start = [], ""
    while page := state.unmet(copy, start, 2):
        unmet += page
        start = page[-1] + "\0"
    assert unmet == ["", "a", "a\0b", "parked", "waits", "ä", "💶"]


def test_skipping_moves_the_checkpoint_and_compares_again(tmp_path: Path) -> None:
    """The slot's binding stays; the position never goes back, and the timeline follows the ticks."""
    state = State.open(tmp_path / "state.db")
    bound = Identity("1", "db", "s", 5)
    state.bind(bound, 5, 1)
    state.want_copy("m", 1.0)
    state.write(Tick(9, Position(12, 1), ledger=[("m", "1", Known("1", (), b"", {}, Position(4, 4), 1.0))], timeline=2))
    assert state.timeline() == 2
    state.skip(10, 2)
    assert state.checkpoint() == (10, Position(12, 1))
    state.skip(40, 3)
    assert state.checkpoint() == (40, Position(40, 0))
    assert (state.identity(), state.timeline()) == (bound, 3)
    state.want_copy("m", 2.0)
    (copy,) = state.copies()
    assert (copy.mapping, copy.sweep, copy.reason) == ("m", True, "changes were skipped")
    state.unbind()
    assert state.timeline() is None
    state.close()


VERSION_3 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mapping (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE relation (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE);
CREATE TABLE shape (id INTEGER PRIMARY KEY, fields TEXT NOT NULL UNIQUE);
CREATE TABLE journal (
  mapping INTEGER NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  PRIMARY KEY (mapping, key, job)) WITHOUT ROWID;
CREATE TABLE reject (
  mapping INTEGER NOT NULL, key TEXT NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  code TEXT NOT NULL, field TEXT, message TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (mapping, key)) WITHOUT ROWID;
INSERT INTO meta VALUES ('schema_version', '3'), ('durable_lsn', '70');
INSERT INTO mapping VALUES (1, 'm');
INSERT INTO relation VALUES (1, '[7, "public", "t", "d", [["id", 23, -1, true], ["a", 25, -1, false]]]');
INSERT INTO journal VALUES (1, 'waits', 0, 1, X'0002', 0, NULL, 5, 1, 6, 2, 1.5, 2.5);
INSERT INTO reject VALUES (1, 'bad', 1, X'0002', 2, '["bad"]', 5, 1, 6, 2, 1.5, 2.5, 'CODE', 'F', 'words', 12.0);
"""
"""A file of schema 3, without the tables that are as they were."""


def test_a_file_of_schema_3_is_migrated(tmp_path: Path) -> None:
    """What was parked before there was a ladder was refused once, and is due at once; what waits was not refused."""
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_3)
    state = State.open(path)
    parked = row("bad", tried=("bad",), refused=Refused(1, 12.0))
    assert list(state.parked.all("m")) == [Reject(parked, "CODE", "F", "words", 12.0, 0.0)]
    assert [waiting for _, waiting in state.journal("m")] == [row("waits", base="waits")]
    assert state.parked.requests() == []
    assert state.parked.next_due("m", "CODE", "F") == 0.0
    fresh = State.open(tmp_path / "fresh.db")
    tables = "SELECT name FROM sqlite_master WHERE tbl_name LIKE 'reject%' ORDER BY name"
    assert state._db.execute(tables).fetchall() == fresh._db.execute(tables).fetchall()
    for table in ("journal", "reject", "reject_request"):
        layout = f"SELECT name, type, \"notnull\" FROM pragma_table_info('{table}')"
        assert state._db.execute(layout).fetchall() == fresh._db.execute(layout).fetchall()
    fresh.close()
    state.close()


def test_rejects_are_found_by_reason_key_and_due_time(tmp_path: Path) -> None:
    """What the ladder and people ask of the file; discarded rows are there for the daemon alone."""
    state = State.open(tmp_path / "state.db")

    def entry(key: str, code: str, field: str | None, due: float, **changes: object) -> tuple[str, str, Reject]:
        made = row(key, refused=Refused(2, 3.0), **changes)
        return "m", key, Reject(made, code, field, f"words on {key}", due - 1.0, due)

    gone = Reject(row("gone", refused=Refused(1, 1.0)), "A", "F", "words", 1.0, 2.0, discarded=True)
    seatless = "k2\0" + "6/2"
    state.write(
        Tick(
            1,
            Position(1, 1),
            rejects=[
                entry("k1", "A", "F", 10.0),
                entry("k2", "A", "F", 20.0),
                entry(seatless, "A", None, 30.0, deleted=True, image=b""),
                entry("k20", "B", "F", 40.0),
                ("m", "gone", gone),
                ("n", "k1", Reject(row("k1", refused=Refused(1, 9.0)), "A", "F", "words", 9.0, 10.0)),
            ],
        )
    )
    parked = state.parked

    def keys(rejects: Iterable[Reject]) -> list[str]:
        return [reject.row.key for reject in rejects]

    assert keys(parked.all("m")) == ["gone", "k1", "k2", seatless, "k20"]
    assert keys(parked.of("m", ["gone", "k2", "no"])) == ["gone", "k2"]
    assert keys(parked.pages("m")) == ["k1", "k2", seatless, "k20"]
    assert (parked.count("m"), parked.count("n"), parked.count("unknown")) == (4, 1, 0)
    assert keys(parked.due("m", "A", "F", 20.0, 9)) == ["k1", "k2"]
    assert keys(parked.due("m", "A", "F", 20.0, 1)) == ["k1"]
    assert keys(parked.due("m", "A", None, 30.0, 9)) == [seatless]
    assert keys(parked.due("m", "A", "F", 15.0 - 1e6, 9)) == ["k1", "k2"]
    assert (parked.next_due("m", "A", "F"), parked.next_due("m", "B", None)) == (10.0, None)
    assert keys(parked.selected(Selection("m"))) == ["k1", "k2", seatless, "k20"]
    assert keys(parked.selected(Selection("m", keys=("k2",)))) == ["k2", seatless]
    assert keys(parked.selected(Selection("m", code="A", field="F"), before=15.0, limit=9)) == ["k1"]
    assert parked.count_selected(Selection("m", field="F")) == 3
    assert [(group.mapping, group.code, group.field, group.rows) for group in parked.groups()] == [
        ("m", "A", "F", 2),
        ("m", "A", None, 1),
        ("m", "B", "F", 1),
        ("n", "A", "F", 1),
    ]
    assert parked.groups()[0][4:] == (3.0, 19.0, 10.0, "words on k2")
    assert parked.shapes("m") == [RELATION]
    parked.make_due(Selection("m", code="A"), 15.0)
    assert {one.row.key: one.due for one in parked.all("m")} == {
        "gone": 2.0, "k1": 0.0, "k2": 20.0, seatless: 30.0, "k20": 40.0,
    }  # fmt: skip
    state.close()


def test_the_next_due_reject_is_one_step_in_an_index(tmp_path: Path) -> None:
    """However many there are: neither of the ladder's questions looks through the table."""
    state = State.open(tmp_path / "state.db")
    asked: list[str] = []
    state._db._db.set_trace_callback(asked.append)
    state.parked.next_due("m", "A", "F")
    state.parked.due("m", "A", None, 20.0, 9)
    state._db._db.set_trace_callback(None)
    plans = [state._db.execute(f"EXPLAIN QUERY PLAN {one}").fetchall() for one in asked if "reject" in one]
    assert len(plans) == 2
    for ((*_, plan),) in plans:
        assert "USING" in plan
        assert "INDEX ladder (mapping=? AND code=? AND field=?" in plan
    state.close()
