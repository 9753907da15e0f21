"""Whose turn it is: requests wait by class, the more urgent first, yet none for ever. Pure.

While all classes wait, of seven turns four are for high, two for normal and one for low (stride scheduling: each class
has a pass that rises by 1/weight with each turn, and the lowest pass is next). Within a class: first come, first
served.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection
from typing import Final, Generic, Literal, TypeAlias, TypeVar, get_args

T = TypeVar("T")

Priority: TypeAlias = Literal["high", "normal", "low"]

PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)
WEIGHTS: Final[dict[Priority, int]] = {"high": 4, "normal": 2, "low": 1}


class Turns(Generic[T]):
    """Those who wait."""

    def __init__(self) -> None:
        self._queues: dict[Priority, deque[T]] = {priority: deque() for priority in PRIORITIES}
        self._passes: dict[Priority, float] = dict.fromkeys(PRIORITIES, 0.0)
        self._now = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def waiting(self) -> list[Priority]:
        """The classes of which somebody waits."""
        return [priority for priority, queue in self._queues.items() if queue]

    def add(self, priority: Priority, one: T) -> None:
        """Let somebody wait. A class of which nobody waited has not saved up turns."""
        if not self._queues[priority]:
            self._passes[priority] = max(self._passes[priority], self._now)
        self._queues[priority].append(one)

    def remove(self, priority: Priority, one: T) -> None:
        """Let somebody go who does not want to wait any longer, if he still does."""
        with contextlib.suppress(ValueError):
            self._queues[priority].remove(one)

    def clear(self) -> list[T]:
        """Let all go."""
        all_of_them = [one for queue in self._queues.values() for one in queue]
        for queue in self._queues.values():
            queue.clear()
        return all_of_them

    def take(self, among: Collection[Priority]) -> tuple[Priority, T]:
        """Give the turn to somebody of one of the classes ``among``, of which somebody must wait."""
        priority = min((one for one in PRIORITIES if one in among and self._queues[one]), key=self._passes.__getitem__)
        self._now = self._passes[priority]
        self._passes[priority] += 1 / WEIGHTS[priority]
        return priority, self._queues[priority].popleft()
