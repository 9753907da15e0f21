"""The mirror of the state file: equal after every transaction, never behind what was acted upon, and fenced."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cdcsync.backlog import IN_BATCH, WAITING
from cdcsync.coalesce import PendingRow
from cdcsync.entries import Identity, Job, Known, Reject, Tick
from cdcsync.errors import EXIT_TRY_LATER, MirrorError, StateError, StateHeldError
from cdcsync.model import Column, JobState, Op, Position, Relation
from cdcsync.state import State
from tests.polling import eventually

RELATION = Relation(7, "public", "t", "d", (Column("id", 23, -1, True), Column("a", 25, -1, False)))
IDENTITY = Identity("1", "db", "s", 5)


def row(key: str, number: int = 1) -> PendingRow:
    """Make a pending row."""
    return PendingRow(key, RELATION, b"\x00\x02", False, None, Position(5, number), Position(6, number), 1.5, 2.5)


def rows(number: int) -> list[tuple[str, str, int, PendingRow | None]]:
    """Make the journal of a tick that needs pages."""
    return [("m", str(key), WAITING, row(str(key))) for key in range(number)]


class Pair:
    """Where a state file, its mirror and the state file of a second machine lie."""

    def __init__(self, directory: Path) -> None:
        self.here, self.there, self.mirror = (
            directory / "a" / "state.db",
            directory / "b" / "state.db",
            directory / "m.db",
        )

    def open(self) -> State:
        return State.open(self.here, self.mirror)

    def started(self) -> State:
        """Open the first machine's, bound to a slot."""
        state = self.open()
        state.bind(IDENTITY, 5, 1)
        return state


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Name the files of two machines."""
    return Pair(tmp_path)


def content(path: Path) -> list[str]:
    """Dump a database, whoever has it open."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return list(db.iterdump())


def lsn(path: Path) -> int:
    """Read the durable LSN of a file that may be open elsewhere."""
    state = State.read(path)
    try:
        return state.checkpoint().durable_lsn
    finally:
        state.close()


def random_tick(source: random.Random, number: int) -> Tick:
    """Make a tick that writes to and deletes from every table."""
    tick = Tick(number, Position(number, 1))
    for _ in range(source.randint(1, 20)):
        mapping, key = f"m{source.randint(0, 3)}", str(source.randint(0, 30))
        gone = source.random() < 0.3
        job = source.choice([WAITING, IN_BATCH, 4])
        tick.journal.append((mapping, key, job, None if gone else row(key, number)))
        known = Known(key, ("A", str(source.randint(0, 3))), b"x" * 8, {}, Position(number, 2), source.random())
        tick.ledger.append((mapping, key, None if gone else known))
        tick.rejects.append((mapping, key, None if gone else Reject(row(key), "CODE", None, "words", 1.0, 2.0)))
        planned = Job(number % 5, mapping, Op.UPSERT, JobState.PLANNED, None, 1.0, 2, "d")
        tick.jobs.append((number % 5, None if gone else planned))
        tick.resyncs.append((mapping, f"because {number}", float(number)))
        tick.met.append((number, key))
        tick.counters.append(("crm", "applied", number))
    return tick


def test_the_mirror_is_equal_after_every_transaction(pair: Pair) -> None:
    """Random ticks, announcements, pauses and jobs leave the same tables in both, also when a command is beside."""
    state, source = pair.started(), random.Random(7)
    for number in range(1, 40):
        state.write(random_tick(source, number))
        state.announce("crm", Position(number, 1), [("m1", "k", "slot", str(number))])
        beside = State.beside(pair.here, pair.mirror)
        beside.pause("m1", "by hand", 1.0) if number % 2 else beside.resume("m1")
        beside.close()
        assert content(pair.here) == content(pair.mirror)
    state.confirm()
    state.unbind()
    assert content(pair.here) == content(pair.mirror)
    state.close()
    assert content(pair.here) == content(pair.mirror)


