"""How the calls of a day are spread: our own share, and what other clients leave of the account's day. Pure.

While plenty is left, nobody is slowed. Past half of our share (or of what others leave of the account's day) calls are
spaced so that the rest lasts: over 24 hours for our own, rolling share, and until the account's day begins anew. A
small part is for urgent calls, which are not spaced. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from cdcsync.apply.account import AccountDay
from cdcsync.apply.budget import DayBudget
from cdcsync.model import Window

PLENTY: Final = 0.5
"""Part of our share that may go at any speed."""
URGENT_RESERVE: Final = 0.02
"""Part of our share that is for urgent calls alone."""
REVIEW: Final = 1.0
"""Seconds after which the pace is reckoned anew; sooner when a two-hundredth of our share was used."""


class Pause(NamedTuple):
    """Nothing is sent before ``until``."""

    until: float
    reason: str


class DayPace:
    """The day of one quota. ``allowance`` and ``spent`` as for ``DayBudget``, ``rolling`` as for ``AccountDay``."""

    def __init__(
        self, allowance: float | None, *, rolling: bool, spent: Iterable[tuple[float, int]], now: float
    ) -> None:
        self.budget = DayBudget(allowance, spent=spent, now=now)
        self.account = AccountDay(self.budget, rolling=rolling, now=now)
        self._refused: Pause | None = None
        self._spaced_at = now
        self._rate: float | None = None
        self._review_at = now
        self._review_used = 0

    def see(self, window: Window, now: float) -> None:
        """Take the account's day as an answer showed it."""
        self.budget.learn(window.limit)
        if self.account.see(window.limit, window.remaining, now):
            self.budget.restore((), now)
        self._review_at = now
        if not self.account.empty(now):
            self._refused = None
            return
        reason = f"all clients together have used the account's day ({window.remaining} of {window.limit} calls left)"
        self._refused = Pause(self.account.look_again(now), reason)

    def refused(self, retry_after: float | None, now: float) -> None:
        """Take a refusal for the day."""
        until = self.account.look_again(now) if retry_after is None else now + max(0.0, retry_after)
        reason = "the CRM's daily limit is reached; looking again from time to time"
        self._refused = max(self._refused or Pause(until, reason), Pause(until, reason))

    def sent(self, now: float, *, urgent: bool) -> None:
        """Count a call that is let through."""
        rate = self.rate(now)
        if rate and not urgent:
            self._spaced_at = max(now, self._spaced_at + 1 / rate)
        self.budget.spend(now)
        self.account.sent()

    def give_back(self) -> None:
        """Take the last call off the count: it was not made."""
        self.budget.give_back()
        self.account.sent(-1)

    def asked(self, now: float) -> Pause | None:
        """Until when the CRM's answers say that nothing should be sent today; None if something may."""
        if self._refused is not None and self._refused.until <= now:
            self._refused = None
        return self._refused

    def pause(self, now: float, *, urgent: bool = False) -> Pause | None:
        """Why and until when nothing may be sent today; None when something may."""
        asked = self.asked(now)
        exhausted = self.budget.exhausted_until(now, self._usable(urgent=urgent))
        if exhausted is None:
            return asked
        used, calls = self.budget.used(now), self.budget.calls
        reason = f"our budget of {calls} calls a day is used up ({used} made)"
        return max(Pause(exhausted, reason), asked or Pause(exhausted, reason))

    def turn(self, now: float) -> float:
        """When a call that is not urgent may go, as far as the pace is concerned; a time that is past: now."""
        rate = self.rate(now)
        return self._spaced_at + 1 / rate if rate else now

    def rate(self, now: float) -> float | None:
        """Give the calls a second by which the day lasts; None while nobody needs to be slowed."""
        usable, used = self._usable(urgent=False), self.budget.used(now)
        if now < self._review_at and abs(used - self._review_used) <= (usable or 0) / 200:
            return self._rate
        self._review_at, self._review_used = now + REVIEW, used
        ours = self._lasting(usable, now) if usable is not None and used > usable * PLENTY else None
        theirs = self.account.lasting(now)
        self._rate = min((rate for rate in (ours, theirs) if rate is not None), default=None)
        return self._rate

    def forecast(self, now: float) -> float | None:
        """When the day's calls will run out at the present pace; None if they last."""
        slowed = self.rate(now)
        rate = self.budget.pace(now) if slowed is None else min(slowed, self.budget.pace(now))
        usable = self._usable(urgent=False)
        length = self.account.length(now)
        ours = None if usable is None else self.budget.runs_out(now, usable, rate)
        if ours is not None and length is not None and ours >= now + length:
            ours = None
        theirs = self.account.runs_out(rate, now)
        return min((end for end in (ours, theirs) if end is not None), default=None)

    def remember(self, now: float) -> dict[str, Any]:
        """Give what has to be kept over a restart, in a form that JSON takes."""
        return {"spent": [list(entry) for entry in self.budget.spent(now)], "account": self.account.remember(now)}

    def restore(self, kept: Mapping[str, Any], now: float, down: float) -> None:
        """Take up what ``remember`` gave ``down`` seconds ago."""
        self.budget.restore([(age + down, calls) for age, calls in kept["spent"]], now)
        if self.account.restore(kept["account"], now, down):
            self.budget.restore((), now)

    def _lasting(self, usable: int, now: float) -> float:
        length = self.account.length(now)
        return self.budget.lasting(now, usable) if length is None else (usable - self.budget.used(now)) / length

    def _usable(self, *, urgent: bool) -> int | None:
        calls = self.budget.calls
        return calls if calls is None or urgent else calls - int(calls * URGENT_RESERVE)
