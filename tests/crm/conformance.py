"""What the conformance suite (``test_conformance.py``) needs to know of an adapter, and how it looks at the CRM.

A new CRM describes itself with one ``Adapter`` and joins ``ADAPTERS`` in ``test_conformance.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import urllib3

from cdcsync.apply.base import BulkDestination, Destination, Gate
from cdcsync.model import Applied, Batch, Link, Op, Outcome, Record, Target, Value, Window
from cdcsync.sandbox.server import SandboxThread
from tests.polling import eventually


@dataclass(frozen=True)
class Adapter:
    """One CRM's adapter, in the words that the suite uses.

    ``connect(url, gate)`` builds a destination that can renew its login; ``connect_wrongly`` one whose login the
    sandbox refuses. ``required`` fields make a record that may be created. ``text`` and ``other`` are two text fields
    that may be cleared; ``bad`` is a field with a value that the CRM refuses. ``refer(parent_key, parent_id, was_ids)``
    gives the fields and links that make a record of ``target`` refer to a ``parent`` (None: to none); ``parent_of``
    reads back the id of the one that it refers to. ``write_path``, ``read_path`` and ``login_path`` are regular
    expressions on request paths, ``settings`` the sandbox's.
    """

    crm: str
    connect: Callable[[str, Gate], Destination]
    connect_wrongly: Callable[[str, Gate], Destination]
    target: Target
    required: Mapping[str, Value]
    text: str
    other: str
    bad: tuple[str, Value]
    parent: Target
    parent_required: Mapping[str, Value]
    refer: Callable[[str | None, str | None, Sequence[str]], tuple[dict[str, Value], tuple[Link, ...]]]
    parent_of: Callable[[Subject, str], str | None]
    unknown_id: str
    write_path: str
    read_path: str
    login_path: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Recorder:
    """A gate that lets everything pass and remembers it."""

    def __init__(self) -> None:
        self.passed = 0
        self.windows: dict[str, Window] = {}
        self.refusals: list[tuple[str, float | None]] = []
        self.spendings: dict[str, int] = {}

    def wait(self, scope: str = "burst") -> None:
        """Count a request."""
        del scope
        self.passed += 1

    def seen(self, windows: Sequence[Window]) -> None:
        """Remember quotas."""
        self.windows |= {window.name: window for window in windows}

    def refused(self, scope: str, retry_after: float | None) -> None:
        """Remember a refusal."""
        self.refusals.append((scope, retry_after))

    def spent(self, scope: str, units: int) -> None:
        """Count what no header shows."""
        self.spendings[scope] = self.spendings.get(scope, 0) + units


class Subject:
    """An open adapter with its sandbox, looked at from the admin side."""

    def __init__(self, adapter: Adapter, sandbox: SandboxThread) -> None:
        self.adapter = adapter
        self.sandbox = sandbox
        self.gate = Recorder()
        self._http = urllib3.PoolManager(retries=False)
        self.crm = adapter.connect(sandbox.url, self.gate)
        self.crm.open()

    def close(self) -> None:
        """Drop connections."""
        self.crm.close()
        self._http.clear()

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """Call the sandbox's admin API."""
        answer = self._http.request(method, self.sandbox.admin_url + path, json=body, timeout=30).json()
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def fault(self, **rule: object) -> None:
        """Add a fault rule, for write requests unless it says which."""
        self.admin("POST", "/faults", [{"match": {"path": self.adapter.write_path}, **rule}])

    def requests(self, path: str = "") -> int:
        """Count the requests so far to paths that match."""
        return sum(1 for entry in self.admin("GET", "/requests?since=0") if re.search(path, entry["path"]))

    def books(self) -> dict[str, Any]:
        """Show the sandbox's books."""
        shown: dict[str, Any] = self.admin("GET", "/books")
        return shown

    def stored(self, target: Target | None = None) -> dict[str, dict[str, Any]]:
        """Show the live records by external key, each as the admin API lists it."""
        listed = self.admin("GET", f"/records?object={(target or self.adapter.target).object}")
        name = (target or self.adapter.target).key_field
        return {entry["key"][name]: entry for entry in listed if not entry["archived"] and name in entry["key"]}

    def value(self, key: str, name: str) -> object:
        """Show what a record holds in a field; None if nothing."""
        return self.stored()[key]["fields"].get(name) or None

    def record(self, key: str, *, crm_id: str | None = None, **texts: Value) -> Record:
        """Make a record with the required fields and ``text`` or ``other``."""
        names = {"text": self.adapter.text, "other": self.adapter.other}
        fields = {**self.adapter.required, **{names[name]: value for name, value in texts.items()}}
        return Record(key, fields, crm_id)

    def rekeyed(self, key: str, crm_id: str, text: Value) -> Record:
        """Make a record whose key changes to this one."""
        return replace(self.record(key, crm_id=crm_id, text=text), rekeyed=True)

    def send(self, op: Op, *records: Record) -> list[Outcome]:
        """Send a batch of the target."""
        return self.crm.send(Batch(self.adapter.target, op, records))

    def deliver(self, op: Op, *records: Record, bulk: bool) -> list[Outcome]:
        """Send a batch of the target, by a bulk job if asked to."""
        if not bulk:
            return self.send(op, *records)
        crm, batch = cast("BulkDestination", self.crm), Batch(self.adapter.target, op, records)
        job = crm.bulk_create(batch.target, op)
        crm.bulk_upload(job, batch)
        crm.bulk_close(job)
        eventually(lambda: crm.bulk_poll(job).state not in {"open", "running"}, what=f"job {job} does not end")
        return crm.bulk_results(job, batch)

    def upsert(self, *records: Record) -> list[Outcome]:
        """Upsert records."""
        return self.send(Op.UPSERT, *records)

    def made(self, *keys: str) -> list[str]:
        """Make records; answer their ids."""
        return ids(self.upsert(*(self.record(key, text="made") for key in keys)))

    def parents(self, *keys: str) -> list[str]:
        """Make parents; answer their ids."""
        records = tuple(Record(key, self.adapter.parent_required) for key in keys)
        return ids(self.crm.send(Batch(self.adapter.parent, Op.UPSERT, records)))


def ids(outcomes: Sequence[Outcome]) -> list[str]:
    """Give the ids of records that were all applied."""
    assert all(isinstance(outcome, Applied) and outcome.crm_id for outcome in outcomes), outcomes
    return [str(outcome.crm_id) for outcome in outcomes if isinstance(outcome, Applied)]
