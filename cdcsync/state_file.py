"""The file under ``state.State``: opened alone, read beside the daemon, and written in whole transactions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cdcsync.errors import StateError
from cdcsync.state_schema import COPIES, MIGRATIONS, SCHEMA, SCHEMA_VERSION


class StateFile:
    """An open SQLite database of ours. ``alone`` is whether no other process may open it for the daemon."""

    def __init__(self, db: sqlite3.Connection, path: Path, lock: IO[str] | None) -> None:
        self._db = db
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> StateFile:
        """Open or create the file for writing, alone. Raises StateError when it cannot be used."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise StateError(
                f"cannot open the state file {path}: {error.strerror}",
                hint="Give the daemon's user a writable directory in [state] path.",
            ) from error
        file = cls(db, path, lock)
        try:
            file._prepare()
        except sqlite3.DatabaseError as error:
            file.close()
            raise _damaged(path, error) from error
        except StateError:
            file.close()
            raise
        return file

    @classmethod
    def read(cls, path: Path) -> StateFile:
        """Open an existing file read-only, beside a running daemon. Raises StateError."""
        if not path.exists():
            raise StateError(
                f"there is no state file at {path}", hint="Has `cdcsync run` been started with this config?"
            )
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        file = cls(db, path, None)
        try:
            file._check_version(oldest=SCHEMA_VERSION)
        except StateError:
            file.close()
            raise
        except sqlite3.DatabaseError as error:
            file.close()
            raise _damaged(path, error) from error
        return file

    @classmethod
    def beside(cls, path: Path) -> StateFile:
        """Open an existing file for a small change beside a running daemon. Raises StateError."""
        cls.read(path).close()
        return cls(sqlite3.connect(path, isolation_level=None, timeout=10), path, None)

    def close(self) -> None:
        """Close the file and release the lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def alone(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement; one that writes belongs into a ``transaction``."""
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a writing statement for each of ``rows``, in a ``transaction``."""
        self._db.executemany(statement, rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write whole or not at all. Raises StateError (disk full, locked by another process for long, …)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                raise
            raise StateError(
                f"cannot write the state file {self.path}: {error}",
                hint="Nothing was lost: free disk space and start again; the stream goes on at the last checkpoint.",
            ) from error

    def meta(self, key: str) -> str | None:
        """Return a setting of the table ``meta``."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Write a setting, in a ``transaction``."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: what is confirmed to PostgreSQL must survive a power cut, not only a crash of the process.
        self._db.execute("PRAGMA synchronous = FULL")
        if self._db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise _damaged(self.path, None)
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables == 0:
            with self.transaction():
                for statement in (SCHEMA + COPIES).split(";"):
                    self.execute(statement)
                self.set_meta("schema_version", str(SCHEMA_VERSION))
        self._migrate()

    def _migrate(self) -> None:
        version = self._check_version()
        while version < SCHEMA_VERSION:
            with self.transaction():
                for statement in MIGRATIONS[version].split(";"):
                    self.execute(statement)
                version += 1
                self.set_meta("schema_version", str(version))

    def _check_version(self, oldest: int = 1) -> int:
        version = int(self.meta("schema_version") or 0)
        if version == 0:
            raise StateError(
                f"{self.path} is not a state file of cdcsync", hint="Point [state] path at a file of its own."
            )
        if version > SCHEMA_VERSION:
            raise StateError(
                f"the state file {self.path} was written by a newer cdcsync (schema {version}, this one knows "
                f"{SCHEMA_VERSION})",
                hint="Upgrade cdcsync; an older one must not touch the file.",
            )
        if version < oldest:
            raise StateError(
                f"the state file {self.path} is of an older cdcsync", hint="Start `cdcsync run` of this version first."
            )
        return version


def _lock(path: Path) -> IO[str]:
    lock = path.with_name(path.name + ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StateError(
            f"another cdcsync is running with the state file {path}",
            hint="Stop it first, or give this one its own [state] path and slot.",
        ) from error
    return lock


def _damaged(path: Path, error: Exception | None) -> StateError:
    return StateError(
        f"the state file {path} is damaged{f': {error}' if error else ''}",
        hint="Keep a copy, remove it, drop the slot with `cdcsync slot drop`, and start again: rows are copied anew.",
    )
