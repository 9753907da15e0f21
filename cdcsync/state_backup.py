"""Copies of the state file: made while the daemon writes, and put in its place when it is lost.

A backup is one complete file. It says of itself that it is one: when it takes the state file's place, much may have
been sent that it does not know of, and the start acts on that (``docs/state.md``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from cdcsync.claim import Claim
from cdcsync.errors import StateError
from cdcsync.state import BACKUP
from cdcsync.state_check import refuse_unsound
from cdcsync.state_database import Database, connect, trouble, unwritable
from cdcsync.state_file import COMPANIONS, StateFile, set_aside

PAGES: Final = 500
"""Copied at a time: 2 MB."""
PAUSE: Final = 0.002
"""Seconds between two steps, in which the disk is the daemon's."""

Told: TypeAlias = Callable[[int, int], None]
"""Is told how many pages are copied, and of how many."""


def back_up(path: Path, target: Path, *, force: bool = False, told: Told = lambda *_: None) -> int:
    """Copy a state file, beside a daemon that goes on writing, as it is now; returns the bytes of the copy.

    ``target`` is there when it is complete and on disk, or not at all; with ``force`` it may take another file's place.
    Raises StateError, StateFullError where it does not fit.
    """
    _refuse_place(path, target, force=force)
    StateFile.read(path).close()
    now = dt.datetime.now(dt.UTC).isoformat(" ", "seconds")
    return _place(path, target, now, told, force=force)


def restore(backup: Path, path: Path, mirror: Path | None = None, told: Told = lambda *_: None) -> Path | None:
    """Put a copy of ``backup`` in the state file's place; returns where what was there is now, None if nothing was.

    The daemon must not run. Raises StateHeldError if it does, StateDamagedError for an unsound backup, StateError where
    there is a mirror, which is newer than any backup.
    """
    refuse_unsound(backup)
    if mirror is not None and mirror.exists() and mirror.stat().st_size:
        raise StateError(
            f"the state file has a mirror, {mirror}, which is newer than a backup",
            hint=f"Move {path} away and start again: the mirror is copied. If the mirror is lost, too: make it an empty"
            " file, and restore then.",
        )
    claim = Claim.take(path, mirror)
    try:
        taken = _marked(backup) or f"unknown time (restored {dt.datetime.now(dt.UTC).isoformat(' ', 'seconds')})"
        there = any(path.with_name(path.name + end).exists() for end in COMPANIONS)
        part = _copied(backup, path, taken, told)
        # Its -wal, left beside another database, would be taken for that one's.
        aside = set_aside(path, "replaced") if there else None
        part.replace(path)
        _sync(path.parent)
    finally:
        claim.release()
    return aside


def _refuse_place(path: Path, target: Path, *, force: bool) -> None:
    if target.exists() and path.exists() and target.samefile(path):
        raise StateError(f"{target} is the state file itself", hint="Name another file.")
    if target.exists() and not force:
        raise StateError(f"{target} is there already", hint="Name another file, or give --force to replace it.")
    if target.is_dir():
        raise StateError(f"{target} is a directory", hint="Name a file in it.")


def _place(path: Path, target: Path, taken: str, told: Told, *, force: bool) -> int:
    part = _copied(path, target, taken, told)
    try:
        if force:
            part.replace(target)
        else:
            os.link(part, target)  # fails where a file has come meanwhile
            part.unlink()
        _sync(target.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritable(target, error.strerror or str(error)) from error
    return target.stat().st_size


def _copied(source: Path, target: Path, taken: str, told: Told) -> Path:
    """Copy a database beside ``target``, as it is now; returns the file, which is on disk."""
    part = target.with_name(target.name + ".part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(connect(part)) as copy, contextlib.closing(connect(source, read_only=True)) as origin:
            _fill(copy, origin, told)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, complete without others
            copy.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (BACKUP, taken))
        _sync(part)
    except (OSError, StateError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(target, error.strerror or str(error)) from error
        raise
    return part


def _fill(copy: Database, origin: Database, told: Told) -> None:
    """Copy all pages in steps; a transaction that reads holds the state of now, so that no write begins it anew."""

    def pause(_: int, remaining: int, total: int) -> None:
        told(total - remaining, total)
        time.sleep(PAUSE)

    origin.execute("BEGIN")
    origin.execute("SELECT count(*) FROM meta").fetchone()
    try:
        origin.backup(copy, pages=PAGES, progress=pause)
    except sqlite3.Error as error:
        raise trouble(copy.path, error) from error
    finally:
        origin.execute("ROLLBACK")


def _marked(backup: Path) -> str | None:
    with contextlib.closing(StateFile.read(backup, 1)) as file:
        return file.meta(BACKUP)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
