"""Whether a connection prints values as the stream's readers expect them.

The settings that decide about that are pinned when a connection starts (``wal.connect``). Something in between, such as
a pooler, may drop the pins; values would then be read wrong, or not at all. So each connection prints constants first.
"""

from __future__ import annotations

from typing import Final

from cdcsync.errors import SourceError
from cdcsync.wal.catalog import rows
from cdcsync.wal.connect import Connection

PRINTS: Final = (
    ("datestyle", "make_date(-44, 3, 15)::text", "0044-03-15 BC"),
    ("datestyle", "make_timestamp(2026, 2, 1, 4, 5, 6.5)::text", "2026-02-01 04:05:06.5"),
    ("intervalstyle", "make_interval(1, 2, 0, 3, 4, 5, 6.5)::text", "1 year 2 mons 3 days 04:05:06.5"),
    ("bytea_output", "decode('deadbeef', 'hex')::text", r"\xdeadbeef"),
    ("extra_float_digits", "(0.1::float8 + 0.2::float8)::text", "0.30000000000000004"),
    ("extra_float_digits", "(1::float4 / 3::float4)::text", "0.33333334"),
    ("timezone", "to_timestamp(0)::text", "1970-01-01 00:00:00+00"),
    ("client_encoding", "current_setting('client_encoding')", "UTF8"),
)
"""The setting that a constant reveals, the constant, and its text under our pins. No literal is read in a format."""

_QUERY: Final = "SELECT " + ", ".join(constant for _, constant, _ in PRINTS)


async def verify_formats(connection: Connection, kind: str) -> None:
    """See that the connection (``kind`` of them, for people) prints what our pins make it print. Raises SourceError."""
    (printed,) = await rows(connection, _QUERY)
    for (setting, constant, expected), text in zip(PRINTS, printed, strict=True):
        if text != expected:
            raise SourceError(
                f"the {kind} connection prints {constant} as {text!r} instead of {expected!r}: {setting} is not as"
                " cdcsync sets it when it connects, so values of the stream would be read wrong",
                hint="something between cdcsync and the server (a connection pooler?) drops the connection's options:"
                " connect to the server itself, or have the pooler pass on options and client_encoding",
            )
