"""The time, as an argument: the system's in the daemon, a virtual one where a simulation runs lanes and pipeline."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the time is, in seconds."""

    def monotonic(self) -> float:
        """Return seconds that only go forward; the event loop's time, too."""

    def boottime(self) -> float:
        """Return seconds that go on while the machine is suspended."""

    def time(self) -> float:
        """Return Unix time; it may jump."""


class SystemClock:
    """The system's clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    @staticmethod
    def boottime() -> float:
        """Return seconds that go on while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
