"""Allocations per rolling day."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

_SLICES: Final = 1440  # a day is forgotten minute by minute


class Quota:
    """One allocation: ``limit`` and ``day_seconds`` are read from the settings at every use."""

    def __init__(self, settings: Mapping[str, Any], limit: str) -> None:
        self._settings = settings
        self._name = limit
        self._used: deque[tuple[int, int]] = deque()
        self._total = 0

    @property
    def limit(self) -> int:
        """The allocation."""
        return int(self._settings[self._name])

    def used(self, now: float) -> int:
        """Count what was used in the last day."""
        oldest = self._slice(now) - _SLICES
        while self._used and self._used[0][0] <= oldest:
            self._total -= self._used.popleft()[1]
        return self._total

    def remaining(self, now: float) -> int:
        """Count what is left, not below 0."""
        return max(0, self.limit - self.used(now))

    def take(self, now: float, count: int = 1) -> bool:
        """Use some, if that much is left."""
        if self.remaining(now) < count:
            return False
        present = self._slice(now)
        if self._used and self._used[-1][0] == present:
            count_there = self._used.pop()[1]
            self._used.append((present, count_there + count))
        else:
            self._used.append((present, count))
        self._total += count
        return True

    def clear(self) -> None:
        """Forget all use."""
        self._used.clear()
        self._total = 0

    def _slice(self, now: float) -> int:
        return int(now / (float(self._settings["day_seconds"]) / _SLICES))
