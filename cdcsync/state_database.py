"""A SQLite connection whose failures are ours: damaged, full, or not to be written, each with what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cdcsync.errors import REBUILD, StateDamagedError, StateError, StateFullError

PRIMARY: Final = 0xFF
"""The part of SQLite's extended result codes that says what kind of failure it is."""
UNWRITABLE: Final = frozenset({sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
SPARE: Final = 256 << 20
"""Bytes of free pages that a file may keep, as long as they are no more than those in use."""
GIVEN_BACK: Final = 2_000
"""Free pages that are given back to the filesystem at a time."""
ROOM: Final = 1 << 20
"""A filesystem with less is full, whatever a failed write is called: SQLite reports some as errors of the device."""


class Database(sqlite3.Connection):
    """A connection that raises StateError where SQLite fails."""

    path: Path

    def execute(self, *arguments: Any) -> _Cursor:
        """Run one statement."""
        return self.cursor(_Cursor).execute(*arguments)

    def executemany(self, statement: str, rows: Iterable[Any]) -> _Cursor:
        """Run one statement for each of ``rows``."""
        return self.cursor(_Cursor).executemany(statement, rows)

    def give_back(self) -> None:
        """Let the filesystem have some of the free pages, where there are many."""
        try:
            give_back(self)
        except sqlite3.Error as error:
            raise trouble(self.path, error) from error


class _Cursor(sqlite3.Cursor):
    """Rows come one by one, so a damaged page may be met after ``execute``."""

    connection: Database

    def execute(self, *arguments: Any) -> _Cursor:
        try:
            super().execute(*arguments)
        except sqlite3.Error as error:
            raise trouble(self.connection.path, error) from error
        return self

    def executemany(self, statement: str, rows: Iterable[Any]) -> _Cursor:
        try:
            super().executemany(statement, rows)
        except sqlite3.Error as error:
            raise trouble(self.connection.path, error) from error
        return self

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except sqlite3.Error as error:
            raise trouble(self.connection.path, error) from error

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except sqlite3.Error as error:
            raise trouble(self.connection.path, error) from error

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.Error as error:
            raise trouble(self.connection.path, error) from error


def connect(path: Path, *, read_only: bool = False, timeout: float = 5.0) -> Database:
    """Connect to a database file, which is made if it is not there and not ``read_only``. Raises StateError."""
    mode = "?mode=ro" if read_only else ""
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}{mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=timeout,
            factory=Database,
        )
    except sqlite3.Error as error:
        raise trouble(path, error) from error
    db.path = path
    return db


def give_back(db: sqlite3.Connection) -> None:
    """Let the filesystem have some of a database's free pages, where there are many."""
    pages, free, page = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    if free * page > SPARE and 2 * free > pages:
        # A step gives back one page, and has no columns: only a script is run to its end.
        db.executescript(f"PRAGMA incremental_vacuum({GIVEN_BACK})")


def trouble(path: Path, error: sqlite3.Error) -> StateError:
    """Say what a failure of SQLite means for the state file, and what to do about it."""
    kind = _kind(error)
    if kind in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return damaged(path, str(error))
    if is_full(path, error):
        return StateFullError(
            f"cannot write the state file {path}: its disk is full",
            hint="Nothing was lost: free disk space and start again; the stream goes on at the last checkpoint.",
        )
    if kind in UNWRITABLE:
        return unwritable(path, str(error))
    return StateError(
        f"cannot write the state file {path}: {error}",
        hint="Nothing was lost: see to its storage and start again; the stream goes on at the last checkpoint.",
    )


def unwritable(path: Path, reason: str) -> StateError:
    """Return the error for a file that cannot be opened or written as it is placed."""
    return StateError(
        f"cannot open the state file {path}: {reason}",
        hint="Name a file in [state] path, in a directory that the daemon's user may write to.",
    )


def damaged(path: Path, reason: str) -> StateDamagedError:
    """Return the error for a file that is to be given up."""
    return StateDamagedError(
        f"the state file {path} is damaged: {reason}",
        hint=f"With [state] mirror: move it away and start again, the mirror is copied. Without one: {REBUILD}.",
    )


def is_full(path: Path, error: sqlite3.Error) -> bool:
    """Whether something could not be written for want of space."""
    kind = _kind(error)
    if kind != sqlite3.SQLITE_IOERR:
        return kind == sqlite3.SQLITE_FULL
    there = os.statvfs(path.parent)
    return there.f_bavail * there.f_frsize < ROOM


def _kind(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & PRIMARY
