"""Keeps a lane from deleting many records that nobody meant to lose: beyond ``max_deletes`` a mapping pauses and asks.

What is about to be sent is counted in the state file before it goes, so that a crash lets nothing through uncounted; a
delete that is sent again, because its first answer was lost, counts once. What is withheld waits in the backlog like
any other row: a row that comes back meanwhile makes an update of its delete.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdcsync.deletes import Account, question
from cdcsync.model import Position
from cdcsync.plan import Draft
from cdcsync.route import Route

if TYPE_CHECKING:
    from cdcsync.lane import Lane  # a lane owns its guard; here only for its type

RETELL_SECONDS = 10.0
"""How often a pause's reason is brought up to date; to count the rows that wait looks at each."""


class DeleteGuard:
    """The guard of one lane's mappings."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._turn = asyncio.Lock()
        self._counted: defaultdict[str, dict[str, Position]] = defaultdict(dict)
        """Deletes that were counted and are not settled: by mapping and key the position of the row's first change."""
        self._retell_at = 0.0
        self._told: dict[str, int] = {}
        """Rows that waited when a pause's reason was written, by mapping."""

    async def admit(self, route: Route, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts without the deletes that may not go; those wait again, and the mapping is paused."""
        if route.config.max_deletes is None or not any(draft.row.deleted for draft in drafts):
            return drafts
        async with self._turn:
            account = await self._account(route)
            new = self._new(route, account, drafts)
            left = account.spent.left(route.config.max_deletes, account.records)
            if len(new) > left:
                await self._lane.around.tick()  # records that were written just now count
                account = await self._account(route)
                left = account.spent.left(route.config.max_deletes, account.records)
            await self._spend(route, account, new[:left])
        if new[left:]:
            await self._withhold(route, new[left:])
        excess = {id(draft) for draft in new[left:]}
        return [draft for draft in drafts if id(draft) not in excess]

    async def lets(self, route: Route, deletes: int) -> bool:
        """Whether so many further deletes of a mapping would go without a question."""
        allowance = route.config.max_deletes
        if allowance is None or route.config.on_delete == "ignore":
            return True
        account = await self._account(route)
        return deletes <= account.spent.left(allowance, account.records)

    async def let_go(self, route: Route, position: Position) -> None:
        """Take note that what a sweep feeds with this position may go, because a person was told."""
        oldest = route.backlog.oldest()
        await self._lane.around.on_file(lambda state: state.deletes.let_go(route.name, position, oldest))

    async def retell(self) -> None:
        """Bring the reasons of the pauses up to date: what is withheld may have become more, or less."""
        now = self._lane.clock.monotonic()
        if now < self._retell_at:
            return
        self._retell_at = now + RETELL_SECONDS
        for route in self._lane.routes:
            if self._told.get(route.name) != len(route.backlog) and self._asks(route):
                await self._tell(route)

    def _asks(self, route: Route) -> bool:
        pause = self._lane.around.pause_of(route)
        return pause is not None and pause.by == "deletes"

    async def _account(self, route: Route) -> Account:
        account = await self._lane.around.on_file(lambda state: state.deletes.account(route.name))
        assert route.config.max_deletes is not None  # noqa: S101 — for the type checker; who calls has looked
        spent = account.spent.within(route.config.max_deletes, self._lane.clock.time())
        return Account(spent, account.records, account.granted, account.swept)

    def _new(self, route: Route, account: Account, drafts: Sequence[Draft]) -> list[Draft]:
        """Return the deletes that neither were counted already nor need to be."""
        counted = {key: first for key, first in self._counted[route.name].items() if route.backlog.owes(key)}
        self._counted[route.name] = counted
        asked = (draft for draft in drafts if draft.row.deleted and not account.may_go(draft.row.last))
        return [draft for draft in asked if counted.get(draft.row.key) != draft.row.first]

    async def _spend(self, route: Route, account: Account, going: Sequence[Draft]) -> None:
        if not going:
            return
        assert route.config.max_deletes is not None  # noqa: S101 — for the type checker; who calls has looked
        now = self._lane.clock.time()
        spent = account.spent.add(route.config.max_deletes, len(going), account.records, now)
        await self._lane.around.on_file(lambda state: state.deletes.spend(route.name, spent))
        self._counted[route.name].update((draft.row.key, draft.row.first) for draft in going)

    async def _withhold(self, route: Route, drafts: Sequence[Draft]) -> None:
        asked = route.paused is None
        if asked:  # at once: what is given back must not be taken again
            self._lane.around.pause(route, "more deletes wait than max_deletes lets go unasked", by="deletes")
        now = self._lane.clock.monotonic()
        for draft in drafts:
            route.backlog.give_back(draft.row, now)
            self._lane.parents.wake_waiters(route, draft.row.keys)
        if asked:
            await self._tell(route)
            self._lane.log.warning("deletes withheld", map=route.name, reason=route.paused)

    def _waiting(self, route: Route) -> int:
        """Count the deletes in memory that are not on their way."""
        backlog, counted = route.backlog, self._counted[route.name]
        taken = (flight.row for flight in backlog.in_flight.values() if flight.row.key not in counted)
        return sum(row.deleted for rows in (backlog.fold.waiting.values(), taken) for row in rows)

    async def _tell(self, route: Route) -> None:
        """Write down why a mapping is paused, in figures as of now."""
        self._told[route.name] = len(route.backlog)
        account = await self._account(route)
        await self._lane.around.tick()
        cold = await self._lane.around.on_file(lambda state: state.deletes.cold(route.name))
        waiting = cold + self._waiting(route)
        allowance = route.config.max_deletes
        assert allowance is not None  # noqa: S101 — for the type checker; it is what asks
        reason = question(route.name, waiting, account.spent.records(account.records), account.spent, allowance)
        if await self._lane.around.on_file(lambda state: state.pauses.retell(route.name, reason)) and route.paused:
            route.paused = reason
