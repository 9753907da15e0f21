"""One CRM of a history, over all the daemon's lives: its records, its account, and what we asked of it when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cdcsync.apply.budget import DAY
from cdcsync.apply.pace_record import KEEP_SECONDS
from tests.simulation.crm import Crm
from tests.simulation.network import Account
from tests.simulation.plot import Plot, Terms

WINDOW = 10.0
"""Seconds of the account's quota."""
FORGOTTEN = KEEP_SECONDS + 2.0
"""The calls of so many seconds before a crash are forgotten: the record is written with a tick, every ten seconds."""


@dataclass(slots=True)
class Side:
    """A CRM, and the books of our requests to it."""

    number: int
    plot: Plot
    crm: Crm
    account: Account = field(init=False)
    passed: deque[float] = field(default_factory=deque)
    """When the gate let requests through, of the last day."""
    forgotten: list[tuple[float, int]] = field(default_factory=list)
    """Calls that crashes made the daemon forget: when, and how many."""
    notes: dict[str, str] = field(default_factory=dict)
    """What people wrote into records, by id."""
    attempts: int = 0
    """Requests while nothing got through, behind its first minute."""

    def __post_init__(self) -> None:
        daily = None if self.terms.daily is None else 3 * self.terms.daily
        self.account = Account(self.terms.quota, WINDOW, daily)

    @property
    def terms(self) -> Terms:
        """What was drawn for it."""
        return self.plot.terms[self.number]

    def begin_life(self) -> None:
        """Take note that a daemon starts."""
        self.crm.books.refused.clear()

    def crash(self, now: float) -> None:
        """Take note that a daemon ended, with what it had not written down."""
        self.forgotten.append((now, sum(1 for at in self.passed if at > now - FORGOTTEN)))

    def pass_gate(self, now: float, life: float, outage: float) -> None:
        """Count a request that our gate has let through, ``life`` seconds after the start; see that it may."""
        while self.passed and self.passed[0] <= now - DAY:
            self.passed.popleft()
        self.passed.append(now)
        self.crm.books.counts["passed"] += 1
        self.attempts += outage - self.terms.outage + 60.0 < now < outage
        self._see_budget(now)
        self._see_burst(now, life)

    def _see_budget(self, now: float) -> None:
        if self.terms.daily is None:
            return
        allowed = self.terms.daily + sum(calls for at, calls in self.forgotten if at > now - DAY)
        if len(self.passed) > allowed:
            self.crm.books.wrong.append(f"{len(self.passed)} calls in 24 hours, of {allowed}")

    def _see_burst(self, now: float, life: float) -> None:
        """See that we keep within the quota, once its window has been ours to see.

        Requests under way may have been let through when they were planned.
        """
        if life < WINDOW + 2 * self.terms.weather.slow:
            return
        recent = 0
        for at in reversed(self.passed):
            if at <= now - WINDOW:
                break
            recent += 1
        if recent > self.terms.quota + self.terms.limits.max_parallel:
            self.crm.books.wrong.append(f"{recent} requests in {WINDOW:.0f} s, of {self.terms.quota}")
