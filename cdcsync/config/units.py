"""Durations, sizes, shares, allowances as people write them: ``500ms``, ``256MB``, ``60%``, ``500 per day``. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", re.ASCII)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)

_SPANS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 604800.0}
_ALLOWANCE = re.compile(r"(\d+(?:\.\d+)?\s*%|\d+)\s+per\s+(\w+)", re.ASCII)


class Allowance(NamedTuple):
    """How many of some records within any span of ``seconds``: a share (a float) of all, or a number (an int)."""

    most: float | int
    seconds: float


def parse_allowance(given: object) -> Allowance | None:
    """Read ``10% per hour`` or ``500 per day``; None for ``off``. Raises ValueError."""
    if given == "off" or isinstance(given, Allowance):
        return given if isinstance(given, Allowance) else None
    match = _ALLOWANCE.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None or match[2] not in _SPANS:
        msg = f'expected "10% per hour", "500 per day" and the like (per {", ".join(_SPANS)}), or "off"'
        raise ValueError(msg)
    if match[1].endswith("%"):
        share = float(match[1].removesuffix("%")) / 100
        if share > 1:
            msg = 'expected a share of at most 100%, or "off"'
            raise ValueError(msg)
        return Allowance(share, _SPANS[match[2]])
    return Allowance(int(match[1]), _SPANS[match[2]])


def format_allowance(allowance: Allowance | None) -> str:
    """Undo ``parse_allowance``."""
    if allowance is None:
        return "off"
    most = allowance.most if isinstance(allowance.most, int) else f"{allowance.most * 100:g}%"
    return f"{most} per {next(word for word, seconds in _SPANS.items() if seconds == allowance.seconds)}"


def parse_duration(text: object) -> float:
    """Read ``500ms``, ``5s``, ``2m``, ``1h`` or ``1d``; returns seconds. Raises ValueError."""
    return _quantity(text, _DURATIONS, 'a duration such as "500ms", "5s" or "2m"')


def parse_size(text: object) -> int:
    """Read ``256MB`` and the like; units are powers of 1024, as in PostgreSQL. Returns bytes. Raises ValueError."""
    return round(_quantity(text, _SIZES, 'a size such as "256MB" or "10GB"'))


def parse_budget(given: object) -> float | int:
    """Read a share (``"60%"`` is the float 0.6) or a number of calls (an int). Raises ValueError."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    match = _PERCENT.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None or not 0 < float(match[1]) <= 100:  # noqa: PLR2004 - a percentage
        msg = 'expected a share of the daily allowance such as "60%", or a number of calls'
        raise ValueError(msg)
    return float(match[1]) / 100


def format_duration(seconds: float) -> str:
    """Print seconds in the largest unit that leaves a whole number."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _DURATIONS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


def format_size(size: int) -> str:
    """Print bytes in the largest unit that leaves a whole number."""
    for unit in ("TB", "GB", "MB", "kB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return f"{size}B"


def format_budget(budget: float) -> str | int:
    """Undo ``parse_budget``."""
    return budget if isinstance(budget, int) else f"{budget * 100:g}%"


def _quantity(text: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    folded = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in folded:
        msg = f"expected {expected}"
        raise ValueError(msg)
    value = float(match[1]) * folded[match[2].lower()]
    if value <= 0:
        msg = f"expected {expected}, above zero"
        raise ValueError(msg)
    return value
