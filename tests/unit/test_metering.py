"""Which CRM tables share a quota."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cdcsync.apply.metering import Meters, account
from cdcsync.config import CrmConfig, HubspotConfig, SalesforceConfig
from cdcsync.errors import ConfigError

ENVIRON = {"A": "pat-1", "SAME": "pat-1", "B": "pat-2", "REFRESH": "r", "KEY": "k"}


def hubspot(**raw: Any) -> HubspotConfig:
    """Make a HubSpot table."""
    return HubspotConfig.model_validate(raw, context={"environ": ENVIRON})


def salesforce(**raw: Any) -> SalesforceConfig:
    """Make a Salesforce table."""
    login = {"username": "u", "private_key": {"env": "KEY"}} if "client_secret" not in raw else {}
    return SalesforceConfig.model_validate({"client_id": "app", **login, **raw}, context={"environ": ENVIRON})


ACME = "https://acme.my.salesforce.com"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (hubspot(token={"env": "A"}), hubspot(token={"env": "SAME"}, max_parallel=2), True),
        (hubspot(token={"env": "A"}), hubspot(token={"env": "B"}), False),
        (hubspot(token={"env": "A"}), hubspot(token={"env": "A"}, base_url="https://api-eu1.hubapi.com"), False),
        (salesforce(login_url=ACME), salesforce(login_url=ACME + "/", username="v"), True),
        (salesforce(login_url=ACME), salesforce(login_url=ACME, client_secret={"env": "A"}, client_id="b"), True),
        (salesforce(login_url=ACME), salesforce(login_url="https://b.my.salesforce.com"), False),
        (salesforce(), salesforce(), True),
        (salesforce(), salesforce(username="v"), False),
        (salesforce(), hubspot(token={"env": "A"}), False),
    ],
)
def test_tables_that_lead_to_one_account_share_its_quotas(one: CrmConfig, other: CrmConfig, *, same: bool) -> None:
    """Per org and per token, whatever the references to the secret are called."""
    assert (account(one) == account(other)) == same


def test_a_secret_that_is_not_there_is_a_mistake_in_the_config() -> None:
    """It is told as by the login, at the start."""
    with pytest.raises(ConfigError, match="MISSING"):
        account(hubspot(token={"env": "MISSING"}))


async def test_the_smallest_budget_of_one_account_counts() -> None:
    """Two tables with 60 and 30 % of one org have 30 % together, and each other's requests count for both."""
    crms: dict[str, CrmConfig] = {
        "one": salesforce(login_url=ACME, daily_budget="60%"),
        "two": salesforce(login_url=ACME, daily_budget="30%", max_parallel=9),
        "three": salesforce(login_url="https://b.my.salesforce.com", daily_budget=500),
    }
    meters = Meters(asyncio.get_running_loop(), crms)
    one, two, three = (meters.limiter(name, crm, str) for name, crm in crms.items())
    assert (one.parallel, two.parallel, three.parallel) == (9, 9, 5)
    for limiter in (one, two, three):
        with await limiter.acquire() as permit:
            limiter.seen([])
            assert permit.priority == "normal"
    assert {limiter.name for limiter in (one, two, three)} == set(crms)
