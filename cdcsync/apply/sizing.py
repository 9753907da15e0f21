"""How many records a batch may have: halved where large ones fail, raised again step by step. Pure.

A request that runs into a time-out, a storm of row locks, or the limits of what runs in the CRM for each record (a
trigger's CPU time, its queries) may succeed with fewer records. The caller knows which failures are of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cdcsync.model import Op

STEP: Final = 0.05
"""Largest rise, in parts of the adapter's limit, for a full batch that went through."""


class BatchSizes:
    """Sizes by object and operation, always from 1 to the adapter's limit."""

    def __init__(self, limits: Mapping[Op, int]) -> None:
        self._limits = dict(limits)
        self._sizes: dict[tuple[str, Op], int] = {}

    def size(self, target: str, op: Op) -> int:
        """Return how many records of an object the next batch may have."""
        return self._sizes.get((target, op), self._limits[op])

    def shrink(self, target: str, op: Op, sent: int) -> None:
        """Note that a batch of ``sent`` records was too large; several that were sent together halve the size once."""
        self._sizes[target, op] = min(self.size(target, op), max(1, sent // 2))

    def grow(self, target: str, op: Op, sent: int) -> None:
        """Note that a batch went through. One that was not full says nothing about larger ones."""
        size, limit = self.size(target, op), self._limits[op]
        if size >= limit or sent < size:
            return
        size = min(limit, size + max(1, int(limit * STEP)))
        if size == limit:
            del self._sizes[target, op]
        else:
            self._sizes[target, op] = size

    def remember(self) -> dict[str, int]:
        """Give the sizes below the limit, by ``operation object``, to be kept over a restart."""
        return {f"{op.value} {target}": size for (target, op), size in self._sizes.items()}

    def restore(self, sizes: Mapping[str, int]) -> None:
        """Take up what ``remember`` gave, within the limits as they are now."""
        for name, size in sizes.items():
            word, _, target = name.partition(" ")
            op = next((op for op in self._limits if op.value == word), None)
            if op is not None and size < self._limits[op]:
                self._sizes[target, op] = max(1, size)
