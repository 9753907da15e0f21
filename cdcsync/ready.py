"""Keys of rows that may be looked at, oldest first: those of changes, and those that only a copy has brought. Pure.

A change of the database is news; a copied row is as it has been for long. So changes need not stand behind a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain


class Ready:
    """Two queues of keys, each with the time since when."""

    def __init__(self) -> None:
        self._changes: dict[str, float] = {}
        self._copies: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._changes) + len(self._copies)

    def __contains__(self, key: str) -> bool:
        return key in self._changes or key in self._copies

    def add(self, key: str, now: float, *, copied: bool) -> None:
        """Add a key; one that is there keeps its time, and its place among its kind."""
        at = self.pop(key, now) if key in self._of(copied=not copied) else now
        self._of(copied=copied).setdefault(key, at)

    def pop(self, key: str, otherwise: float = 0.0) -> float:
        """Remove a key, if it is there; returns the time since when it was."""
        return self._changes.pop(key, self._copies.pop(key, otherwise))

    def since(self, *, copied: bool) -> float | None:
        """Return the time since when the first of a kind has been here."""
        return next(iter(self._of(copied=copied).values()), None)

    def oldest(self) -> float | None:
        """Return the time since when the first of all has been here; roughly, since keys may change their kind."""
        return min((at for at in (self.since(copied=False), self.since(copied=True)) if at is not None), default=None)

    def keys(self, *, copied: bool = False) -> Iterator[str]:
        """Yield all keys, those of one kind first."""
        return chain(self._of(copied=copied), self._of(copied=not copied))

    def _of(self, *, copied: bool) -> dict[str, float]:
        return self._copies if copied else self._changes
