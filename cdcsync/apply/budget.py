"""Our own share of a CRM's daily quota: how many calls we made in the last 24 hours, and how many we may. Pure.

Vendors count a day differently (HubSpot from midnight to midnight, Salesforce over the last 24 hours); a rolling day
that holds never breaks either, and who sees a new day begin may drop the count (``restore`` with nothing). Calls are
counted in slices of a quarter of an hour, and a slice leaves 24 hours after its *end*, so the count errs on the safe
side. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

DAY: Final = 86_400.0
SLICE: Final = 900.0
RECENT: Final = 3_600.0
"""Seconds by which the present pace is judged."""


class DayBudget:
    """Counts our calls. ``allowance`` is a fraction of the account's limit (float), a number of calls (int), or None.

    ``spent`` carries the count over a restart: what ``spent()`` answered then, aged by the time between.
    """

    def __init__(self, allowance: float | None, *, spent: Iterable[tuple[float, int]] = (), now: float = 0.0) -> None:
        self._allowance = allowance
        self._limit: int | None = None
        self._slices: deque[tuple[float, int]] = deque()
        self._used = 0
        self.restore(spent, now)

    @property
    def calls(self) -> int | None:
        """How many calls a day are ours; None while that is not known (a fraction of an unknown limit)."""
        if isinstance(self._allowance, float):
            return None if self._limit is None else int(self._limit * self._allowance)
        return self._allowance

    def used(self, now: float) -> int:
        """Our calls of the last 24 hours."""
        self._forget(now)
        return self._used

    def learn(self, limit: int) -> None:
        """Take the account's daily limit from the vendor's answer."""
        self._limit = limit

    def spend(self, now: float, calls: int = 1) -> None:
        """Count calls that are made now."""
        self._used += calls
        if self._slices and now < self._slices[-1][0]:
            end, made = self._slices.pop()
            self._slices.append((end, made + calls))
        else:
            self._slices.append((now + SLICE, calls))

    def give_back(self) -> None:
        """Take the last call off the count: it was not made."""
        if self._slices:
            self._used -= 1
            end, calls = self._slices.pop()
            if calls > 1:
                self._slices.append((end, calls - 1))

    def exhausted_until(self, now: float, calls: int | None) -> float | None:
        """When some of ``calls`` a day become free again; None if there are some now, or if there is no such number."""
        self._forget(now)
        if calls is None or self._used < calls:
            return None
        return self._slices[0][0] + DAY if self._slices else now + SLICE

    def lasting(self, now: float, calls: int) -> float:
        """Give the greatest steady rate (calls a second) that keeps ``calls`` a day from running out, from now on."""
        self._forget(now)
        counted, rate = self._used, calls / DAY
        for end, made in self._slices:  # until each of them leaves, all later ones count
            rate = min(rate, (calls - counted) / (end + DAY - now))
            counted -= made
        return max(0.0, rate)

    def runs_out(self, now: float, calls: int, rate: float) -> float | None:
        """When ``calls`` a day will be used up if ``rate`` calls a second go on; None if they last."""
        self._forget(now)
        counted = self._used
        for end, made in self._slices:
            if counted + rate * (end + DAY - now) > calls + 1:  # a pace that was made to last is not to the call
                return now + max(0.0, calls - counted) / rate if rate else now
            counted -= made
        return now + calls / rate if rate * DAY > calls + 1 else None

    def frees(self, now: float, calls: int) -> float:
        """When this many of our calls will have left the day, or the last of them."""
        self._forget(now)
        for end, made in self._slices:
            calls -= made
            if calls <= 0:
                return end + DAY
        return self._slices[-1][0] + DAY if self._slices else now

    def pace(self, now: float) -> float:
        """Our calls a second over the last hour."""
        return sum(calls for end, calls in self._slices if end > now - RECENT) / (RECENT + SLICE / 2)

    def spent(self, now: float) -> tuple[tuple[float, int], ...]:
        """Give the count as (age in seconds, calls) pairs, to be kept over a restart. An open slice has an age < 0."""
        self._forget(now)
        return tuple((now - end, calls) for end, calls in self._slices)

    def restore(self, spent: Iterable[tuple[float, int]], now: float) -> None:
        """Take what ``spent`` answered, aged by the time since, in the place of the count."""
        self._slices = deque(sorted((now - age, calls) for age, calls in spent))
        self._used = sum(calls for _, calls in self._slices)

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] + DAY <= now:
            self._used -= self._slices.popleft()[1]
