"""The file under ``state.State``: opened alone, read beside the daemon, and written in whole transactions."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cdcsync.claim import Claim
from cdcsync.errors import REBUILD, MirrorError, StateAbsentError, StateError
from cdcsync.lineage import Lineage, next_revision
from cdcsync.state_database import Database, connect, damaged, unwritable
from cdcsync.state_mirror import Mirror
from cdcsync.state_schema import COPIES, LADDER, MIGRATIONS, SCHEMA, SCHEMA_VERSION

COMPANIONS: Final = ("", "-wal", "-shm")
"""What SQLite's files of one database end with."""
WHOLE_CHECK: Final = 1 << 30
"""Bytes up to which a start checks all of the file, which takes 1.8 s per GB that the system has in memory."""
LARGE_TABLES: Final = frozenset({"journal", "ledger", "met"})
"""Those that grow with the rows; in a file above ``WHOLE_CHECK`` a damaged page of theirs is found when it is read."""
WAL_LIMIT: Final = 64 << 20
"""Bytes that the write-ahead log keeps on disk; it grows beyond while somebody reads for long."""


class StateFile:
    """An open SQLite database of ours, and its mirror where it has one."""

    def __init__(self, db: Database, path: Path, *, mirror: Mirror | None = None, claim: Claim | None = None) -> None:
        self._db = db
        self.path = path
        self._mirror = mirror
        self._claim = claim
        self._writer = secrets.token_hex(4) if claim is not None else None

    @classmethod
    def open(cls, path: Path, mirror: Path | None = None, claim: Claim | None = None) -> StateFile:
        """Open or create the file for writing, alone, and bring it and its mirror to the newer state of the two.

        ``claim`` is the right to do so, if it was taken before; ``close`` gives it back. Raises StateError when a file
        cannot be used, StateHeldError while another process has it, MirrorError when the mirror is to blame.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            claim = claim or Claim.take(path, mirror)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            for end in COMPANIONS:
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + end).chmod(0o600)
            db = connect(path)
        except OSError as error:
            if claim is not None:
                claim.release()
            raise unwritable(path, error.strerror or str(error)) from error
        file = cls(db, path, claim=claim)
        try:
            file._prepare(mirror)
        except StateError:
            file.close()
            raise
        return file

    @classmethod
    def read(cls, path: Path, oldest: int = SCHEMA_VERSION) -> StateFile:
        """Open an existing file read-only, beside a running daemon. Raises StateError, also below schema ``oldest``."""
        if not path.exists():
            raise _absent(path)
        db = connect(path, read_only=True)
        file = cls(db, path)
        try:
            if not _has_tables(db):
                raise _absent(path)
            _check_version(db, path, oldest)
        except StateError:
            file.close()
            raise
        return file

    @classmethod
    def beside(cls, path: Path, mirror: Path | None = None) -> StateFile:
        """Open an existing file for a small change beside a running daemon. Raises StateError."""
        cls.read(path).close()
        db = connect(path, timeout=10.0)
        return cls(db, path, mirror=Mirror.beside(mirror) if mirror is not None else None)

    def close(self) -> None:
        """Close the files and release the locks."""
        self._db.close()
        if self._mirror is not None:
            self._mirror.close()
        if self._claim is not None:
            self._claim.release()

    @property
    def alone(self) -> bool:
        """Whether this process holds the locks."""
        return self._claim is not None

    @property
    def mirrored(self) -> bool:
        """Whether each transaction goes to a mirror, too."""
        return self._mirror is not None

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement; one that writes belongs into a ``transaction``."""
        cursor = self._db.execute(statement, values)
        if self._mirror is not None and cursor.description is None:  # it gives no rows, so it writes
            self._mirror.execute(statement, values)
        return cursor

    def executemany(self, statement: str, rows: Collection[Sequence[Any]]) -> None:
        """Run a writing statement for each of ``rows``, in a ``transaction``."""
        self._db.executemany(statement, rows)
        if self._mirror is not None and rows:
            self._mirror.executemany(statement, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write whole or not at all. Raises StateError (disk full, locked by another process for long, …).

        The mirror's commit comes first: the mirror is what fails more easily, and then neither file has changed. A
        crash between the two leaves the mirror ahead, and the next start, wherever it is, goes on from there.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            if self._mirror is not None:
                self._mirror.begin(self.meta("revision"))
            yield
            self.set_meta("revision", next_revision(self.meta("revision"), self._writer))
            if self._mirror is not None:
                self._mirror.commit()
            self._db.execute("COMMIT")
        finally:
            if self._mirror is not None:
                self._mirror.roll_back()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """See one state of the file, whatever others write meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    @property
    def blank(self) -> bool:
        """Whether the file holds nothing of worth."""
        return _is_blank(self._db)

    def verify(self) -> None:
        """See that the file holds together, as far as a start looks. Raises StateDamagedError."""
        for part in _to_check(self._db):
            found = self._db.execute(f"PRAGMA quick_check{part}").fetchone()[0]
            if found != "ok":
                raise damaged(self.path, found)

    def faults(self, limit: int, *, quick: bool = False) -> tuple[str, ...]:
        """Look at every page; returns what does not hold together, at most ``limit`` faults."""
        found = self._db.execute(f"PRAGMA {'quick' if quick else 'integrity'}_check({limit})").fetchall()
        return tuple(fault for (fault,) in found if fault != "ok")

    def confirm(self) -> None:
        """See that the files are still this daemon's. Raises StateError where another one may write, or has written."""
        if self._claim is not None:
            self._claim.confirm()
        if self._mirror is None:
            return
        self._db.execute("BEGIN IMMEDIATE")  # so that no command beside us is between its two commits
        try:
            self._mirror.confirm(self.meta("revision"))
        finally:
            self._db.execute("ROLLBACK")

    def give_back(self) -> None:
        """Let the filesystem have some of the free pages, where there are many; an outage may have left them."""
        self._db.give_back()
        if self._mirror is not None:
            self._mirror.give_back()

    def meta(self, key: str) -> str | None:
        """Return a setting of the table ``meta``."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Write a setting, in a ``transaction``."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # --- inside

    def _prepare(self, mirror: Path | None) -> None:
        if _has_tables(self._db):
            _check_version(self._db, self.path)
        else:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # later it would take a VACUUM
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        # FULL: what is confirmed to PostgreSQL must survive a power cut, not only a crash of the process.
        self._db.execute("PRAGMA synchronous = FULL")
        known = _has_tables(self._db) and self.meta("mirrored") is not None
        other = Mirror.open(mirror, known=known) if mirror is not None else None
        try:
            if other is not None and self._older_than(other):
                other.copy_to(self._db)
            self._check_and_create()
            if other is not None and not self._equals(other):
                other.fill(self._db)
        except BaseException:
            if other is not None:
                other.close()
            raise
        self._mirror = other
        self._migrate()
        self._begin()

    def _older_than(self, other: Mirror) -> bool:
        """Whether the mirror holds what this file lacks. Raises MirrorError if neither went on from the other."""
        if not _has_tables(other.db):
            return False
        _check_version(other.db, other.path)
        if _is_blank(self._db):
            return True
        ours, theirs = self._lineage(), other.lineage()
        if ours is not None and theirs is not None and theirs.contains(ours):
            return theirs != ours
        if _is_blank(other.db) or (ours is not None and theirs is not None and ours.contains(theirs)):
            return False
        raise MirrorError(
            f"the state file {self.path} and its mirror {other.path} have gone separate ways: neither is a copy of the "
            "other",
            hint="If they belong together, keep the one that the slot was last confirmed from, and move the other away "
            "(in place of a mirror, leave an empty file). See docs/standby.md.",
        )

    def _equals(self, other: Mirror) -> bool:
        lineage = self._lineage()
        return lineage is not None and _has_tables(other.db) and other.lineage() == lineage

    def _check_and_create(self) -> None:
        self.verify()
        if not _has_tables(self._db):
            with self.transaction():
                for statement in (SCHEMA + LADDER + COPIES).split(";"):
                    self.execute(statement)
                self.set_meta("schema_version", str(SCHEMA_VERSION))

    def _migrate(self) -> None:
        version = _check_version(self._db, self.path)
        while version < SCHEMA_VERSION:
            with self.transaction():
                for statement in MIGRATIONS[version].split(";"):
                    self.execute(statement)
                version += 1
                self.set_meta("schema_version", str(version))

    def _begin(self) -> None:
        """Write down that a new writer begins: from here on, older copies know that they are."""
        lineage = self._lineage() or Lineage((), 0)
        with self.transaction():
            self.set_meta("writers", lineage.followed_by(self._writer or "").writers_text)
            if self._mirror is not None:
                self.set_meta("mirrored", "1")
            else:
                self.execute("DELETE FROM meta WHERE key = 'mirrored'")

    def _lineage(self) -> Lineage | None:
        return Lineage.parse(self.meta("writers"), self.meta("revision"))


def _absent(path: Path) -> StateAbsentError:
    return StateAbsentError(
        f"there is no state file at {path}",
        hint=f"Has `cdcsync run` been started with this config? If the file was lost: {REBUILD}.",
    )


def set_aside(path: Path, why: str) -> Path:
    """Move a database away, together with what SQLite keeps beside it; returns where it is now."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
        number += 1
    for end in COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    return aside


def _to_check(db: Database) -> list[str]:
    """Say what a start checks: all of the file, or in a large one all tables but the large ones."""
    if size(db) <= WHOLE_CHECK:
        return [""]
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [f"('{name}')" for name in names if name not in LARGE_TABLES]


def size(db: Database) -> int:
    """Return the bytes of the database, free pages included."""
    page, pages = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
    return int(page * pages)


def _has_tables(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _is_blank(db: sqlite3.Connection) -> bool:
    """Whether a file holds nothing of worth: it never belonged to a slot, and knows no mapping."""
    if not _has_tables(db):
        return True
    bound = db.execute("SELECT count(*) FROM meta WHERE key IN ('identity', 'intended_slot')").fetchone()[0]
    return not bound and not db.execute("SELECT count(*) FROM mapping").fetchone()[0]


def _check_version(db: sqlite3.Connection, path: Path, oldest: int = 1) -> int:
    ours = db.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone()[0]
    row = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() if ours else None
    if row is None:
        raise StateError(f"{path} is not a state file of cdcsync", hint="Point [state] path at a file of its own.")
    version = int(row[0])
    if version > SCHEMA_VERSION:
        raise StateError(
            f"the state file {path} was written by a newer cdcsync (schema {version}, this one knows {SCHEMA_VERSION})",
            hint=f"Upgrade cdcsync; an older one must not touch the file. To go back: move it away, and {REBUILD}.",
        )
    if version < oldest:
        raise StateError(
            f"the state file {path} is of an older cdcsync", hint="Start `cdcsync run` of this version first."
        )
    return version
