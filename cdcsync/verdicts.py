"""Whether a mapping is wrong, rather than its data: the verdicts on the records that were judged last. Pure.

Only the last ones count, so that a bad hour after a good year is seen. What says nothing of the mapping is left out:
rows whose parent is missing, rows of which the stream did not carry all, and rows that were refused before and are
tried again.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, TypeAlias

Reason: TypeAlias = tuple[str, str | None]
"""Code and field of a refusal."""

WINDOW: Final = 200
"""Records whose verdicts are remembered."""
LEAST: Final = 100
"""So many have to be judged before anything is concluded."""
SHARE: Final = 0.5


class Verdicts:
    """The last verdicts on one mapping's records."""

    def __init__(self) -> None:
        self._last: deque[Reason | None] = deque(maxlen=WINDOW)
        self._refused = 0

    def note(self, reason: Reason | None) -> None:
        """Take note of a verdict: the reason of a refusal, None for a record that was taken."""
        if len(self._last) == WINDOW and self._last[0] is not None:
            self._refused -= 1
        self._last.append(reason)
        self._refused += reason is not None

    def clear(self) -> None:
        """Start afresh."""
        self._last.clear()
        self._refused = 0

    @property
    def judged(self) -> int:
        """Verdicts that are remembered."""
        return len(self._last)

    @property
    def refused(self) -> int:
        """How many of them are refusals."""
        return self._refused

    @property
    def mass(self) -> bool:
        """Whether more than half of enough records were refused."""
        return self.judged >= LEAST and self._refused > SHARE * self.judged

    def most_frequent(self) -> Reason:
        """Return the reason that most of the refusals had."""
        ((reason, _),) = Counter(verdict for verdict in self._last if verdict is not None).most_common(1)
        return reason
