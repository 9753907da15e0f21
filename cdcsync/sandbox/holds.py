"""Requests that a fault rule keeps until they are released."""

from __future__ import annotations

import asyncio
from typing import Any

from cdcsync.sandbox.books import Entry


class Holds:
    """The held requests, oldest first. Used on one event loop only."""

    def __init__(self) -> None:
        self._held: list[tuple[Entry, str, asyncio.Future[bool]]] = []

    async def hold(self, entry: Entry, when: str) -> bool:
        """Wait for the release. True: let it go on; False: drop it unanswered.

        A client that gives up meanwhile does not free it: the real thing would also still have the request.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._held.append((entry, when, future))
        return await future

    def release(self, *, drop: bool = False, count: int | None = None) -> int:
        """Let held requests go (all, or the ``count`` oldest). Returns how many."""
        chosen = self._held if count is None else self._held[:count]
        self._held = self._held[len(chosen) :]
        for _, _, future in chosen:
            if not future.done():
                future.set_result(not drop)
        return len(chosen)

    def as_json(self) -> list[dict[str, Any]]:
        """Show the held requests as ``GET /faults`` shows them."""
        return [
            {"n": entry.n, "method": entry.method, "path": entry.path, "when": when, "since": entry.time}
            for entry, when, _ in self._held
        ]
