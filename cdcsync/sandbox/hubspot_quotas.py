"""HubSpot's quotas: a rolling ten seconds per app, a second for searches, a day per account. Pure; the clock is given.

A refused request does not fill the rolling window, but counts against the day. There is no Retry-After.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

TEN_SECONDS: Final = 10.0
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Limits:
    """How many requests are allowed; ``utc_offset`` (hours) says when the account's day begins."""

    ten_secondly: int = 190
    ten_secondly_oauth: int = 110
    daily: int = 1_000_000
    search_per_second: int = 5
    utc_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Admission:
    """The quotas' word on one request: the headers of its answer, and the policy that refuses it, if any."""

    headers: dict[str, str]
    refused_by: str | None = None


class RollingWindow:
    """Counts the requests of the last ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: deque[float] = deque()

    def take(self, limit: int, now: float) -> bool:
        """Count one request, unless that would exceed the limit."""
        if self.remaining(limit, now) <= 0:
            return False
        self._times.append(now)
        return True

    def remaining(self, limit: int, now: float) -> int:
        """How many more requests are allowed now."""
        while self._times and self._times[0] <= now - self._seconds:
            self._times.popleft()
        return max(0, limit - len(self._times))


class Quotas:
    """All quotas of one account."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.clear()

    def clear(self) -> None:
        """Forget all requests."""
        self._apps: dict[str, RollingWindow] = {}
        self._search = RollingWindow(1.0)
        self._day = 0
        self._used = 0

    def admit(self, app: str, now: float, *, search: bool, oauth: bool) -> Admission:
        """Count one request of an app. Public (OAuth) apps have no daily quota; searches have a window of their own."""
        counted_daily = not oauth
        if counted_daily:
            self._turn_day(now)
            self._used += 1
        limit = self.limits.ten_secondly_oauth if oauth else self.limits.ten_secondly
        window = self._search if search else self._apps.setdefault(app, RollingWindow(TEN_SECONDS))
        allowed = self.limits.search_per_second if search else limit
        refused_by = None
        if counted_daily and self._used > self.limits.daily:
            refused_by = "DAILY"
        elif not window.take(allowed, now):
            refused_by = "SECONDLY" if search else "TEN_SECONDLY_ROLLING"
        burst = {} if search else self._burst_headers(limit, window.remaining(limit, now))
        return Admission({**(self._daily_headers() if counted_daily else {}), **burst}, refused_by)

    def refused(self, now: float, *, search: bool) -> dict[str, str]:
        """Count a request that is refused for another reason than these limits; returns the answer's headers."""
        self._turn_day(now)
        self._used += 1
        return {**self._daily_headers(), **({} if search else self._burst_headers(self.limits.ten_secondly, 0))}

    def _turn_day(self, now: float) -> None:
        day = int((now + self.limits.utc_offset * 3600) // _DAY)
        if day != self._day:
            self._day, self._used = day, 0

    def _daily_headers(self) -> dict[str, str]:
        return {
            "X-HubSpot-RateLimit-Daily": str(self.limits.daily),
            "X-HubSpot-RateLimit-Daily-Remaining": str(max(0, self.limits.daily - self._used)),
        }

    @staticmethod
    def _burst_headers(limit: int, remaining: int) -> dict[str, str]:
        return {
            "X-HubSpot-RateLimit-Interval-Milliseconds": "10000",
            "X-HubSpot-RateLimit-Max": str(limit),
            "X-HubSpot-RateLimit-Remaining": str(remaining),
            "X-HubSpot-RateLimit-Secondly": str(limit // 10),
            "X-HubSpot-RateLimit-Secondly-Remaining": str(min(remaining, limit // 10)),
        }


def refusal_body(policy: str, correlation: str) -> dict[str, str]:
    """Return the body of a 429; ``policy`` as in ``Admission.refused_by``. A search's has a category but no policy."""
    words = {"DAILY": "daily", "SECONDLY": "secondly", "TEN_SECONDLY_ROLLING": "ten_secondly_rolling"}[policy]
    body = {"status": "error", "message": f"You have reached your {words} limit."}
    if policy == "SECONDLY":
        return {**body, "correlationId": correlation, "category": "RATE_LIMITS"}
    return {
        **body,
        "errorType": "RATE_LIMIT",
        "correlationId": correlation,
        "policyName": policy,
        "groupName": "publicapi:private-apps:api-calls",
    }
