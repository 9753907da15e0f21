"""A set of keys that remembers no key: some six bytes for each, so that millions fit. Pure.

What it keeps is 44 bits of each key's hash: 12 name a piece, 32 are in it, sorted. So it may take a key for one that it
holds; with five millions in it that happens once in some three million questions, and who asks must be able to bear it.
It never misses one that it holds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable

_PIECE_BITS = 12
"""A piece is an array, in which to insert means to move what is behind."""
_PIECES = 1 << _PIECE_BITS
_REST = (1 << 32) - 1


class KeySet:
    """Keys that were added, each once, and not discarded since. ``hashed`` gives a key's hash, an int."""

    ENTRY_BYTES = 6
    """What a key takes where there are millions (measured)."""

    def __init__(self, hashed: Callable[[str], int] = hash) -> None:
        self._hashed = hashed
        self._pieces: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: str) -> bool:
        number, rest = self._split(key)
        piece = self._pieces.get(number)
        if piece is None:
            return False
        place = bisect_left(piece, rest)
        return place < len(piece) and piece[place] == rest

    def add(self, key: str) -> None:
        """Add a key that was not added before; of two with the same hash each counts."""
        number, rest = self._split(key)
        insort(self._pieces[number], rest)
        self._count += 1

    def discard(self, key: str) -> None:
        """Take a key out that was added."""
        number, rest = self._split(key)
        piece = self._pieces[number]
        del piece[bisect_left(piece, rest)]
        self._count -= 1
        if not piece:
            del self._pieces[number]

    def _split(self, key: str) -> tuple[int, int]:
        hashed = self._hashed(key)
        return hashed % _PIECES, (hashed >> _PIECE_BITS) & _REST
