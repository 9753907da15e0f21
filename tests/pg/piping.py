"""The whole pipe in this process: a table, the daemon's ``Service``, and a sandbox HubSpot that takes its records."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import structlog

from cdcsync.config import Config
from cdcsync.demo.processes import get_json
from cdcsync.sandbox.server import SandboxThread
from cdcsync.service import Service
from cdcsync.slot_life import make_slot
from tests.polling import eventually_async


@dataclass
class Pipe:
    """A database and a CRM. ``maps`` are mappings to ``hubspot.companies``, keyed by ``company_id``."""

    dsn: str
    sandbox: SandboxThread
    state: Path
    maps: list[dict[str, Any]]
    postgres: dict[str, Any] = field(default_factory=dict)
    slot: str = field(default_factory=lambda: f"s_{uuid.uuid4().hex[:12]}")

    def config(self) -> Config:
        """Make the config."""
        return Config.model_validate(
            {
                "postgres": {"dsn": self.dsn, "slot": self.slot, **self.postgres},
                "state": {"path": str(self.state)},
                "status": {"listen": "off"},
                "batch": {"max_wait": "20ms"},
                "crm": {"hubspot": {"token": {"env": "TOKEN"}, "base_url": self.sandbox.url}},
                "map": self.maps,
            },
            context={"environ": {"TOKEN": "pat-test"}},
        )

    async def make_slot(self) -> None:
        """Do what ``cdcsync slot create`` does."""
        await make_slot(self.config(), structlog.get_logger())

    async def once(self) -> None:
        """Run the daemon until the CRM is as the database was."""
        log = structlog.get_logger()
        await asyncio.wait_for(Service(self.config(), log, once=True).run(), 60)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the daemon running."""
        service = Service(self.config(), structlog.get_logger())
        task = asyncio.ensure_future(service.run())
        try:
            yield
        finally:
            service.stopping.set()
            await asyncio.wait_for(task, 60)

    def records(self, field: str = "name") -> dict[str, Any]:
        """Return one field of the records that the CRM holds now, by external key."""
        records = get_json(f"{self.sandbox.admin_url}/records?object=companies")
        assert isinstance(records, list)
        return {one["key"]["company_id"]: one["fields"].get(field) for one in records if not one["archived"]}

    def books(self) -> dict[str, Any]:
        """Return what the CRM's own books say."""
        books = get_json(f"{self.sandbox.admin_url}/books")
        assert isinstance(books, dict)
        return books

    async def shows(self, wanted: dict[str, Any]) -> None:
        """Wait until the CRM holds these names."""
        try:
            await eventually_async(lambda: self.records() == wanted)
        except TimeoutError as error:
            message = f"the CRM holds {self.records()}, and should hold {wanted}"
            raise AssertionError(message) from error


async def execute(dsn: str, *statements: str) -> None:
    """Run statements in a thread: the daemon in this one may hold locks that they wait for."""
    await asyncio.to_thread(execute_first, dsn, *statements)


def execute_first(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def mapping(table: str, **more: Any) -> dict[str, Any]:
    """Map a table's ``id`` and ``name``."""
    return {
        "table": table,
        "to": "hubspot.companies",
        "key": {"company_id": "id"},
        "fields": {"name": "name"},
        **more,
    }
