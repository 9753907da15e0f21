"""What a limiter keeps over a restart, as JSON: our calls of the day, the account's day, and the breaker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from cdcsync.apply.breaker import Breaker, BreakerState
from cdcsync.apply.valve import Valve

FORMAT: Final = 1
KEEP_SECONDS: Final = 10.0
"""So often at most what has changed is to be written down: a crash forgets the calls of this time."""


class PaceRecord:
    """The record of one limiter. ``clock`` is that of its loop, ``unix`` Unix time: the record knows how old it is."""

    def __init__(
        self,
        main: Valve,
        apart: Mapping[str, Valve],
        breaker: Breaker,
        clock: Callable[[], float],
        unix: Callable[[], float],
    ) -> None:
        self._main = main
        self._apart = apart
        self._breaker = breaker
        self._clock = clock
        self._unix = unix
        self._kept = self._mark()
        self._kept_at = clock() - KEEP_SECONDS

    @property
    def due(self) -> bool:
        """Whether there is something to be written down: not more often than every ten seconds, and not if idle."""
        return self._clock() >= self._kept_at + KEEP_SECONDS and self._mark() != self._kept

    def take(self) -> str | None:
        """Give what is to be written down, if it is due."""
        if not self.due:
            return None
        self._kept, self._kept_at = self._mark(), self._clock()
        return json.dumps(self._content(), separators=(",", ":"))

    def restore(self, kept: str) -> None:
        """Take up what ``take`` gave. What another version wrote is left alone.

        Of limiters that share a valve, what was written last counts.
        """
        content = json.loads(kept)
        if content.get("format") != FORMAT:
            return
        down = max(0.0, self._unix() - content["at"])
        days = [(self._main, content["day"])]
        days += [(self._apart[scope], day) for scope, day in content["apart"].items() if scope in self._apart]
        for valve, day in days:
            if content["at"] > valve.restored:
                valve.restored = content["at"]
                valve.controller.day.restore(day, self._clock(), down)
        self._breaker.restore(BreakerState(**content["breaker"]))
        self._kept = self._mark()

    def _content(self) -> dict[str, Any]:
        now = self._clock()
        return {
            "format": FORMAT,
            "at": self._unix(),
            "day": self._main.controller.day.remember(now),
            "apart": {scope: valve.controller.day.remember(now) for scope, valve in self._apart.items()},
            "breaker": dataclasses.asdict(self._breaker.remember()),
        }

    def _mark(self) -> tuple[object, ...]:
        """Give what differs when there is something new."""
        return (self._main.sent, *(valve.sent for valve in self._apart.values()), self._breaker.remember())
