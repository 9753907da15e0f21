"""A set of keys that remembers no key: some ten bytes for each, so that millions fit. Pure.

What it keeps is each key's hash of 64 bits, sorted, in pieces. So it may take a key for one that it holds; that happens
once in some million millions of questions, and who asks must be able to bear it. It never misses one that it holds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable

_PIECES = 4096
"""A power of two. A piece is an array, in which to insert means to move what is behind."""


class KeySet:
    """Keys that were added, each once, and not discarded since. ``hashed`` gives a key's 64 bits, with a sign."""

    ENTRY_BYTES = 10
    """What a key takes (measured)."""

    def __init__(self, hashed: Callable[[str], int] = hash) -> None:
        self._hashed = hashed
        self._pieces: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        number = self._hashed(key)
        piece = self._pieces.get(number % _PIECES)
        if piece is None:
            return False
        place = bisect_left(piece, number)
        return place < len(piece) and piece[place] == number

    def add(self, key: str) -> None:
        """Add a key that was not added before; of two with the same hash each counts."""
        number = self._hashed(key)
        insort(self._pieces[number % _PIECES], number)
        self._count += 1

    def discard(self, key: str) -> None:
        """Take a key out that was added."""
        number = self._hashed(key)
        piece = self._pieces[number % _PIECES]
        del piece[bisect_left(piece, number)]
        self._count -= 1
        if not piece:
            del self._pieces[number % _PIECES]
