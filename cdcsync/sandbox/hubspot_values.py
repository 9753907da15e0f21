"""What a HubSpot property accepts and how it stores it: always as a string, and the empty one clears. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from cdcsync.sandbox.hubspot_domains import TOP_LEVEL_DOMAINS

MAX_TEXT: Final = 65_536  # characters
_DAY_MS: Final = 86_400_000
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)\Z", re.ASCII)
_MILLIS = re.compile(r"-?\d{1,15}\Z", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)\Z", re.ASCII)
_EMAIL = re.compile(r"[^\s@,;<>()\[\]\\\"]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+([A-Za-z0-9-]+)\Z")


class ValueRefusedError(ValueError):
    """A property does not accept a value; ``code`` is HubSpot's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def store_text(text: str) -> str:
    """Accept any text that is not too long (the code for that is not documented, and chosen here)."""
    if len(text) > MAX_TEXT:
        raise ValueRefusedError(
            "INVALID_STRING", f"Value is {len(text)} characters long, at most {MAX_TEXT} are allowed"
        )
    return text


def store_number(text: str) -> str:
    """Accept digits with one leading minus and one point; no exponent, no separators, no NaN."""
    if not _NUMBER.match(text):
        raise ValueRefusedError("INVALID_INTEGER", f"{text} was not a valid number.")
    return text


def store_option(text: str, options: Sequence[str]) -> str:
    """Accept one internal value, case-sensitively."""
    if text not in options:
        raise _no_option(text, options)
    return text


def store_options(text: str, options: Sequence[str], stored: str) -> str:
    """Accept several values joined by semicolons; a leading semicolon adds them to the stored ones."""
    chosen = [one for one in text.split(";") if one]
    for one in chosen:
        if one not in options:
            raise _no_option(one, options)
    before = stored.split(";") if text.startswith(";") and stored else []
    return ";".join(dict.fromkeys([*before, *chosen]))


def _no_option(text: str, options: Sequence[str]) -> ValueRefusedError:
    return ValueRefusedError("INVALID_OPTION", f"{text} was not one of the allowed options: [{', '.join(options)}]")


def store_date(text: str) -> str:
    """Accept ``YYYY-MM-DD``, or an instant (ISO 8601 or milliseconds) at midnight UTC. Stored as ``YYYY-MM-DD``."""
    if _DATE.match(text):
        try:
            return dt.date.fromisoformat(text).isoformat()
        except ValueError as error:
            raise ValueRefusedError("INVALID_DATE", f"{text} was not a valid date.") from error
    try:
        instant = _instant(text)
    except (ValueError, OverflowError) as error:
        raise ValueRefusedError("INVALID_DATE", f"{text} was not a valid date.") from error
    if (instant - _EPOCH) % dt.timedelta(milliseconds=_DAY_MS):
        clock = f"{instant.hour}:{instant.minute}:{instant.second}.{instant.microsecond // 1000}"
        raise ValueRefusedError("INVALID_DATE", f"{text} is at {clock} UTC, not midnight!")
    return instant.date().isoformat()


def store_datetime(text: str) -> str:
    """Accept ISO 8601 with a zone, or epoch milliseconds. Stored to the millisecond, as an instant in UTC."""
    try:
        return print_instant(_instant(text))
    except (ValueError, OverflowError) as error:
        raise ValueRefusedError("INVALID_LONG", f"{text} was not a valid long.") from error


def _instant(text: str) -> dt.datetime:
    """Read an instant. Raises ValueError or OverflowError."""
    if _MILLIS.match(text):
        return _EPOCH + dt.timedelta(milliseconds=int(text))
    if not _INSTANT.match(text):
        raise ValueError(text)
    return dt.datetime.fromisoformat(text).astimezone(dt.UTC)


def read_millis(text: str) -> int:
    """Milliseconds since 1970 of a stored or sent date or time. Raises ValueError or OverflowError."""
    instant = dt.datetime.fromisoformat(f"{text}T00:00:00+00:00") if _DATE.match(text) else _instant(text)
    return (instant - _EPOCH) // dt.timedelta(milliseconds=1)


def print_instant(instant: dt.datetime) -> str:
    """Print as HubSpot stores it: milliseconds, and no fraction where it is zero (``2024-06-01T10:25:00Z``)."""
    precision = "milliseconds" if instant.microsecond // 1000 else "seconds"
    return instant.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


def print_time(unix: float) -> str:
    """Print a Unix time as HubSpot stores it."""
    return _print_millis(int(unix * 1000))


@lru_cache(maxsize=256)  # the records of a batch have their times in common
def _print_millis(millis: int) -> str:
    return print_instant(_EPOCH + dt.timedelta(milliseconds=millis))


def store_email(text: str) -> str:
    """Accept an address whose top-level domain exists; stored in lower case."""
    match = _EMAIL.match(text)
    if not match or match[1].lower() not in TOP_LEVEL_DOMAINS:
        raise ValueRefusedError("INVALID_EMAIL", f"Email address {text} is invalid")
    return text.lower()


def store_emails(text: str) -> str:
    """Accept several addresses joined by semicolons."""
    return ";".join(dict.fromkeys(store_email(one) for one in text.split(";") if one))
