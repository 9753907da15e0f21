"""``cdcsync check``: proves the chain from the config over PostgreSQL to the CRMs, line by line; writes nothing."""

from __future__ import annotations

import asyncio

from cdcsync.apply.base import Finding
from cdcsync.check.crm import check_crm
from cdcsync.check.script import from_config, from_server, script
from cdcsync.check.source import check_source
from cdcsync.config import Config, MapConfig, order
from cdcsync.errors import SourceUnavailableError
from cdcsync.wal.connect import connect

__all__ = ["offline", "online", "privileges"]


def offline(config: Config) -> list[Finding]:
    """Say what the config means; that it loaded proves that it fits together. Reads nothing else, secrets neither."""
    count = len(config.maps)
    findings = [Finding("config", ok=True, message=f"{count} mapping{'s' if count > 1 else ''}")]
    findings += [Finding(f"map {one.name}", ok=True, message=_sentence(one)) for one in order(config.maps)]
    return findings


async def online(config: Config) -> list[Finding]:
    """Check everything: what ``offline`` says, then the database, then each CRM that a mapping writes to.

    A part that cannot be reached is one finding, and the others are checked all the same.
    """
    crms = [(name, crm, [one for one in order(config.maps) if one.crm == name]) for name, crm in config.crm.items()]
    source, *answers = await asyncio.gather(
        check_source(config),
        *(asyncio.to_thread(check_crm, name, crm, maps) for name, crm, maps in crms if maps),
    )
    unused = [
        Finding(f"crm {name}", ok=True, message="no mapping writes to it: not checked")
        for name, _, maps in crms
        if not maps
    ]
    return [*offline(config), *source, *(finding for answer in answers for finding in answer), *unused]


async def privileges(config: Config, *, ask: bool) -> str:
    """Return the SQL for the DBA; with ``ask``, made for the server as it is, if it can be reached."""
    if not ask:
        return script(config, from_config(config))
    try:
        async with await connect(config.postgres.dsn) as connection:
            return script(config, await from_server(connection, config))
    except SourceUnavailableError as error:
        reason = " ".join(error.message.split())
        return f"-- The server was not asked: {reason}\n{script(config, from_config(config))}"


def _sentence(one: MapConfig) -> str:
    fields = len(one.fields)
    return (
        f"{one.table} → {one.to} by {one.key_field} = {one.key_column}, {fields} field{'s' if fields != 1 else ''}"
        f"{f', where {one.where}' if one.where else ''}"
    )
