"""The breaker: after five failures in a row a CRM is left alone for 1, 2, 4, 8, 16 and then always 30 minutes. Pure.

When such a time is over, one request goes as a probe. If it succeeds, all is as before; if it fails, the next longer
time begins. What fails for a reason of the data (a refused record or batch) is an answer, and so a success here.

Times are Unix times, since the ladder survives a restart. A clock that was set back does not keep the breaker open for
longer than the time that it stands on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

IN_A_ROW: Final = 5
LADDER: Final = (60.0, 120.0, 240.0, 480.0, 960.0, 1_800.0)
"""Seconds."""

BreakerWord: TypeAlias = Literal["closed", "open", "probing"]


@dataclass(frozen=True, slots=True)
class BreakerState:
    """What is kept over a restart: failures in a row while closed; since when it is open, and on which rung."""

    failures: int = 0
    rung: int = 0
    opened: float | None = None


class Breaker:
    """Decides whether a CRM may be asked. Every request that ``take`` let through ends in ``ok`` or ``refused``."""

    def __init__(self) -> None:
        self._state = BreakerState()
        self._probing = False

    def take(self, now: float) -> bool:
        """Whether a request may go. Open, it may once the time is over, and then only one, until it has its answer."""
        until = self.until(now)
        if until is None:
            return True
        if self._probing or now < until:
            return False
        self._probing = True
        return True

    def give_back(self) -> None:
        """Note that the probe was not sent, or that nobody knows what became of it: another one may go."""
        self._probing = False

    def ok(self) -> None:
        """Take an answer: the CRM works."""
        self._state = BreakerState()
        self._probing = False

    def refused(self, now: float) -> None:
        """Take a failure. While it is open, those of requests that were sent before do not count."""
        if self._state.opened is not None:
            if self._probing:
                self._state = replace(self._state, rung=min(self._state.rung + 1, len(LADDER) - 1), opened=now)
            self._probing = False
            return
        self._state = replace(self._state, failures=self._state.failures + 1)
        if self._state.failures >= IN_A_ROW:
            self._state = BreakerState(self._state.failures, 0, now)

    def until(self, now: float) -> float | None:
        """When the next probe may go (a time in the past: it may now, or is under way); None if closed."""
        if self._state.opened is None:
            return None
        if now < self._state.opened:  # the clock was set back
            self._state = replace(self._state, opened=now)
        return (self._state.opened or 0.0) + LADDER[self._state.rung]

    def word(self, now: float) -> BreakerWord:
        """Say how it stands: ``open`` means that nothing is sent, ``probing`` that one request may go, or does."""
        until = self.until(now)
        if until is None:
            return "closed"
        return "open" if now < until and not self._probing else "probing"

    def remember(self) -> BreakerState:
        """Give what has to be kept over a restart."""
        return self._state

    def restore(self, state: BreakerState) -> None:
        """Take up what ``remember`` gave; a probe that was under way is sent again."""
        rung = min(max(0, state.rung), len(LADDER) - 1)
        self._state = replace(state, failures=max(0, state.failures), rung=rung)
        self._probing = False
