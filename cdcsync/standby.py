"""Standing by: wait until the active daemon of the same state is gone, then have the right to take its place."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from cdcsync.claim import Claim
from cdcsync.errors import StateHeldError
from cdcsync.notify import Notifier

POLL_SECONDS = 0.25


async def stand_by(
    path: Path,
    mirror: Path | None,
    stopping: asyncio.Event,
    notifier: Notifier,
    log: structlog.typing.FilteringBoundLogger,
) -> Claim | None:
    """Return the claim on the state when it is free; None if ``stopping`` came first. Raises StateError."""
    said = ""
    while not stopping.is_set():
        try:
            claim = await asyncio.to_thread(Claim.take, path, mirror)
        except StateHeldError as held:
            if said != held.holder:
                said = held.holder
                log.info("standing by", active=said)
                notifier.status(f"Standing by; active is {said}")
                notifier.ready()
        else:
            log.info("taking over" if said else "active", before=said or None)
            return claim
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await stopping.wait()
    return None
