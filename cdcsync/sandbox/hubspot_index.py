"""The search index: what searches match against. It trails the records by some seconds, as HubSpot's does. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class SearchIndex:
    """Per object type: record id → the properties that were current ``delay`` seconds ago."""

    def __init__(self) -> None:
        self.delay = 10.0
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._documents: dict[str, dict[str, Mapping[str, str]]] = {}
        self._pending: deque[tuple[float, str, str, Mapping[str, str] | None]] = deque()

    def note(self, kind: str, record_id: str, properties: Mapping[str, str] | None, now: float) -> None:
        """Take note of a change (None: the record was archived); it will be searchable after the delay."""
        self._pending.append((now, kind, record_id, properties))
        self._catch_up(now)

    def documents(self, kind: str, now: float) -> Mapping[str, Mapping[str, str]]:
        """Return what a search sees now; archived records may still be among it."""
        self._catch_up(now)
        return self._documents.get(kind, {})

    def _catch_up(self, now: float) -> None:
        while self._pending and self._pending[0][0] + self.delay <= now:
            _, kind, record_id, properties = self._pending.popleft()
            documents = self._documents.setdefault(kind, {})
            if properties is None:
                documents.pop(record_id, None)
            else:
                documents[record_id] = properties
