"""An event loop on virtual time: what waits is next, at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class _Leap(selectors.DefaultSelector):
    """Lets time pass in place of waiting."""

    def __init__(self, leap: Callable[[float], None]) -> None:
        super().__init__()
        self._leap = leap

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Look for what is ready now."""
        if timeout is not None and timeout > 0:
            self._leap(timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time goes on when nothing is to be done. It has no threads to wait for."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Leap(self._pass))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def _pass(self, seconds: float) -> None:
        self._now += seconds


class _Time:
    """What asyncio-throttle takes for the module ``time``."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time


def run(monkeypatch: pytest.MonkeyPatch, work: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run something on a virtual loop; asyncio-throttle, which reads the clock by itself, goes by its time."""
    loop = VirtualLoop()
    monkeypatch.setattr("asyncio_throttle.throttler.time", _Time(loop))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))