def test_a_tick_that_fails_changes_neither(pair: Pair) -> None:
    """What cannot be written is in no file, and the next tick is in both."""
    state = pair.started()
    before = content(pair.mirror)
    broken = Known("1", (), b"", {}, Position(1, 1), object())  # type: ignore[arg-type]  # cannot be bound
    with pytest.raises(StateError, match="cannot write"):
        state.write(Tick(9, Position(9, 1), journal=[("m", "a", WAITING, row("a"))], ledger=[("m", "a", broken)]))
    assert content(pair.here) == content(pair.mirror) == before
    state.write(Tick(10, Position(10, 1)))
    assert lsn(pair.here) == lsn(pair.mirror) == 10
    state.close()


def test_an_existing_file_fills_a_new_mirror_and_a_second_machine_goes_on_from_it(pair: Pair) -> None:
    """Also several times to and fro: each side takes over what the other wrote, in its file and in the mirror."""
    state = State.open(pair.here)
    state.bind(IDENTITY, 5, 1)
    state.write(Tick(10, Position(10, 1), journal=[("m", "a", WAITING, row("a"))]))
    state.close()
    pair.open().close()
    for turn in range(4):
        path = (pair.there, pair.here)[turn % 2]
        state = State.open(path, pair.mirror)
        assert state.identity() == IDENTITY
        assert state.checkpoint().durable_lsn == 10 + turn
        assert [entry.key for _, entry in state.journal("m")] == ["a"]
        state.write(Tick(11 + turn, Position(11 + turn, 1)))
        state.close()
        assert content(path) == content(pair.mirror)


def test_a_mirror_that_was_left_out_for_a_while_is_brought_up_to_date(pair: Pair) -> None:
    """Going on without a mirror is said in the config; with it again, the state file's newer content wins."""
    pair.started().close()
    alone = State.open(pair.here)
    alone.write(Tick(70, Position(70, 1)))
    alone.close()
    assert lsn(pair.mirror) == 5
    pair.open().close()
    assert lsn(pair.mirror) == lsn(pair.here) == 70


def test_copies_that_went_separate_ways_are_refused(pair: Pair) -> None:
    """Both were written without the other: neither is overwritten, whichever has more transactions."""
    pair.started().close()
    for path, writes in ((pair.here, 1), (pair.mirror, 5)):
        alone = State.open(path)
        for number in range(writes):
            alone.write(Tick(10 + number, Position(10, number)))
        alone.close()
    before = content(pair.here), content(pair.mirror)
    with pytest.raises(MirrorError, match="separate ways") as refused:
        pair.open()
    assert refused.value.exit_code == EXIT_TRY_LATER
    assert (content(pair.here), content(pair.mirror)) == before


def test_a_foreign_mirror_is_refused(pair: Pair, tmp_path: Path) -> None:
    """The mirror of another daemon, another program's database and garbage stay as they are."""
    pair.started().close()
    other = State.open(tmp_path / "other.db")
    other.bind(Identity("2", "db", "s", 5), 5, 1)
    other.close()
    with pytest.raises(MirrorError, match="separate ways"):
        State.open(pair.here, tmp_path / "other.db")
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
    with pytest.raises(StateError, match=r"foreign\.db is not a state file"):
        State.open(pair.here, foreign)
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database at all" * 100)
    with pytest.raises(MirrorError, match=r"garbage\.db"):
        State.open(pair.here, garbage)
    assert garbage.read_bytes() == b"not a database at all" * 100
    pair.open().close()


def test_a_mirror_whose_storage_is_not_mounted_is_not_made_anew(pair: Pair) -> None:
    """Else two machines could each have a mirror, and a lock, of their own. An empty file is the permission."""
    pair.started().close()
    pair.mirror.unlink()
    with pytest.raises(MirrorError, match="is not there"):
        pair.open()
    pair.mirror.touch()
    pair.open().close()
    assert content(pair.mirror) == content(pair.here)


