"""Row locks (facts 8): scripted ones (the fault ``lock``), and real ones with the setting ``real_locks``.

A lock covers the row and the parents that it refers to. A transaction that finds a row locked by another fails that row
at once; the real one waits ten seconds first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cdcsync.sandbox.faults import Faults
from cdcsync.sandbox.salesforce_schema import Entity
from cdcsync.sandbox.salesforce_writes import RowLock


class RowLocks:
    """The lock table. An owner is a Collections request or a bulk job."""

    def __init__(self, faults: Faults, settings: Mapping[str, Any]) -> None:
        self._faults = faults
        self._settings = settings
        self._held: dict[str, tuple[str, float]] = {}

    def clear(self) -> None:
        """Let everything go."""
        self._held.clear()

    def of(self, owner: str, method: str, path: str, now: float, until: float) -> RowLock:
        """Make the lock of one transaction, which holds what it gets until then (Unix times)."""

        def lock(entity: Entity, ids: Iterable[str]) -> str | None:
            wanted = list(ids)
            if self._faults.strike({"lock"}, method, path, {entity.name.lower()}):
                return wanted[0] if wanted else "unknown record"
            return self._take(wanted, owner, now, until) if self._settings["real_locks"] else None

        return lock

    def _take(self, wanted: list[str], owner: str, now: float, until: float) -> str | None:
        for record_id in wanted:
            holder, end = self._held.get(record_id, ("", 0.0))
            if holder != owner and end > now:
                return record_id
        for record_id in wanted:
            self._held[record_id] = (owner, until)
        return None
