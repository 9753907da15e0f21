"""The state file: ticks are whole, restarts find what was written, and files that are not ours are refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cdcsync.backlog import IN_BATCH, WAITING
from cdcsync.coalesce import PendingRow
from cdcsync.entries import BackfillState, Identity, Job, Known, Reject, Tick
from cdcsync.errors import StateError
from cdcsync.model import Column, JobState, Op, Position, Relation
from cdcsync.state import SCHEMA_VERSION, State

RELATION = Relation(7, "public", "t", "d", (Column("id", 23, -1, True), Column("a", 25, -1, False)))


def row(key: str, **changes: object) -> PendingRow:
    """Make a pending row."""
    values: dict[str, object] = {
        "key": key,
        "relation": RELATION,
        "image": b"\x00\x02",
        "deleted": False,
        "fresh": True,
        "first": Position(5, 1),
        "last": Position(6, 2),
        "since": 1.5,
        "latest": 2.5,
        **changes,
    }
    return PendingRow(**values)  # type: ignore[arg-type]  # the fields of a pending row


def test_a_tick_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Journal, ledger, rejects, jobs, counters, backfill and checkpoint survive a restart unchanged."""
    waiting = row("k", origins=("old", "older"), uncertain=True, whole=True)
    flying, parked = row("k", deleted=True, image=b""), row("bad")
    known = Known("003", ("A", "B"), b"x" * 16, {"companies:c": "9"}, Position(4, 4), 10.0)
    job = Job(3, "m", Op.UPSERT, JobState.CREATED, "750", 11.0, 2, "abc")
    state = State.open(tmp_path / "state.db")
    state.write(
        Tick(
            durable_lsn=70,
            position=Position(60, 3),
            journal=[("m", "k", WAITING, waiting), ("m", "k", IN_BATCH, flying)],
            ledger=[("m", "k", known)],
            rejects=[("m", "bad", Reject(parked, "CODE", "F", "words", 12.0))],
            jobs=[(3, job)],
            counters=[("crm", "applied", 5)],
            backfills=[("m", BackfillState(("9",), 9, 20, done=False))],
        )
    )
    state.close()

    again = State.open(tmp_path / "state.db")
    assert again.checkpoint() == (70, Position(60, 3))
    assert sorted(again.journal("m"), key=lambda entry: entry[0]) == [(IN_BATCH, flying), (WAITING, waiting)]
    assert again.known("m", ["k", "unknown"]) == {"k": known}
    assert list(again.rejects("m")) == [Reject(parked, "CODE", "F", "words", 12.0)]
    assert again.jobs() == [job]
    assert again.counters("crm") == {"applied": 5}
    assert again.backfill("m") == BackfillState(("9",), 9, 20, done=False)
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
    assert not again.reject_keys("m")
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
    state.write(Tick(9, Position(9, 1), ledger=[("m", "k", known)], backfills=[("m", BackfillState(done=True))]))
    state.unbind()
    assert state.identity() is None
    assert state.backfill("m") is None
    assert state.sweeping("m")
    assert state.known("m", ["k"]) == {"k": known}
    state.swept("m")
    assert not state.sweeping("m")
    state.close()


def test_rows_of_mappings_that_are_not_configured_are_counted(tmp_path: Path) -> None:
    """They are neither settled nor pending: the books balance only with them."""
    state = State.open(tmp_path / "state.db")
    parked = Reject(row("b"), "CODE", None, "words", 1.0)
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


def test_skipping_moves_the_checkpoint_and_compares_again(tmp_path: Path) -> None:
    """The slot's binding stays; the position never goes back, and the timeline follows the ticks."""
    state = State.open(tmp_path / "state.db")
    bound = Identity("1", "db", "s", 5)
    state.bind(bound, 5, 1)
    state.write(Tick(9, Position(12, 1), backfills=[("m", BackfillState(done=True))], timeline=2))
    assert state.timeline() == 2
    state.skip(10, 2)
    assert state.checkpoint() == (10, Position(12, 1))
    state.skip(40, 3)
    assert state.checkpoint() == (40, Position(40, 0))
    assert (state.identity(), state.timeline()) == (bound, 3)
    assert state.backfill("m") is None
    assert state.sweeping("m")
    state.unbind()
    assert state.timeline() is None
    state.close()
