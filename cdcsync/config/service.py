"""The tables about cdcsync's own surroundings: database, batching, state, status page, log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, PlainValidator, Tag, ValidationInfo

from cdcsync.config.secret import FORMS, Secret, form_of
from cdcsync.config.table import Duration, Size, Table


def _dsn_without_password(dsn: str) -> str:
    parts = urlsplit(dsn) if "://" in dsn else None
    if parts is None:
        found = re.search(r"(?:^|\s)password\s*=", dsn) is not None
    else:
        found = bool(parts.password or "password" in parse_qs(parts.query))
    if found:
        msg = f"a password does not stand in the config: use .pgpass, a service file or PGPASSWORD, or dsn = {FORMS}"
        raise ValueError(msg)
    return dsn


class PostgresConfig(Table):
    """The database to read from."""

    dsn_or_reference: Annotated[
        Annotated[str, AfterValidator(_dsn_without_password), Tag("<text>")] | Annotated[Secret, Tag("<reference>")],
        Discriminator(form_of),
    ] = Field(alias="dsn")
    """A libpq connection string or URI; service files, .pgpass and PG* variables work too."""
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = "cdcsync"
    """The replication slot's name."""
    publication: Annotated[str, Field(min_length=1, max_length=63)] = "cdcsync"
    """The publication's name."""
    create: bool = True
    """Make slot and publication if absent, and keep the table list in step."""
    warn_lag: Size = 1 << 30
    """Retained WAL from which warnings start."""
    failover: Literal["auto", True, False] = "auto"
    """Whether to make a failover slot (PostgreSQL 17 and later)."""
    streaming: bool = False
    """Have large transactions sent while they are still open, and keep them on the disk here until they commit."""
    origin: Literal["any", "none"] = "any"
    """none: leave out what was replicated into this database from elsewhere (PostgreSQL 16 and later)."""
    messages: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Prefixes of the logical messages (pg_logical_emit_message) that are to be logged, without their content."""

    @property
    def dsn(self) -> str:
        """The connection string. Raises ConfigError if it is a reference that cannot be read."""
        given = self.dsn_or_reference
        return given.read() if isinstance(given, Secret) else given


class BatchConfig(Table):
    """How changes are gathered before they are sent."""

    max_wait: Duration = 0.5
    """Freshness against folding: how long a change may wait for others."""
    max_memory: Size = 256 << 20
    """Memory for pending rows; beyond it they live in the journal alone."""


def _apart(mirror: Path, info: ValidationInfo) -> Path:
    if mirror == info.data.get("path"):
        msg = "the mirror is a second file: give it a path of its own, on other storage"
        raise ValueError(msg)
    return mirror


class StateConfig(Table):
    """Where cdcsync keeps what it must not forget."""

    path: Annotated[Path, Field(strict=False)] = Path("/var/lib/cdcsync/state.db")
    """The state file (SQLite)."""
    mirror: Annotated[Annotated[Path, Field(strict=False)], AfterValidator(_apart)] | None = None
    """A second copy on other storage, written in each transaction, for a standby to take over (docs/standby.md)."""
    max_journal: Size = 10 << 30
    """Disk for rows that wait; beyond it the stream is left unread."""


def _listen(given: object) -> str | None:
    if given in {"off", None}:
        return None
    host, colon, port = given.rpartition(":") if isinstance(given, str) else ("", "", "")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004 - highest port
        msg = 'expected "host:port", or "off"'
        raise ValueError(msg)
    return f"{host}:{int(port)}"


class StatusConfig(Table):
    """The status page."""

    listen: Annotated[
        str | None,
        PlainValidator(_listen, json_schema_input_type=str),
        PlainSerializer(lambda listen: listen or "off"),
    ] = "127.0.0.1:9187"
    """``host:port`` of the status page, or "off"."""


class LogConfig(Table):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Entries below this level are left out."""
    format: Literal["auto", "console", "journal", "json"] = "auto"
    """auto: console on a TTY, journal under systemd, else JSON."""
