"""How fast requests may go: a pure controller; the clock is an argument, in seconds of one monotonic clock.

The vendor's limit is known only when an answer's headers show it, other programs may use the same quota, and a refusal
costs twice (HubSpot counts refused requests against the day). So the rate follows what is seen:

* headers that name a limit set the ceiling: ``limit / seconds * share``;
* few requests left in a rolling window: slow down, and do not speed up until that window has passed; hardly any: pause;
* a refusal halves the rate once (requests that were in flight together are refused together) and pauses;
* every answer that is no refusal raises it by a small step (additive increase, multiplicative decrease).

Beside the rate stands the day (``pacing``): when its calls are used up nothing is sent, and before they are, slower.

Always ``floor <= rate <= ceiling``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cdcsync.apply.budget import DAY, DayBudget
from cdcsync.apply.pacing import DayPace, Pause
from cdcsync.model import Window

CUT: Final = 0.5
"""Of the rate that is left after a refusal."""
EASE: Final = 0.75
"""Of the rate that is left when a window runs short."""
STEP_PER_SECOND: Final = 0.02
STEP_PER_ANSWER: Final = 0.01
"""Largest rise, in parts of the rate reached before: halves are regained in 25 s, by no fewer than 50 answers."""
STEP_IN_ROOM: Final = 0.02
"""Rise for an answer that shows half of the window or more left, in parts of the ceiling."""
DEFAULT_WINDOW: Final = 10.0
PARALLEL_PATIENCE: Final = 30.0
TOGETHER: Final = 10.0
"""Seconds within which further time-outs are those of requests that were under way with the first."""
DAILY_SCOPES: Final = frozenset({"daily", "bulk"})
"""Scopes of refusals for a day's quota: of requests, and of Salesforce's bulk batches."""


class RateController:
    """Decides the rate in requests a second, pauses, and how many requests should be under way at once."""

    def __init__(
        self,
        *,
        floor: float = 0.1,
        ceiling: float = 100.0,
        initial: float | None = None,
        share: float = 0.9,
        daily_budget: float | None = None,
        rolling_day: bool = False,
        spent: Iterable[tuple[float, int]] = (),
        parallel: int = 8,
        now: float = 0.0,
    ) -> None:
        self.floor = floor
        self.ceiling = max(floor, ceiling)
        self.day = DayPace(daily_budget, rolling=rolling_day, spent=spent, now=now)
        self._highest = self.ceiling
        self._share = share
        self._rate = self._bounded(self.ceiling if initial is None else initial)
        self._reached = self._rate
        self._windows: dict[str, Window] = {}
        self._pauses: dict[str, Pause] = {}
        self._careful_until = now
        self._last_ok = now
        self._refusals = 0
        self._disturbed = False
        self._roomy = False
        self._most_parallel = parallel
        self._parallel = parallel
        self._crowded_at = now
        self._crowded_until = now

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self._rate

    @property
    def parallel(self) -> int:
        """How many requests should be under way at once; falls when the CRM complains of concurrency."""
        return self._parallel

    @property
    def windows(self) -> tuple[Window, ...]:
        """The quotas as last seen."""
        return tuple(self._windows.values())

    @property
    def budget(self) -> DayBudget:
        """Our share of the day."""
        return self.day.budget

    def pause(self, now: float, *, urgent: bool = False) -> Pause | None:
        """Why and until when nothing may be sent; None when something may."""
        return _longest(self._asked(now), self.day.pause(now, urgent=urgent))

    def asked_to_wait(self, now: float) -> bool:
        """Whether the CRM's answers, and not our own budget, say that nothing should be sent now."""
        return _longest(self._asked(now), self.day.asked(now)) is not None

    def ready(self, now: float, *, urgent: bool = False) -> float:
        """When a request may go, pauses and the day's pace considered but not the rate; a time that is past: now."""
        pause = self.pause(now, urgent=urgent)
        if pause is not None:
            return pause.until
        return now if urgent else self.day.turn(now)

    def paused_until(self, now: float) -> float | None:
        """When something may be sent again; None if now."""
        pause = self.pause(now)
        return pause.until if pause else None

    def sent(self, now: float, *, urgent: bool = False) -> None:
        """Count a request that is let through."""
        self.day.sent(now, urgent=urgent)

    def give_back(self) -> None:
        """Take the last request off the count: it was not sent."""
        self.day.give_back()

    def seen(self, windows: Sequence[Window], now: float) -> None:
        """Take the quotas that an answer showed. Their limits may change at any time (a plan, an add-on)."""
        for window in windows:
            self._windows[window.name] = window
            if window.seconds >= DAY:
                self.day.see(window, now)
        self._follow_ceiling()
        for window in windows:
            if window.seconds < DAY:
                self._see_burst(window, now)

    def ok(self, now: float) -> None:
        """Take an answer that is not a refusal: speed up a little, unless we are paused or careful."""
        if self.pause(now):
            return
        self._refusals = 0
        idle = min(max(0.0, now - self._last_ok), 1.0)
        self._last_ok = max(now, self._last_ok)
        if now >= self._careful_until:
            step = min(STEP_PER_SECOND * idle, STEP_PER_ANSWER) * self._reached
            if self._roomy:
                step = max(step, STEP_IN_ROOM * self.ceiling)
            self._rate = self._bounded(self._rate + step)
            self._reached = max(self._reached, self._rate)
        if self._parallel < self._most_parallel and now - self._crowded_at >= PARALLEL_PATIENCE:
            self._parallel += 1
            self._crowded_at = now

    def refused(self, scope: str, retry_after: float | None, now: float) -> None:
        """Take a refusal. ``scope`` is one of ``DAILY_SCOPES``, ``concurrent``, or anything else for a rate.

        Times are in seconds.
        """
        if scope in DAILY_SCOPES:
            self.day.refused(retry_after, now)
            return
        if scope not in self._pauses or self._pauses[scope].until <= now:
            self._back_off(scope, now)
        wait = self._patience() if retry_after is None else max(0.0, retry_after)
        self._hold(scope, Pause(now + wait, f"the CRM refused a request ({scope}) and asks to wait"))

    def crowded(self, now: float) -> None:
        """Take a time-out: as many requests at once are too many. Those that ran out together count once."""
        if now >= self._crowded_until:
            self._crowded_until = now + TOGETHER
            self._have_fewer(now)

    def _back_off(self, scope: str, now: float) -> None:
        self._refusals += 1
        self._disturbed = True
        if scope == "concurrent":
            self._have_fewer(now)
        else:
            self._reached = self._rate
            self._rate = self._bounded(self._rate * CUT)

    def _have_fewer(self, now: float) -> None:
        self._parallel = max(1, self._parallel // 2)
        self._crowded_at = now

    def _patience(self) -> float:
        """1, 2, 4 … seconds for refusals in a row, up to the whole window."""
        window = max((seen.seconds for seen in self._windows.values() if seen.seconds < DAY), default=DEFAULT_WINDOW)
        return min(window, 2.0 ** min(self._refusals - 1, 16))

    def _see_burst(self, window: Window, now: float) -> None:
        self._roomy = window.remaining >= window.limit / 2
        if window.remaining > window.limit * (1.0 - self._share) / 2:
            return
        if now >= self._careful_until:
            self._disturbed = True
            self._careful_until = now + window.seconds
            self._rate = self._bounded(self._rate * EASE)
        if window.remaining <= min(self._parallel, window.limit * (1.0 - self._share) / 2):
            self._hold("window", Pause(now + window.seconds / 10, f"nothing is left of the {window.name} limit"))

    def _follow_ceiling(self) -> None:
        """Set the ceiling by the limits in force; until something went wrong the rate follows it at once."""
        allowed = (w.limit / w.seconds * self._share for w in self._windows.values() if 0 < w.seconds < DAY)
        told = min(allowed, default=None)
        self.ceiling = max(self.floor, self._highest if told is None else min(self._highest, told))
        self._rate = self._bounded(self._rate if self._disturbed or told is None else self.ceiling)
        self._reached = min(max(self._reached, self._rate), self.ceiling)

    def _asked(self, now: float) -> Pause | None:
        self._pauses = {cause: pause for cause, pause in self._pauses.items() if pause.until > now}
        return max(self._pauses.values(), default=None)

    def _hold(self, cause: str, pause: Pause) -> None:
        held = self._pauses.get(cause)
        self._pauses[cause] = max(held, pause) if held else pause

    def _bounded(self, rate: float) -> float:
        return min(self.ceiling, max(self.floor, rate))


def _longest(one: Pause | None, other: Pause | None) -> Pause | None:
    return max((pause for pause in (one, other) if pause is not None), default=None)
