"""A state file that is damaged, lost, another's or full: one clear sentence, what to do, and nothing half-written.

What needs a disk of its own size runs in a process with a small filesystem that nobody else sees.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdcsync.backlog import WAITING
from cdcsync.entries import Identity, Known, Tick
from cdcsync.errors import (
    EXIT_NOT_FINE,
    EXIT_TRY_LATER,
    REBUILD,
    StateDamagedError,
    StateError,
    StateFullError,
    StateHeldError,
)
from cdcsync.model import Position
from cdcsync.state import State
from cdcsync.state_backup import back_up, restore
from cdcsync.state_check import look
from cdcsync.state_file import COMPANIONS
from cdcsync.state_schema import SCHEMA_VERSION
from tests.unit.test_state import VERSION_1, row

IDENTITY = Identity("1", "db", "s", 5)


def known(number: int) -> Known:
    """Make a ledger's entry."""
    return Known(f"003{number}", ("A", "B"), b"x" * 16, {}, Position(4, 4), 1.0)


def many(number: int = 3_000) -> Tick:
    """Make a tick that fills pages."""
    return Tick(
        9,
        Position(9, 1),
        journal=[("m", str(key), WAITING, row(str(key))) for key in range(number // 3)],
        ledger=[("m", str(key), known(key)) for key in range(number)],
    )


def made(path: Path) -> None:
    """Make a state file with some pages of rows."""
    state = State.open(path)
    state.bind(IDENTITY, 5, 1)
    state.write(many())
    state.close()


def flip(path: Path) -> None:
    """Spoil a page in the middle."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 4096)


def truncate(path: Path) -> None:
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    """Put something else there."""
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 400)


def become_a_directory(path: Path) -> None:
    """Put a directory there."""
    path.unlink()
    path.mkdir()


def become_anothers(path: Path) -> None:
    """Put another program's database there."""
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE customer (id)")


def become_newer(path: Path) -> None:
    """Let a later version have written it."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION + 1),))
        db.commit()


def empty(path: Path) -> None:
    """Lose all content."""
    os.truncate(path, 0)


Spoil = Callable[[Path], None]


def contents(path: Path) -> dict[str, bytes]:
    """Return the files of a database."""
    places = [path.with_name(path.name + end) for end in COMPANIONS]
    return {place.name: place.read_bytes() for place in places if place.is_file()}


@pytest.mark.parametrize(
    ("spoil", "kind", "words", "remedy"),
    [
        (flip, StateDamagedError, "is damaged", REBUILD),
        (truncate, StateDamagedError, "is damaged", REBUILD),
        (overwrite, StateDamagedError, "is damaged", REBUILD),
        (become_a_directory, StateError, "cannot open the state file", "Name a file"),
        (become_anothers, StateError, "is not a state file", "a file of its own"),
        (become_newer, StateError, "newer cdcsync", REBUILD),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    spoil: Spoil, kind: type[StateError], words: str, remedy: str, tmp_path: Path
) -> None:
    """The daemon says what it is and what to do, ends with 1, and leaves the file as it is."""
    path = tmp_path / "state.db"
    made(path)
    spoil(path)
    before = contents(path)
    with pytest.raises(kind, match=words) as refused:
        State.open(path)
    assert refused.value.exit_code == EXIT_NOT_FINE
    assert remedy in refused.value.hint
    assert contents(path) == before


@pytest.mark.parametrize("spoil", [overwrite, become_a_directory, become_anothers, become_newer, empty, Path.unlink])
@pytest.mark.parametrize("use", [State.read, State.beside, look])
def test_commands_beside_refuse_as_well(spoil: Spoil, use: Callable[[Path], object], tmp_path: Path) -> None:
    """Each of them says it in one of our errors, whatever the file has become."""
    path = tmp_path / "state.db"
    made(path)
    spoil(path)
    with pytest.raises(StateError):
        use(path)


def spoil_table(path: Path, table: str) -> None:
    """Overwrite the page on which a table begins."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)


def test_a_large_file_is_checked_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a start does not take minutes. Damage in its large tables is told when it is met, in the same words."""
    monkeypatch.setattr("cdcsync.state_file.WHOLE_CHECK", 4096)
    path = tmp_path / "state.db"
    made(path)
    spoil_table(path, "ledger")
    state = State.open(path)
    with pytest.raises(StateDamagedError, match="is damaged") as met:
        state.known("m", ["7"])
    assert REBUILD in met.value.hint
    state.close()
    assert look(path).problems
    spoil_table(path, "counter")
    with pytest.raises(StateDamagedError):
        State.open(path)


def test_whatever_holds_rows_is_for_its_owner_only(tmp_path: Path) -> None:
    """0600 for what SQLite keeps beside the file, the mirror and backups, whatever the umask and older files."""
    path, mirror, backup = tmp_path / "state.db", tmp_path / "mirror.db", tmp_path / "backup.db"
    before = os.umask(0)
    try:
        state = State.open(path, mirror)
        state.write(many())
        back_up(path, backup)
        places = [*(path.with_name(path.name + end) for end in COMPANIONS), mirror, backup]
        assert [stat.S_IMODE(place.stat().st_mode) for place in places] == [0o600] * len(places)
        assert not look(path).problems
        path.chmod(0o640)
        assert look(path).problems == (f"{path} has mode 0640, and should have 0600",)
        state.close()
        State.open(path, mirror).close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


# --- backups


def test_a_backup_is_whole_beside_a_writer(tmp_path: Path) -> None:
    """Made while ticks are written, it is one of the states that the file had, and one file."""
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    made(path)
    state = State.open(path)
    written = 9

    def write(done: int, total: int) -> None:
        nonlocal written
        assert 0 < done <= total
        written += 1
        state.write(
            Tick(written, Position(written, 1), ledger=[("m", str(key), known(written)) for key in range(3_000)])
        )

    assert back_up(path, backup, told=write) == backup.stat().st_size
    assert written > 9
    report = look(backup)
    assert (report.problems, report.checkpoint.durable_lsn, report.identity) == ((), 9, IDENTITY)
    assert report.rows["ledger"] == 3_000
    assert list(contents(backup)) == ["backup.db"]
    assert state.checkpoint().durable_lsn == written
    state.close()


def test_a_backup_takes_no_files_place_unasked(tmp_path: Path) -> None:
    """What is there stays, but with force; the state file itself is never the target."""
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    made(path)
    backup.write_text("mine")
    with pytest.raises(StateError, match="is there already"):
        back_up(path, backup)
    assert backup.read_text() == "mine"
    for force in (False, True):
        with pytest.raises(StateError, match="is the state file itself"):
            back_up(path, path, force=force)
    with pytest.raises(StateError, match="cannot open"):
        back_up(path, tmp_path / "nowhere" / "backup.db")
    back_up(path, backup, force=True)
    assert look(backup).backup is not None
    assert not list(tmp_path.glob("*.part"))


def test_a_restored_backup_says_what_it_is(tmp_path: Path) -> None:
    """What was in its place is kept, with its write-ahead log; the daemon that has the file is not disturbed."""
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    made(path)
    back_up(path, backup)
    state = State.open(path)
    with pytest.raises(StateHeldError):
        restore(backup, path)
    state.write(Tick(50, Position(50, 1)))
    left = {place.name: place.read_bytes() for place in tmp_path.iterdir() if place.name.startswith("state.db")}
    state.close()
    for name, content in left.items():  # as after a crash: what was written last is in the log
        (tmp_path / name).write_bytes(content)

    aside = restore(backup, path)
    assert aside == tmp_path / "state.db.replaced-1"
    with contextlib.closing(State.read(aside)) as old:
        assert old.checkpoint().durable_lsn == 50
    restored = State.open(path)
    assert restored.checkpoint().durable_lsn == 9
    assert restored.backed_up() is not None
    restored.go_on_from_backup(["crm"], 70)
    assert (restored.horizon("crm"), restored.backed_up()) == (Position(70, 0), None)
    restored.close()
    flip(backup)
    with pytest.raises(StateDamagedError):
        restore(backup, path)
    with pytest.raises(StateError, match="newer than a backup"):
        restore(path, path, aside)


def test_an_old_copy_is_believed_only_that_there_are_records(tmp_path: Path) -> None:
    """Rows on their way are dropped, contents and ids forgotten, and the books balance."""
    path = tmp_path / "state.db"
    made(path)
    state = State.open(path)
    state.write(
        Tick(
            10, Position(10, 1), counters=[("crm", "changes_in", 1_005), ("crm", "applied", 5), ("crm", "applied:m", 5)]
        )
    )
    (before,) = state.balances()
    assert (before.pending, before.missing) == (1_000, 0)
    state.distrust()
    (after,) = state.balances()
    assert (after.pending, after.coalesced, after.missing) == (0, 1_000, 0)
    assert state.known("m", ["7"]) == {"7": Known(None, (), b"", {}, Position(4, 4), 1.0)}
    assert state.records("m") == 3_000
    state.close()


# --- size


def test_shapes_that_no_row_has_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and mappings that change again and again: a start drops what is not used, and what is used stays."""
    monkeypatch.setattr("cdcsync.state._SHAPES", 10)
    path = tmp_path / "state.db"
    made(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executemany("INSERT INTO shape (fields) VALUES (?)", [(f'["{n}"]',) for n in range(20)])
        db.executemany("INSERT INTO relation (body) VALUES (?)", [(f"[{n}]",) for n in range(20)])
        db.commit()
    state = State.open(path)
    assert (state.count("shape"), state.count("relation")) == (1, 1)
    assert state.known("m", ["7"]) == {"7": known(7)}
    assert sum(1 for _ in state.journal("m")) == 1_000
    state.close()


def test_the_room_of_a_long_outage_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was large leaves free pages: tick by tick the file, and its mirror, become smaller again."""
    monkeypatch.setattr("cdcsync.state_database.SPARE", 1 << 20)
    path, mirror = tmp_path / "state.db", tmp_path / "mirror.db"
    state = State.open(path, mirror)
    state.write(
        Tick(
            9,
            Position(9, 1),
            journal=[("m", str(key), WAITING, row(str(key), image=b"x" * 4_000)) for key in range(4_000)],
        )
    )
    state.write(Tick(10, Position(10, 1), journal=[("m", str(key), WAITING, None) for key in range(4_000)]))
    for number in range(11, 20):
        state.write(Tick(number, Position(number, 1)))
    state.close()
    assert path.stat().st_size < 2 << 20
    assert mirror.stat().st_size < 2 << 20
    assert not look(path).problems


def test_the_write_ahead_log_does_not_stay_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who reads for long lets it grow; when that is over it is cut back."""
    monkeypatch.setattr("cdcsync.state_file.WAL_LIMIT", 256 << 10)
    path = tmp_path / "state.db"
    made(path)
    state, reader = State.open(path), State.read(path)
    with reader.reading():
        reader.checkpoint()
        for number in range(10):
            state.write(Tick(9, Position(9, 1), ledger=[("m", f"{number}-{key}", known(key)) for key in range(9_000)]))
        log = path.with_name("state.db-wal")
        assert log.stat().st_size > 4 << 20
    for number in range(3):
        state.write(Tick(number, Position(9, 1)))
    assert log.stat().st_size <= 256 << 10
    reader.close()
    state.close()


# --- a disk that is full


def on_small_disk(work: Callable[[Path], None], tmp_path: Path, options: str = "size=2m") -> None:
    """Call ``work`` with a small filesystem's directory, in a process with a mount namespace of its own."""
    where = tmp_path / "small"
    where.mkdir()
    program = (
        f"from pathlib import Path; from tests.unit.test_state_trouble import {work.__name__} as work; work(Path('.'))"
    )
    script = f'mount -t tmpfs -o {options} tmpfs "$0" && cd "$0" && exec "$1" -c "$2"'
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a filesystem of its own")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [unshare, "-Urm", "sh", "-c", script, str(where), sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def fill(path: Path, leave: int) -> Path:
    """Leave so many bytes of the small disk."""
    there = os.statvfs(path)
    filler = path / "filler"
    filler.write_bytes(b"\0" * max(0, there.f_bavail * there.f_frsize - leave))
    return filler


def refused_for_space(work: Callable[[], object]) -> None:
    """See that something does not fit, in our words."""
    with pytest.raises(StateFullError, match="disk is full") as refused:
        work()
    assert refused.value.exit_code == EXIT_TRY_LATER
    assert "free disk space" in refused.value.hint


def a_tick(where: Path) -> None:
    """Write a tick that does not fit."""
    path = where / "state.db"
    state = State.open(path)
    state.write(Tick(5, Position(5, 1), ledger=[("m", "1", known(1))]))
    filler = fill(where, 64 << 10)
    refused_for_space(lambda: state.write(many()))
    assert (state.checkpoint().durable_lsn, state.records("m")) == (5, 1)
    state.close()
    filler.unlink()
    again = State.open(path)
    assert (again.checkpoint().durable_lsn, again.records("m")) == (5, 1)
    again.write(many())
    again.close()
    assert not look(path).problems


def a_start(where: Path) -> None:
    """Start where a new file does not fit."""
    path = where / "state.db"
    filler = fill(where, 16 << 10)
    refused_for_space(lambda: State.open(path))
    filler.unlink()
    State.open(path).close()
    assert not look(path).problems


def a_migration(where: Path) -> None:
    """Migrate where that does not fit: each step is done whole or not at all."""
    path = where / "state.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
        db.executemany(
            "INSERT INTO journal VALUES (1, ?, 0, 1, X'0002', 0, '[\"old\", \"new\"]', 5, 1, 6, 2, 1.5, 2.5)",
            [(str(number),) for number in range(5_000)],
        )
        db.commit()
        before = list(db.iterdump())
    filler = fill(where, 160 << 10)
    refused_for_space(lambda: State.open(path))
    filler.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
        assert version != "1" or list(db.iterdump()) == before
    state = State.open(path)
    assert state.schema == SCHEMA_VERSION
    assert sum(1 for _ in state.journal("done")) == 5_002
    state.close()


def a_backup(where: Path) -> None:
    """Make a backup that does not fit."""
    path = where / "state.db"
    made(path)
    fill(where, 64 << 10)
    refused_for_space(lambda: back_up(path, where / "backup.db"))
    assert not list(where.glob("backup*"))
    assert not look(path).problems


@pytest.mark.parametrize("work", [a_tick, a_start, a_migration, a_backup])
def test_a_full_disk_changes_nothing(work: Callable[[Path], None], tmp_path: Path) -> None:
    """What does not fit is refused whole, with 75 and what to do; with space again all goes on as if nothing was."""
    on_small_disk(work, tmp_path)


def read_only(where: Path) -> None:
    """Start on a filesystem that is mounted for reading only."""
    path = where / "state.db"
    made(path)
    subprocess.run(["mount", "-o", "remount,ro", str(where.absolute())], check=True)
    with pytest.raises(StateError, match=r"cannot (open|lock) the state file .*Read-only") as refused:
        State.open(path)
    assert refused.value.exit_code == EXIT_NOT_FINE


def test_a_place_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """A read-only filesystem is told as what it is."""
    on_small_disk(read_only, tmp_path)
