"""The ``[crm.NAME]`` tables: one Salesforce org or one HubSpot account each."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, PlainValidator, Tag, model_validator

from cdcsync.config.secret import Secret
from cdcsync.config.table import Budget, Table

CRM_KINDS = ("salesforce", "hubspot")


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        msg = 'expected a URL such as "https://host"'
        raise ValueError(msg)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        msg = "plain http is taken on loopback addresses only: use https"
        raise ValueError(msg)
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by an address or as localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Url: TypeAlias = Annotated[str, AfterValidator(_url)]


def _bulk_from(given: object) -> int | None:
    if given == "auto" or given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    msg = 'expected "auto" or a number of rows'
    raise ValueError(msg)


class SalesforceConfig(Table):
    """A Salesforce org."""

    kind: Literal["salesforce"] = "salesforce"
    login_url: Url = "https://login.salesforce.com"
    """Where to log in: the org's My Domain, or login.salesforce.com / test.salesforce.com for the JWT bearer flow."""
    client_id: Annotated[str, Field(min_length=1)]
    """The connected app's consumer key."""
    client_secret: Secret | None = None
    """The connected app's consumer secret: client credentials flow."""
    username: str | None = None
    """The user to act as: JWT bearer flow, with private_key."""
    private_key: Secret | None = None
    """The PEM key of the certificate in the connected app: JWT bearer flow, with username."""
    daily_budget: Budget = 0.6
    """Share of the org's allowance of calls in 24 hours, or a number of calls."""
    bulk_from: Annotated[
        int | None,
        PlainValidator(_bulk_from, json_schema_input_type=Literal["auto"] | int),
        PlainSerializer(lambda rows: "auto" if rows is None else rows),
    ] = None
    """Row count from which Bulk API 2.0 is used; "auto" lets cdcsync weigh calls, batches and time."""
    max_parallel: Annotated[int, Field(ge=1, le=25)] = 5
    """Requests at the same time."""
    api_version: Annotated[str, Field(pattern=r"^\d{2,3}\.0$")] = "62.0"
    """Version of the Salesforce API."""

    @model_validator(mode="after")
    def _one_login(self) -> SalesforceConfig:
        jwt = self.username is not None and self.private_key is not None
        if jwt == (self.client_secret is not None) or (not jwt and self.private_key is not None):
            msg = "give client_secret (client credentials), or username and private_key (JWT bearer)"
            raise ValueError(msg)
        if not jwt and urlsplit(self.login_url).hostname in {"login.salesforce.com", "test.salesforce.com"}:
            msg = 'with client_secret, login_url must be the My Domain of the org: "https://NAME.my.salesforce.com"'
            raise ValueError(msg)
        return self


class HubspotConfig(Table):
    """A HubSpot account."""

    kind: Literal["hubspot"] = "hubspot"
    token: Secret | None = None
    """The access token of a private app, or a service key."""
    client_id: str | None = None
    """OAuth, with client_secret and refresh_token."""
    client_secret: Secret | None = None
    """OAuth, with client_id and refresh_token."""
    refresh_token: Secret | None = None
    """OAuth, with client_id and client_secret."""
    base_url: Url = "https://api.hubapi.com"
    """Where the API is."""
    daily_budget: Budget = 0.75
    """Share of the account's daily allowance of calls, or a number of calls."""
    max_parallel: Annotated[int, Field(ge=1, le=25)] = 5
    """Requests at the same time."""

    @model_validator(mode="after")
    def _one_login(self) -> HubspotConfig:
        oauth = [part is not None for part in (self.client_id, self.client_secret, self.refresh_token)]
        if any(oauth) != all(oauth) or any(oauth) == (self.token is not None):
            msg = "give token, or client_id, client_secret and refresh_token (OAuth)"
            raise ValueError(msg)
        return self


def crm_kind(name: str, given: object) -> str | None:
    """Tell the kind of a ``[crm.NAME]`` table: its ``kind``, else its name if that is a kind."""
    kind = given.get("kind", name) if isinstance(given, dict) else getattr(given, "kind", None)
    return kind if kind in CRM_KINDS else None


CrmConfig: TypeAlias = Annotated[
    Annotated[SalesforceConfig, Tag("<salesforce>")] | Annotated[HubspotConfig, Tag("<hubspot>")],
    Discriminator(lambda given: f"<{crm_kind('', given)}>"),
]
