"""A request that is paid for before its rows are taken: what ``Limiter.acquire`` gives."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, Protocol, Self, TypeVar

from cdcsync.apply.turns import Priority
from cdcsync.apply.valve import Valve

P = ParamSpec("P")
T = TypeVar("T")


class Giver(Protocol):
    """What takes permits back; all on the event loop."""

    def give_back(self, valve: Valve) -> None:
        """Return a permit that was not used."""

    def end_probe(self) -> None:
        """Let another probe go, if nobody has said what became of this one."""


class Permit:
    """The right to send one request. Use it as a context, which returns what was not used."""

    def __init__(self, giver: Giver, valve: Valve, priority: Priority, *, probe: bool) -> None:
        self.priority = priority
        self._giver = giver
        self._valve = valve
        self._probe = probe
        self._unspent = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unspent:
            self._unspent = False
            self._giver.give_back(self._valve)
        if self._probe:
            self._giver.end_probe()

    @staticmethod
    def present() -> Permit | None:
        """Give the permit under which this thread works now."""
        return _PERMIT.get()

    def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Do blocking work in this thread, whose requests wait in this permit's class; the first one is paid for."""
        token = _PERMIT.set(self)
        try:
            return work(*arguments, **named)
        finally:
            _PERMIT.reset(token)

    def spend(self, valve: Valve, now: float) -> bool:
        """Use it for a request that is about to wait; not while the CRM has asked to wait since it was given."""
        if not self._unspent or valve is not self._valve or valve.controller.asked_to_wait(now):
            return False
        self._unspent = False
        return True


_PERMIT: ContextVar[Permit | None] = ContextVar("permit", default=None)
"""The permit under which the present thread works."""