def test_an_unused_file_takes_over_from_the_mirror(pair: Pair) -> None:
    """A first start without the mirror's content, which came to nothing, leaves a file that counts as empty."""
    State.open(pair.there).close()
    pair.started().close()
    second = State.open(pair.there, pair.mirror)
    assert second.identity() == IDENTITY
    second.close()


# --- crashes and failures

WRITER = """
import sys
from pathlib import Path
from cdcsync.entries import Identity, Tick
from cdcsync.model import Position
from cdcsync.state import State
state = State.open(Path(sys.argv[1]), Path(sys.argv[2]))
number = state.checkpoint().durable_lsn
while True:
    number += 1
    state.write(Tick(number, Position(number, 1)))
    print(number, flush=True)
"""


def test_kill_9_at_any_moment_loses_nothing_that_was_acted_upon(pair: Pair) -> None:
    """A writer is killed at random moments; from either machine, what it had said to be written is there."""
    pair.started().close()
    source = random.Random(3)
    for turn in range(8):
        path = (pair.here, pair.there)[turn % 2]
        command = [sys.executable, "-c", WRITER, str(path), str(pair.mirror)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            first = int(writer.stdout.readline())
            time.sleep(source.random() * 0.05)
            writer.send_signal(signal.SIGKILL)
            said = [first, *map(int, writer.stdout.read().split())][-1]
        state = State.open((pair.there, pair.here)[(turn // 2) % 2], pair.mirror)
        assert said <= state.checkpoint().durable_lsn <= said + 1
        state.close()


CRASH = """
import os, sqlite3, sys
from pathlib import Path
from cdcsync.entries import Tick
from cdcsync.model import Position
from cdcsync.state import State
which = sys.argv[3]
state = State.open(Path(sys.argv[1]), Path(sys.argv[2]))
db = state._db._db if which == "state file" else state._db._mirror.db
db.set_trace_callback(lambda statement: os.kill(os.getpid(), 9) if statement == "COMMIT" else None)
state.write(Tick(99, Position(99, 1)))
"""


@pytest.mark.parametrize(("dies_before", "found"), [("mirror", 5), ("state file", 99)])
def test_a_crash_around_the_two_commits(pair: Pair, dies_before: str, found: int) -> None:
    """Before the mirror's commit nothing has happened; after it, the mirror has it. Both machines find the same."""
    pair.started().close()
    command = [sys.executable, "-c", CRASH, str(pair.here), str(pair.mirror), dies_before]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert lsn(pair.here) == 5
    for path in (pair.there, pair.here):
        state = State.open(path, pair.mirror)
        assert state.checkpoint().durable_lsn == found
        state.close()


def test_a_full_mirror_stops_the_daemon_and_changes_nothing(pair: Pair) -> None:
    """No space for the mirror: MirrorError with a remedy, the state file is as before, and all goes on with space."""
    state = pair.started()
    mirror = state._db._mirror
    assert mirror is not None
    mirror.db.execute(f"PRAGMA max_page_count = {mirror.db.execute('PRAGMA page_count').fetchone()[0]}")
    many = rows(2000)
    with pytest.raises(MirrorError, match="full") as refused:
        state.write(Tick(10, Position(10, 1), journal=many))
    assert "standby" in refused.value.hint
    assert lsn(pair.here) == lsn(pair.mirror) == 5
    state.close()
    again = pair.open()
    again.write(Tick(10, Position(10, 1), journal=many))
    assert lsn(pair.here) == lsn(pair.mirror) == 10
    again.close()


def test_a_full_disk_under_the_state_file_leaves_the_mirror_alone(pair: Pair) -> None:
    """The state file is written first, though committed last: what it cannot take does not reach the mirror."""
    state = pair.started()
    state._db._db.execute(f"PRAGMA max_page_count = {state._db._db.execute('PRAGMA page_count').fetchone()[0]}")
    many = rows(2000)
    with pytest.raises(StateError, match="cannot write the state file"):
        state.write(Tick(10, Position(10, 1), journal=many))
    assert lsn(pair.here) == lsn(pair.mirror) == 5
    state.close()


def test_a_directory_that_is_not_there_is_not_made(pair: Pair) -> None:
    """The mirror's directory may be a mount point: the start is refused, and the locks are free again."""
    with pytest.raises(StateError, match="cannot lock"):
        State.open(pair.here, pair.mirror.parent / "mount" / "m.db")
    assert not (pair.mirror.parent / "mount").exists()
    pair.mirror.mkdir()
    with pytest.raises(MirrorError, match="cannot open the mirror"):
        pair.open()
    State.open(pair.here).close()


def test_a_mirror_that_goes_away_is_noticed(pair: Pair) -> None:
    """The file is replaced under the daemon, as when storage is restored: no further transaction, and no proof."""
    state = pair.started()
    copy = pair.mirror.with_name("old")
    copy.write_bytes(pair.mirror.read_bytes())
    state.write(Tick(10, Position(10, 1)))
    with contextlib.closing(sqlite3.connect(copy)) as old, contextlib.closing(sqlite3.connect(pair.mirror)) as mirror:
        old.backup(mirror)
    with pytest.raises(MirrorError, match="another cdcsync"):
        state.confirm()
    with pytest.raises(MirrorError, match="another cdcsync"):
        state.announce("crm", Position(11, 1))
    assert lsn(pair.here) == 10
    state.close()


# --- who may write


def test_the_mirror_is_the_fence_between_machines(pair: Pair) -> None:
    """With state files of their own, two daemons cannot have one mirror; the second is told who has it."""
    state = pair.started()
    with pytest.raises(StateHeldError, match=f"process {os.getpid()} on "):
        State.open(pair.there, pair.mirror)
    state.close()
    State.open(pair.there, pair.mirror).close()


def test_a_daemon_whose_lock_was_lost_writes_nothing_more(pair: Pair) -> None:
    """Taken over by a second one while it slept (a lease that ran out), it may neither announce nor tick nor idle."""
    first = pair.started()
    for lock in (pair.mirror, pair.here):
        lock.with_name(lock.name + ".lock").unlink()
    second = State.open(pair.there, pair.mirror)
    second.write(Tick(50, Position(50, 1)))
    with pytest.raises(StateError, match="lock file"):
        first.confirm()
    with pytest.raises(MirrorError, match="another cdcsync"):
        first.announce("crm", Position(60, 1))
    with pytest.raises(MirrorError, match="another cdcsync"):
        first.write(Tick(60, Position(60, 1)))
    first.close()
    assert lsn(pair.mirror) == 50
    second.confirm()
    second.close()
    again = pair.open()
    assert again.checkpoint().durable_lsn == 50
    again.close()


def test_a_command_on_the_standbys_machine_changes_nothing(pair: Pair) -> None:
    """Its state file is an old copy: the command is refused and says where it belongs."""
    pair.started().close()
    State.open(pair.there, pair.mirror).close()
    state = pair.open()
    beside = State.beside(pair.there, pair.mirror)
    with pytest.raises(MirrorError, match="another cdcsync"):
        beside.pause("m", "by hand", 1.0)
    beside.close()
    state.confirm()
    state.close()


def test_a_reader_does_not_stop_the_writer(pair: Pair) -> None:
    """Somebody who looks into the mirror delays a commit until he is done, and no more."""
    state = pair.started()
    with contextlib.closing(sqlite3.connect(pair.mirror, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        writing = threading.Thread(target=state.write, args=[Tick(10, Position(10, 1))])
        writing.start()
        # The waiting commit keeps new readers out, so that it is its turn when the old ones are done.
        eventually(lambda: _locked(pair.mirror), what="the commit does not wait")
        assert writing.is_alive()
        reader.execute("COMMIT")
    writing.join()
    assert lsn(pair.here) == lsn(pair.mirror) == 10
    state.close()


def _locked(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as db:
        try:
            db.execute("SELECT * FROM meta").fetchall()
        except sqlite3.OperationalError:
            return True
        return False
