"""A HubSpot account for tests: the sandbox, and the adapter that writes to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import urllib3

from cdcsync.apply.base import Gate, OpenGate
from cdcsync.apply.hubspot import HubspotDestination
from cdcsync.config import HubspotConfig
from cdcsync.model import Applied, Batch, Op, Outcome, Record, Target
from cdcsync.sandbox.server import SandboxThread

CONTACTS = Target("contacts", "customer_id")
COMPANIES = Target("companies", "company_id")
DEALS = Target("deals", "order_id")
OAUTH: dict[str, Any] = {"client_id": "app", "client_secret": {"env": "SECRET"}, "refresh_token": {"env": "REFRESH"}}


class Counter(OpenGate):
    """A gate that lets everything pass and counts it."""

    def __init__(self) -> None:
        self.passed = 0
        self.refusals: list[tuple[str, float | None]] = []

    def wait(self, scope: str = "burst") -> None:
        """Count a request."""
        del scope
        self.passed += 1

    def refused(self, scope: str, retry_after: float | None) -> None:
        """Remember a refusal."""
        self.refusals.append((scope, retry_after))


class Account:
    """A sandbox account with an open adapter, looked at from the admin side."""

    def __init__(self, sandbox: SandboxThread) -> None:
        self.sandbox = sandbox
        self.gate = Counter()
        self._http = urllib3.PoolManager(retries=False)
        self.crm = self.connect(gate=self.gate)
        self.gate.passed = 0

    def connect(self, gate: Gate | None = None, **login: Any) -> HubspotDestination:
        """Open an adapter; with a private token unless a login is given."""
        raw = {"base_url": self.sandbox.url, **(login or {"token": {"env": "TOKEN"}})}
        environ = {"TOKEN": "pat-na1-tests", "SECRET": "s3cret", "REFRESH": "refresh"}
        crm = HubspotDestination(
            "hubspot", HubspotConfig.model_validate(raw, context={"environ": environ}), gate or OpenGate()
        )
        try:
            crm.open()
        except BaseException:
            crm.close()
            raise
        return crm

    def close(self) -> None:
        """Drop connections."""
        self.crm.close()
        self._http.clear()

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """Call the sandbox's admin API."""
        answer = self._http.request(method, self.sandbox.admin_url + path, json=body, timeout=30).json()
        assert "error" not in answer, answer
        return answer

    def settings(self, **settings: object) -> None:
        """Change the sandbox's settings."""
        self.admin("PUT", "/settings", settings)

    def fault(self, **rule: object) -> None:
        """Add a fault rule."""
        self.admin("POST", "/faults", [rule])

    def records(self, object_name: str = "contacts") -> dict[str, dict[str, Any]]:
        """List the live records by id, each as the admin API shows it."""
        listed = self.admin("GET", f"/records?object={object_name}")
        return {entry["id"]: entry for entry in listed if not entry["archived"]}

    def fields(self, object_name: str = "contacts") -> dict[str, dict[str, Any]]:
        """List the live records' properties by external key."""
        return {next(iter(entry["key"].values())): entry["fields"] for entry in self.records(object_name).values()}

    def books(self) -> dict[str, Any]:
        """Show the sandbox's books."""
        books: dict[str, Any] = self.admin("GET", "/books")
        return books

    def upsert(self, *records: Record, target: Target = CONTACTS) -> list[Outcome]:
        """Upsert records."""
        return self.crm.send(Batch(target, Op.UPSERT, records))

    def made(self, *keys: str, target: Target = CONTACTS) -> list[str]:
        """Make records with keys only (deals get what they need); answer their ids."""
        needed = {"dealname": "d", "dealstage": "closedwon"} if target is DEALS else {}
        return ids(self.upsert(*(Record(key, needed) for key in keys), target=target))


def ids(outcomes: Sequence[Outcome]) -> list[str]:
    """Give the ids of records that were all applied."""
    assert all(isinstance(outcome, Applied) for outcome in outcomes), outcomes
    return [str(outcome.crm_id) for outcome in outcomes if isinstance(outcome, Applied)]
