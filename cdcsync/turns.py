"""Whose turn it is, where several wait: each gets its share, by weight, and nobody waits for ever. Pure.

Start-time fair queueing: of those that wait, the one goes whose next turn would start first on a clock that runs by turns
taken; a turn takes the less of it the more weight one has. Who was not there does not save turns up.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, Literal, TypeAlias, TypeVar

Priority: TypeAlias = Literal["high", "normal", "low"]
WEIGHTS: Final[Mapping[Priority, float]] = {"high": 16.0, "normal": 4.0, "low": 1.0}
"""Of all turns that both could use, a class takes four times as many as the next one."""

T = TypeVar("T", bound=Hashable)


class Turns:
    """Shares turns out by weight."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[Hashable, float] = {}
        """When the last turn of each ends."""

    def order(self, waiting: Mapping[T, float]) -> list[T]:
        """Sort those that wait, given with their weights: whose turn it is comes first."""
        return sorted(waiting, key=lambda who: (self._start(who), -waiting[who]))

    def took(self, who: Hashable, weight: float) -> None:
        """Note that somebody took a turn."""
        self._now = self._start(who)
        self._ends[who] = self._now + 1.0 / weight

    def _start(self, who: Hashable) -> float:
        return max(self._now, self._ends.get(who, 0.0))
