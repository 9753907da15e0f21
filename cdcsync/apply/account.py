"""What all clients of a CRM account use of its day, as the answers' headers show it, and what they leave to us. Pure.

``rolling``: the day is the last 24 hours (Salesforce). What others use in it is taken as what they go on to use, or
what they come to at their present pace if that is more. Else the day begins anew at an hour that nobody tells (HubSpot:
midnight in the account's time zone): it is learned from the count's fall, and comes 24 hours after the first look at
the latest. What others will use until then is judged by their pace so far. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cdcsync.apply.budget import DAY, RECENT, SLICE, DayBudget

RESERVE: Final = 0.02
"""Part of the account's day that is left to people, and to what others may use between two of our answers."""
LEAST_FALL: Final = 64
"""Calls that must have been counted for a fall to half of them to be a new day, and not answers out of order."""
LATE_ANSWERS: Final = 60.0
"""Seconds after a new day's first answer in which answers of the old one may still come."""
LONGEST_LOOK: Final = 3_600.0
"""Seconds after which an account that was used up is looked at again, where nobody knows when its day ends."""
SHORTEST_LOOK: Final = 900.0
WATCH: Final = 600.0
"""Seconds over which a change of what others used in the last 24 hours is more than the noise of single answers."""
SLOWEST: Final = 1 / 900.0
"""Calls a second that are made while there is something above the reserve: only answers show what others use."""


class AccountDay:
    """The account's day: limit, what is left, when it begins anew, and the use of others."""

    def __init__(self, budget: DayBudget, *, rolling: bool, now: float) -> None:
        self._budget = budget
        self._rolling = rolling
        self._limit: int | None = None
        self._remaining = 0
        self._since = 0
        """Our calls since the answer that showed ``_remaining``."""
        self._ours = 0
        """Our calls of this day."""
        self._others = DayBudget(None)
        self._most_of_others: int | None = None
        self._most_at = now
        self._watched_since = now
        self._watch_at = now
        self._resets = now + DAY
        self._told = False
        """Whether ``_resets`` is more than the latest moment that it can be."""
        self._turned: tuple[float, int] | None = None
        """When the last new day was seen, and what the old one's count was."""

    def sent(self, calls: int = 1) -> None:
        """Count our own calls; -1 for one that was not made after all."""
        self._since += calls
        self._ours += calls

    def see(self, limit: int, remaining: int, now: float) -> bool:
        """Take what an answer showed; tells whether a new day has begun."""
        used = limit - remaining
        if self._is_late(used, now):
            return False
        before = 0 if self._limit is None else self._limit - self._remaining
        begun = not self._rolling and before >= LEAST_FALL and used < before / 2
        if begun:
            self._begin_day(before, now)
        elif now >= self._resets:  # summer time begins or ends, the account was moved, or there was next to no use
            self._resets, self._told = now + DAY, False
        self._limit, self._remaining, self._since = limit, remaining, 0
        if not self._rolling or now >= self._watch_at:
            self._watch_others(used, now)
        return begun

    def left(self, now: float) -> int | None:
        """How many calls all clients together have left now; None if that is not known."""
        if self._limit is None or (self._told and now >= self._resets):
            return None
        return self._remaining - self._since

    def spare(self, now: float) -> float | None:
        """How many calls there are above the reserve; None if that is not known."""
        left = self.left(now)
        return None if left is None or self._limit is None else left - self._limit * RESERVE

    def empty(self, now: float) -> bool:
        """Whether nothing should be sent any more."""
        spare = self.spare(now)
        return spare is not None and spare <= 0

    def look_again(self, now: float) -> float:
        """When an account that was used up should be asked again: at its next day, or when our own calls leave it."""
        if self._told and self._resets > now:
            return self._resets
        free = self._budget.frees(now, int((self._limit or 0) * RESERVE)) if self._rolling else now
        return min(max(free, now + SHORTEST_LOOK), now + LONGEST_LOOK)

    def length(self, now: float) -> float | None:
        """Seconds until the day begins anew, at most; None if it rolls."""
        return None if self._rolling else max(SLICE, self._resets - now)

    def lasting(self, now: float) -> float | None:
        """Give the rate that others leave to us until the day's end; None while there is plenty."""
        room, length = self._room(now), self.length(now)
        if room is None or self._budget.used(now) <= room:
            return None
        rate = self._budget.lasting(now, int(room) + self._budget.used(now)) if length is None else room / length
        return max(SLOWEST, rate)

    def runs_out(self, rate: float, now: float) -> float | None:
        """When the calls above the reserve will be used up if ``rate`` calls a second go on; None if they last."""
        room, length, spare = self._room(now), self.length(now), self.spare(now)
        if room is None or spare is None:
            return None
        if length is None:
            return self._budget.runs_out(now, max(0, int(room) + self._budget.used(now)), rate)
        drain = rate + self._pace_of_others(now)
        return now + max(0.0, spare) / drain if drain * length > spare + 1 else None

    def remember(self, now: float) -> dict[str, Any]:
        """Give what has to be kept over a restart; times as seconds before or from now."""
        return {
            "others": [list(entry) for entry in self._others.spent(now)],
            "watched": now - self._watched_since,
            "resets": self._resets - now,
            "told": self._told,
        }

    def restore(self, kept: Mapping[str, Any], now: float, down: float) -> bool:
        """Take up what ``remember`` gave ``down`` seconds ago; tells whether a new day has begun since."""
        self._others.restore([(age + down, calls) for age, calls in kept["others"]], now)
        self._watched_since = now - down - kept["watched"]
        resets, self._told = kept["resets"] - down, bool(kept["told"])
        self._resets = now + resets % DAY
        return not self._rolling and resets <= 0

    def _is_late(self, used: int, now: float) -> bool:
        if self._turned is None:
            return False
        at, before = self._turned
        return now < at + LATE_ANSWERS and used >= before / 2

    def _begin_day(self, before: int, now: float) -> None:
        # It began before this answer, and not after the time that earlier days told: the sooner is the nearer.
        late = (now - self._resets) % DAY if self._told and now >= self._resets else 0.0
        self._resets, self._told = now + DAY - late, True
        self._turned = (now, before)
        self._most_of_others = None
        self._ours = 0

    def _watch_others(self, used: int, now: float) -> None:
        """Count what others did since the last look: in a day that rolls, at least what their use has grown by.

        There, it falls where our own calls leave the vendor's count before ours, so only a rise above all of the last
        day's figures is one.
        """
        others = used - (self._budget.used(now) if self._rolling else self._ours)
        if self._most_of_others is None or (self._rolling and now >= self._most_at + DAY):
            self._most_of_others, self._most_at = others, now
        elif others > self._most_of_others:
            self._others.spend(now, others - self._most_of_others)
            self._most_of_others, self._most_at = others, now
        self._watch_at = now + WATCH

    def _room(self, now: float) -> float | None:
        """How many calls others leave to us for the rest of the day; for a rolling one, beside those we made."""
        spare = self.spare(now)
        if spare is None or self._limit is None:
            return None
        pace = self._pace_of_others(now)
        if not self._rolling:
            return spare - pace * max(SLICE, self._resets - now)
        others = self._limit * (1 - RESERVE) - spare - self._budget.used(now)
        return spare - max(0.0, pace * DAY - others)

    def _pace_of_others(self, now: float) -> float:
        return self._others.used(now) / max(RECENT, min(DAY, now - self._watched_since))
