"""Salesforce, as the conformance suite knows it."""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.apply.base import Gate
from cdcsync.apply.salesforce import SalesforceDestination
from cdcsync.config import SalesforceConfig
from cdcsync.model import Link, Ref, Target, Value
from tests.crm.conformance import Adapter, Subject

SECRET = "s3cret"


def connect(url: str, gate: Gate, secret: str = SECRET) -> SalesforceDestination:
    """Build an adapter that logs in by client credentials."""
    raw = {"login_url": url, "client_id": "app", "client_secret": {"env": "SECRET"}}
    return SalesforceDestination(
        "salesforce", SalesforceConfig.model_validate(raw, context={"environ": {"SECRET": secret}}), gate
    )


def refer(key: str | None, crm_id: str | None, was_ids: Sequence[str]) -> tuple[dict[str, Value], tuple[Link, ...]]:
    """Refer to an account by its key; the ids play no part."""
    del crm_id, was_ids
    return {"AccountId": None if key is None else Ref("Account", "External_Id__c", key)}, ()


def parent_of(subject: Subject, key: str) -> str | None:
    """Read a contact's account."""
    found: str | None = subject.stored()[key]["fields"].get("AccountId")
    return found


SALESFORCE = Adapter(
    crm="salesforce",
    connect=connect,
    connect_wrongly=lambda url, gate: connect(url, gate, "wrong"),
    target=Target("Contact", "External_Id__c"),
    required={"LastName": "Lovelace"},
    text="FirstName",
    other="Department",
    bad=("Email", "not an address"),
    parent=Target("Account", "External_Id__c"),
    parent_required={"Name": "Acme"},
    refer=refer,
    parent_of=parent_of,
    unknown_id="0035g00000ZZZZZAAA",
    write_path="/composite/sobjects",
    read_path="/composite/sobjects/Contact$",
    login_path="/oauth2/token",
    settings={"client_secret": SECRET, "job_seconds": 0.05},
)
