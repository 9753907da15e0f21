"""A request that is paid for before its rows are taken: what ``Limiter.acquire`` gives."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Protocol, Self

from cdcsync.apply.turns import Priority
from cdcsync.apply.valve import Valve


class Giver(Protocol):
    """What takes permits back; all on the event loop."""

    def give_back(self, valve: Valve) -> None:
        """Return a permit that was not used."""

    def end_probe(self, *, failed: bool) -> None:
        """Let another probe go, if nobody has said what became of this one, or is about to: of one that failed."""


class Permit:
    """The right to send one request. Use it as a context, on the loop: at its end, what was not used is returned.

    Within it, requests wait in the permit's class, and the first one is paid for; also those of threads that work in a
    copy of the context (as ``asyncio.to_thread`` does).
    """

    def __init__(self, giver: Giver, valve: Valve, priority: Priority, *, probe: bool) -> None:
        self.priority = priority
        self._giver = giver
        self._valve = valve
        self._probe = probe
        self._unspent = True
        self._token: Token[Permit | None] | None = None

    def __enter__(self) -> Self:
        self._token = _PERMIT.set(self)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._token is not None:
            _PERMIT.reset(self._token)
        if self._unspent:
            self._unspent = False
            self._giver.give_back(self._valve)
        if self._probe:
            self._giver.end_probe(failed=error is not None)

    @staticmethod
    def present() -> Permit | None:
        """Give the permit within which we work now."""
        return _PERMIT.get()

    def spend(self, valve: Valve, now: float) -> bool:
        """Use it for a request that is about to wait; not while the CRM has asked to wait since it was given."""
        if not self._unspent or valve is not self._valve or valve.controller.asked_to_wait(now):
            return False
        self._unspent = False
        return True


_PERMIT: ContextVar[Permit | None] = ContextVar("permit", default=None)
