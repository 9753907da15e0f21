"""The mirror of a state file: a second database on other storage, in which each transaction is committed first.

So it is never behind what was confirmed to PostgreSQL or sent to a CRM, and whoever opens it goes on from there. It may
lie on a network filesystem, where SQLite's WAL mode does not work: it has a rollback journal.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdcsync.errors import MirrorError
from cdcsync.lineage import Lineage
from cdcsync.state_database import Database, give_back, is_full, trouble

BUSY_SECONDS = 30.0
"""How long a transaction waits for somebody who reads the mirror."""


class Mirror:
    """An open mirror. All methods raise MirrorError when it cannot be reached or written."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self.db = db
        self.path = path

    @classmethod
    def open(cls, path: Path, *, known: bool) -> Mirror:
        """Open the mirror; an empty file is a mirror to be filled. Where it is ``known`` it is not made anew."""
        if known and not path.exists():
            raise MirrorError(
                f"the mirror of the state file, {path}, is not there",
                hint=f"Mount its storage. To begin a new mirror, make an empty file (touch {path}); to go on without "
                "one, stop the standby and take [state] mirror out of the config.",
            )
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
        except OSError as error:
            raise MirrorError(
                f"cannot open the mirror {path}: {error.strerror}",
                hint="Give the daemon's user a directory that it may write to; it is not made, for it may be a mount.",
            ) from error
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
        mirror = cls(db, path)
        try:
            with mirror._reported():
                mirror._leave_wal_mode()
                db.execute("PRAGMA synchronous = FULL")
        except MirrorError:
            db.close()
            raise
        return mirror

    @classmethod
    def beside(cls, path: Path) -> Mirror:
        """Open the mirror for a small change beside a running daemon."""
        if not path.exists():
            raise MirrorError(f"the mirror {path} is not there", hint="Mount its storage.")
        mirror = cls(sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS), path)
        with mirror._reported():
            mirror.db.execute("PRAGMA journal_mode = TRUNCATE")
            mirror.db.execute("PRAGMA synchronous = FULL")
        return mirror

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    # --- copies

    def fill(self, source: sqlite3.Connection) -> None:
        """Make the mirror equal to ``source``, whole or not at all."""
        with self._reported():
            source.backup(self.db)
            self._leave_wal_mode()

    def copy_to(self, target: Database) -> None:
        """Make ``target`` equal to the mirror, whole or not at all. Raises StateError where it has no room."""
        with self._reported():
            try:
                self.db.backup(target)
            except sqlite3.Error as error:
                if is_full(target.path, error):  # only the target is written
                    raise trouble(target.path, error) from error
                raise

    def _leave_wal_mode(self) -> None:
        """Use a rollback journal; a copy of a database in WAL mode says that it is in WAL mode, too.

        TRUNCATE needs no directory entry to be made durable. An exclusive connection reads such a copy without the
        shared memory that a network filesystem cannot give.
        """
        self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
        if self.db.execute("PRAGMA journal_mode = TRUNCATE").fetchone() != ("truncate",):
            msg = "its journal is in use by another process"
            raise sqlite3.OperationalError(msg)
        self.db.execute("PRAGMA locking_mode = NORMAL")
        self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # gives the lock back

    # --- transactions

    def begin(self, revision: str | None) -> None:
        """Begin a transaction, if the mirror is at the state file's ``revision``."""
        with self._reported():
            self.db.execute("BEGIN IMMEDIATE")
        self.confirm(revision)

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any]) -> None:
        """Run a writing statement."""
        with self._reported():
            self.db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a writing statement for each of ``rows``."""
        with self._reported():
            self.db.executemany(statement, rows)

    def commit(self) -> None:
        """End the transaction; it is on the mirror's disk when this returns."""
        with self._reported():
            self.db.execute("COMMIT")

    def give_back(self) -> None:
        """Let the filesystem have some of the free pages, where there are many."""
        with self._reported():
            give_back(self.db)

    def roll_back(self) -> None:
        """Undo the transaction, if there is one; what cannot be undone now is when the mirror is opened next."""
        with contextlib.suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def confirm(self, revision: str | None) -> None:
        """See that nobody else has written to the mirror, and that it can be read now."""
        found = self._meta("revision")
        if found != revision:
            raise MirrorError(
                f"the mirror {self.path} is at revision {found}, and the state file at {revision}: another cdcsync "
                "writes the mirror",
                hint="That one is the active daemon now. This one ends; its next start copies the mirror. Commands "
                "that change something belong on the active daemon's machine.",
            )

    def lineage(self) -> Lineage | None:
        """Return which writers the mirror has had."""
        return Lineage.parse(self._meta("writers"), self._meta("revision"))

    def _meta(self, key: str) -> str | None:
        with self._reported():
            row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise MirrorError(
                f"cannot use the mirror {self.path}: {error}",
                hint="Nothing was lost, and nothing is sent without it. Mend its storage and start again; or take "
                "[state] mirror out of the config, once the standby is stopped.",
            ) from error
