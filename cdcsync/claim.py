"""The right to write a state file: a lock beside it and one beside its mirror, held by one daemon at a time.

``flock`` is released by the kernel when the process ends, however it ends. On NFS (version 4) it is a lock at the
server, which releases it when the machine has not been heard of for the server's lease time.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import socket
from pathlib import Path

from cdcsync.errors import StateError, StateHeldError, StateLostError


class Claim:
    """The locks, held until ``release`` or the end of the process."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    @classmethod
    def take(cls, path: Path, mirror: Path | None = None) -> Claim:
        """Take all locks or none. Raises StateHeldError while another process has one, StateError if locking fails."""
        claim = cls()
        try:
            # The mirror's goes first: it is the one that two machines compete for.
            for place in [mirror, path] if mirror is not None else [path]:
                claim._take(lock_of(place), place)
        except BaseException:
            claim.release()
            raise
        for descriptor in claim._held.values():
            _sign(descriptor)
        return claim

    def _take(self, lock: Path, place: Path) -> None:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._held[lock] = descriptor
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = holder(place)
            raise StateHeldError(
                f"another cdcsync is running with the state file {place}: {who}",
                holder=who,
                hint="Stop it first, or give this one its own [state] path and slot; `cdcsync run --standby` waits.",
            ) from error
        except OSError as error:
            raise StateError(
                f"cannot lock the state file {place}: {error.strerror}",
                hint="The directory has to be there and writable by the daemon's user, on a filesystem with locks.",
            ) from error
        self._check(lock)

    def confirm(self) -> None:
        """See that the locks are still those that others would take. Raises StateLostError where one was removed."""
        for lock in self._held:
            self._check(lock)

    def _check(self, lock: Path) -> None:
        try:
            same = os.path.samestat(lock.stat(), os.fstat(self._held[lock]))
        except OSError:
            same = False
        if not same:
            raise StateLostError(
                f"the lock file {lock} was removed or cannot be reached: another cdcsync might run beside this one",
                hint="Never remove it; it needs no care. See that its storage is there, and start again.",
            )

    def release(self) -> None:
        """Let others have the locks."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()


def held_by(place: Path) -> str | None:
    """Say which process has a state file or mirror now; None if none has, or that cannot be seen."""
    with contextlib.suppress(FileNotFoundError, PermissionError), lock_of(place).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder(place)
    return None


def lock_of(place: Path) -> Path:
    """Name the lock file of a state file or mirror."""
    return place.with_name(place.name + ".lock")


def holder(place: Path) -> str:
    """Say who holds the lock, in the words that it left there; it may be gone by now."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads(lock_of(place).read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    return "process unknown"


def _sign(descriptor: int) -> None:
    now = dt.datetime.now(dt.UTC).isoformat(" ", "seconds")
    note = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, note, 0)
