"""How long to leave work alone that failed: three attempts in quick succession, then longer and longer. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

QUICK: Final = (0.2, 0.5, 1.0)
"""Seconds after the first failures in a row: most troubles of a network are over by then."""
FIRST: Final = 2.0
LONGEST: Final = 60.0


@dataclass(slots=True)
class Backoff:
    """The failures in a row of one kind of work."""

    failures: int = 0
    until: float = 0.0
    """When it may be tried again, on the caller's clock."""

    def failed(self, now: float, spread: float, longest: float = LONGEST) -> float:
        """Note a failure; returns the seconds until the next attempt. ``spread``: a random number from 0 to 1."""
        delay = delay_after(self.failures, longest) * (0.5 + spread / 2)
        self.failures += 1
        self.until = max(self.until, now + delay)
        return delay

    def ok(self) -> None:
        """Note a success."""
        self.failures, self.until = 0, 0.0


def delay_after(failures: int, longest: float = LONGEST) -> float:
    """Return the seconds until the next attempt after so many failures before this one."""
    if failures < len(QUICK):
        return QUICK[failures]
    return min(longest, FIRST * 2.0 ** min(failures - len(QUICK), 16))
