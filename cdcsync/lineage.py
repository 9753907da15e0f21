"""Which of two copies of a state file is the newer one, or that neither is. Pure.

Each start of the daemon is a *writer* with a name of its own; each transaction is counted. A file knows the writers
that it has had, so it can tell a copy that stayed behind from one that went another way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

REMEMBERED = 1000
"""Writers that a file remembers: a copy that is older than so many starts is taken for a stranger."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The writers of a file, the last one at its end, and the number of its transactions."""

    writers: tuple[str, ...]
    count: int

    @classmethod
    def parse(cls, writers: str | None, revision: str | None) -> Lineage | None:
        """Read what ``meta`` holds; None for a file that is older than this notion."""
        if writers is None or revision is None:
            return None
        return cls(tuple(json.loads(writers)), int(revision.rpartition("/")[2]))

    def contains(self, other: Lineage) -> bool:
        """Whether this file went on from where the other one is, or is at the same point."""
        if self.writers[-1] == other.writers[-1]:
            return self.count >= other.count
        return other.writers[-1] in self.writers

    def followed_by(self, writer: str) -> Lineage:
        """Return the lineage when a new writer begins."""
        return replace(self, writers=(*self.writers, writer)[-REMEMBERED:])

    @property
    def writers_text(self) -> str:
        """The writers as ``meta`` holds them."""
        return json.dumps(self.writers)


def next_revision(revision: str | None, writer: str | None) -> str:
    """Return the revision of the next transaction: its writer (None: that of before) and its number."""
    last, _, count = (revision or "/0").rpartition("/")
    return f"{writer or last}/{int(count) + 1}"
