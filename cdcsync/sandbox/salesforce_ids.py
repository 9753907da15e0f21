"""Salesforce ids: 15 case-sensitive characters, and the 18-character form that survives lower-casing.

The three added characters say, five characters at a time, which are upper case (least significant bit first).
"""

from __future__ import annotations

from typing import Final

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SUFFIX: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
_INSTANCE: Final = "5g0"
SHORT: Final = 15
LONG: Final = 18


def suffix(short: str) -> str:
    """Compute the three characters that turn a 15-character id into one of 18."""
    return "".join(
        _SUFFIX[sum(1 << bit for bit, char in enumerate(short[start : start + 5]) if char.isupper())]
        for start in (0, 5, 10)
    )


def new_id(prefix: str, number: int) -> str:
    """Make the 18-character id of the ``number``-th record with a three-character key prefix."""
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = _DIGITS[digit] + digits
    short = f"{prefix}{_INSTANCE}{digits:0>9}"
    return short + suffix(short)


def canonical(text: object) -> str | None:
    """Bring an id to its 18-character form, restoring its case; None if it is not an id."""
    if not isinstance(text, str) or not text.isascii() or not text.isalnum():
        return None
    if len(text) == SHORT:
        return text + suffix(text)
    if len(text) != LONG:
        return None
    short = _restored(text[:SHORT], text[SHORT:].upper())
    return short + text[SHORT:].upper() if short and suffix(short) == text[SHORT:].upper() else None


def _restored(short: str, tail: str) -> str | None:
    if any(char not in _SUFFIX for char in tail):
        return None
    flags = [_SUFFIX.index(tail[position // 5]) >> position % 5 & 1 for position in range(SHORT)]
    return "".join(char.upper() if flag else char.lower() for char, flag in zip(short, flags, strict=True))
