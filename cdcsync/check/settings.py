"""Settings of the server that decide how long a slot lives, and when changes come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from cdcsync.apply.base import Finding
from cdcsync.config.units import format_size
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import SENDER_TIMEOUT, Connection

KEEP: Final = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
"""What a DBA may want; the figure is theirs to choose."""

LEAST_KEEP: Final = 1 << 30
MEGABYTE: Final = 1 << 20

_SETTINGS: Final = """
    SELECT name, setting FROM pg_settings
    WHERE name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout', 'wal_sender_timeout',
                   'synchronous_standby_names', 'synchronized_standby_slots', 'logical_decoding_work_mem')
"""


async def check_settings(connection: Connection) -> AsyncIterator[Finding]:
    """Yield what the settings mean for us. None prevents the work; a hint says what a DBA may want to change."""
    found = dict(await rows(connection, _SETTINGS))
    yield _keep(int(found["max_slot_wal_keep_size"]))
    idle = int(found.get("idle_replication_slot_timeout", 0))
    if idle:
        yield Finding(
            "idle_replication_slot_timeout",
            ok=True,
            message=f"a stop of cdcsync for longer than {idle} s costs the slot, and a new copy of every table",
            hint="ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
    yield Finding(
        "wal_sender_timeout",
        ok=True,
        message=f"the server's is {int(found['wal_sender_timeout']) // 1000} s; cdcsync's own connection has"
        f" {SENDER_TIMEOUT}, so that a cut one frees the slot",
    )
    memory = format_size(int(found["logical_decoding_work_mem"]) * 1024)
    yield Finding("logical_decoding_work_mem", ok=True, message=f"larger transactions than {memory} go to its disk")
    if found["synchronous_standby_names"]:
        yield Finding(
            "synchronous_standby_names",
            ok=True,
            message="a commit that waits for a standby is sent before it is visible: the first copy waits for it",
            hint="see that the standbys named there are up",
        )
    if found.get("synchronized_standby_slots"):
        yield Finding(
            "synchronized_standby_slots",
            ok=True,
            message="changes come only when the standbys named there have them",
            hint="see that they are up",
        )


def _keep(megabytes: int) -> Finding:
    subject = "max_slot_wal_keep_size"
    if megabytes < 0:
        message = "unlimited: while cdcsync is stopped, its slot can fill the server's disk"
        return Finding(subject, ok=True, message=message, hint=f"with a limit, the slot is lost instead: {KEEP}")
    size = megabytes * MEGABYTE
    message = f"the slot is dropped when it holds back more than {format_size(size)}"
    hint = f"that is soon: {KEEP}" if size < LEAST_KEEP else ""
    return Finding(subject, ok=True, message=message, hint=hint)
