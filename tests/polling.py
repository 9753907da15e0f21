"""Waiting for a condition, in place of sleeping for a guess."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

PAUSE = 0.02


def eventually(condition: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Ask again and again until ``condition()`` is true, and return what it gave. Raises TimeoutError with ``what``."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what or f"{condition!r} did not come true in {timeout} s")
        time.sleep(PAUSE)
    return value


async def eventually_async(condition: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
    """As ``eventually``, on the event loop; the condition may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        result = await value if isinstance(value, Awaitable) else value
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(what or f"{condition!r} did not come true in {timeout} s")
        await asyncio.sleep(PAUSE)
