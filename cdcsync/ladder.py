"""When a parked row is taken up again: every 20 minutes, ten times, then once a night. Pure; the clock is an argument.

What a CRM refuses may be mended there: a picklist value added, a validation rule dropped, a parent made by others. The
first hours are for a person who is at it now, the nights for everything else, when nobody else needs the quota. Rows
that were refused together are spread, so that they do not all go at once.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

STEP: Final = 1_200.0
STEPS: Final = 10
SPREAD: Final = 0.1
"""Of a step: that much earlier or later a row may be due."""
NIGHT_HOUR: Final = 3
"""Local time at which a night's tries begin."""
NIGHT: Final = 7_200.0
"""Seconds over which they are spread."""
FARTHEST: Final = 30 * 3_600.0
"""No row is due later than that from now; one that seems to be was parked before the clock was put back."""


def next_try(refusals: int, now: float, luck: float, zone: dt.tzinfo | None = None) -> float:
    """Return when a row is due that was refused ``refusals`` times, just now for the last time (Unix times).

    ``luck`` is a random number from 0 to 1; ``zone`` is the machine's if it is not given.
    """
    if refusals <= STEPS:
        return now + STEP * (1 + SPREAD * (2 * luck - 1))
    local = dt.datetime.fromtimestamp(now, dt.UTC).astimezone(zone)
    night = local.replace(hour=NIGHT_HOUR, minute=0, second=0, microsecond=0)
    if night <= local:
        night += dt.timedelta(days=1)
    return night.timestamp() + NIGHT * luck


def is_due(due: float, now: float) -> bool:
    """Whether the time has come, also where the clock was put back since."""
    return due <= now or due > now + FARTHEST
