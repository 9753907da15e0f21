"""What a state file is and whether it holds together: all of it, page by page, and its books."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdcsync.entries import Balance, Checkpoint, Identity
from cdcsync.errors import StateDamagedError
from cdcsync.state import State
from cdcsync.state_file import COMPANIONS, StateFile

FAULTS: Final = 10
"""Faults that are told of a damaged file."""
TABLES: Final = (
    "journal",
    "ledger",
    "reject",
    "reject_request",
    "job",
    "copy",
    "met",
    "mapping",
    "relation",
    "shape",
    "sent_link",
    "pause",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a look at a state file found; sizes in bytes. ``wal_bytes`` is what SQLite keeps beside it.

    ``faults`` are SQLite's, ``problems`` all that is not fine, in words. ``backup`` is when the file was copied, if it
    is a backup.
    """

    path: Path
    schema: int
    identity: Identity | None
    checkpoint: Checkpoint
    timeline: int | None
    backup: str | None
    bytes: int
    free_bytes: int
    wal_bytes: int
    rows: dict[str, int]
    books: tuple[Balance, ...]
    faults: tuple[str, ...]
    problems: tuple[str, ...]


def look(path: Path, *, quick: bool = False) -> Report:
    """Check a state file, beside a daemon or not; ``quick`` leaves out whether indexes agree with their tables.

    Raises StateError for a file that cannot be read as one.
    """
    with contextlib.closing(State.read(path)) as state, state.reading():
        faults = state.faults(FAULTS, quick=quick)
        sound = not faults
        rows = {name: state.count(name) for name in TABLES} if sound else {}
        books = tuple(state.balances()) if sound else ()
        used = state.size()
        return Report(
            path=path,
            schema=state.schema,
            identity=state.identity(),
            checkpoint=state.checkpoint(),
            timeline=state.timeline(),
            backup=state.backed_up(),
            bytes=path.stat().st_size,
            free_bytes=max(0, path.stat().st_size - used),
            wal_bytes=_size(path.with_name(path.name + "-wal")),
            rows=rows,
            books=books,
            faults=faults,
            problems=(*faults, *_readable(path), *_unbalanced(books)),
        )


def refuse_unsound(path: Path) -> None:
    """See that all of a file holds together. Raises StateDamagedError, or StateError for another kind of file."""
    with contextlib.closing(StateFile.read(path, 1)) as file:  # an older one is migrated when it is opened
        for fault in file.faults(1):
            raise StateDamagedError(f"{path} is damaged: {fault}", hint="Take another backup.")


def _unbalanced(books: tuple[Balance, ...]) -> list[str]:
    return [f"the books of {one.lane} do not balance: {one.missing:+,} changes" for one in books if one.missing]


def _readable(path: Path) -> list[str]:
    """Name the files that others than the owner may read or write: rows of customers lie in them."""
    places = (path.with_name(path.name + end) for end in COMPANIONS)
    return [
        f"{place} has mode {mode:04o}, and should have 0600"
        for place in places
        if place.exists() and (mode := stat.S_IMODE(place.stat().st_mode)) & 0o077
    ]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
