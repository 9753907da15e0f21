"""Row locks: who holds which record until when (facts 8). Only used with the setting ``real_locks``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Locks:
    """The lock table. An owner is a Collections request or a bulk job."""

    _held: dict[str, tuple[str, float]] = field(default_factory=dict)

    def clear(self) -> None:
        """Let everything go."""
        self._held.clear()

    def take(self, ids: Iterable[str], owner: str, now: float, until: float) -> str | None:
        """Lock all of ``ids``, or none: then the id that another owner holds is returned."""
        wanted = list(ids)
        for record_id in wanted:
            holder, end = self._held.get(record_id, ("", 0.0))
            if holder != owner and end > now:
                return record_id
        for record_id in wanted:
            self._held[record_id] = (owner, until)
        return None
