"""Which ``[crm.*]`` tables lead to one account, and the limiters of each: a quota is one where the vendor meters one.

Salesforce meters per org: a My Domain names one, and on the common login hosts the user does. HubSpot meters ten
seconds per app and a day per account: a token, or the grant of an app, belongs to both. Two apps of one HubSpot account
have a day in common that the config does not show; to each, the other is one of the others that use the account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from cdcsync.apply.limiter import Limiter
from cdcsync.apply.rate import RateController
from cdcsync.apply.valve import Valve
from cdcsync.config import CrmConfig, HubspotConfig, SalesforceConfig

BURST_CEILING: Final = {"salesforce": 25.0, "hubspot": 19.0}
"""Requests a second until the CRM's own headers have said more."""
SEARCH_CEILING: Final = 4.0
BULK_BATCHES: Final = 15_000
"""Of an org in 24 hours, Bulk API 1.0 and 2.0 together. No header shows them."""
BULK_SHARE: Final = 0.6
"""Our part of them where ``daily_budget`` is a number of calls."""
COMMON_HOSTS: Final = frozenset({"login.salesforce.com", "test.salesforce.com"})

Account = tuple[str, ...]


def account(crm: CrmConfig) -> Account:
    """Name what the vendor meters. Raises ConfigError if a secret that tells it is not there."""
    if isinstance(crm, SalesforceConfig):
        shared = urlsplit(crm.login_url).hostname in COMMON_HOSTS
        return ("salesforce", crm.login_url, (crm.username or "") if shared else "")
    secrets = (crm.token, crm.refresh_token)
    return ("hubspot", crm.base_url, crm.client_id or "", *(one.read() if one else "" for one in secrets))


class Meters:
    """The limiters of all CRMs. Of tables that lead to one account, the smallest budget counts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, crms: Mapping[str, CrmConfig]) -> None:
        self._loop = loop
        self._valves: dict[RateController, Valve] = {}
        self._controllers: dict[Account, tuple[RateController, dict[str, RateController]]] = {}
        accounts: dict[Account, list[CrmConfig]] = {}
        for crm in crms.values():
            accounts.setdefault(account(crm), []).append(crm)
        for name, same in accounts.items():
            self._controllers[name] = self._metered(same)

    def limiter(self, name: str, crm: CrmConfig, obstacle: Callable[[], str]) -> Limiter:
        """Give the limiter of one CRM."""
        controller, apart = self._controllers[account(crm)]
        return Limiter(self._loop, controller, name, apart=apart, valves=self._valves, obstacle=obstacle)

    def _metered(self, same: list[CrmConfig]) -> tuple[RateController, dict[str, RateController]]:
        now, crm = self._loop.time(), same[0]
        budget = _smallest(crm.daily_budget for crm in same)
        controller = RateController(
            ceiling=BURST_CEILING[crm.kind],
            daily_budget=budget,
            rolling_day=crm.kind == "salesforce",
            parallel=max(crm.max_parallel for crm in same),
            now=now,
        )
        if isinstance(crm, HubspotConfig):
            return controller, {"search": RateController(ceiling=SEARCH_CEILING, now=now)}
        share = budget if isinstance(budget, float) else BULK_SHARE
        batches = RateController(daily_budget=share, rolling_day=True, now=now)
        batches.budget.learn(BULK_BATCHES)
        return controller, {"bulk": batches}


def _smallest(budgets: Iterable[float]) -> float:
    """Choose among shares and numbers of calls, which cannot be compared: a number is the more definite word."""
    given = list(budgets)
    return min((one for one in given if isinstance(one, int)), default=min(given))
