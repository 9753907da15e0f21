"""Whose turn it is, where several wait: each has its share, by weight, and nobody waits for ever. Pure.

Start-time fair queueing: of those that wait, the one goes whose next turn would start first, on a clock that runs by
turns taken; the more weight one has, the shorter a turn. Who was not there does not save turns up.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


class Shares:
    """Shares turns out by weight."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[Hashable, float] = {}
        """When the last turn of each ends."""

    def first(self, waiting: Mapping[T, float]) -> T | None:
        """Say whose turn it is among those that wait, given with their weights."""
        return min(waiting, key=lambda who: (self._start(who), -waiting[who]), default=None)

    def took(self, who: Hashable, weight: float) -> None:
        """Note that somebody took a turn."""
        self._now = self._start(who)
        self._ends[who] = self._now + 1.0 / weight

    def _start(self, who: Hashable) -> float:
        return max(self._now, self._ends.get(who, 0.0))
