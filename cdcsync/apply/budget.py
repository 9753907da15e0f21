"""Our own share of a CRM's daily quota: how many calls we made in the last 24 hours, and how many we may. Pure.

Vendors count a day differently (HubSpot from midnight to midnight, Salesforce over the last 24 hours); a rolling day
that holds never breaks either. Calls are counted in slices of an hour, and a slice leaves 24 hours after its *end*,
so the count errs on the safe side. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

DAY = 86_400.0
SLICE = 3_600.0


class DayBudget:
    """Counts our calls. ``allowance`` is a fraction of the account's limit (float), a number of calls (int), or None.

    ``spent`` carries the count over a restart: what ``spent()`` answered then, aged by the time between.
    """

    def __init__(self, allowance: float | None, *, spent: Iterable[tuple[float, int]] = (), now: float = 0.0) -> None:
        self._allowance = allowance
        self._limit: int | None = None
        self._slices: deque[tuple[float, int]] = deque(sorted((now - age, calls) for age, calls in spent))
        self._used = sum(calls for _, calls in self._slices)

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

    def spend(self, now: float) -> None:
        """Count one call."""
        self._used += 1
        if self._slices and now < self._slices[-1][0]:
            end, calls = self._slices.pop()
            self._slices.append((end, calls + 1))
        else:
            self._slices.append((now + SLICE, 1))

    def exhausted_until(self, now: float) -> float | None:
        """When calls become free again; None if there are some now."""
        self._forget(now)
        calls = self.calls
        if calls is None or self._used < calls:
            return None
        return self._slices[0][0] + DAY if self._slices else now + SLICE

    def spent(self, now: float) -> tuple[tuple[float, int], ...]:
        """Give the count as (age in seconds, calls) pairs, to be kept over a restart. An open slice has an age < 0."""
        self._forget(now)
        return tuple((now - end, calls) for end, calls in self._slices)

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] + DAY <= now:
            self._used -= self._slices.popleft()[1]
