"""What is asked of the server when the stream starts: pgoutput's options, as far as the server's version has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from psycopg import sql

from cdcsync.errors import SourceError
from cdcsync.wal.catalog import server_version
from cdcsync.wal.connect import Connection

if TYPE_CHECKING:
    from cdcsync.config import PostgresConfig

VERSION_14: Final = 140000
VERSION_16: Final = 160000


def start_options(replication: Connection, settings: PostgresConfig) -> sql.Composed:
    """Return the options of START_REPLICATION. Raises SourceError for a setting that the server is too old for."""
    publication = sql.Literal(sql.Identifier(settings.publication).as_string(replication))
    options = {"proto_version": sql.Literal("2" if settings.streaming else "1"), "publication_names": publication}
    if settings.streaming:
        _demand(replication, VERSION_14, "postgres.streaming")
        options["streaming"] = sql.Literal("on")
    if settings.messages:
        _demand(replication, VERSION_14, "postgres.messages")
        options["messages"] = sql.Literal("true")
    if settings.origin == "none":
        _demand(replication, VERSION_16, 'postgres.origin = "none"')
        options["origin"] = sql.Literal("none")
    return sql.SQL(", ").join(sql.SQL("{} {}").format(sql.SQL(name), value) for name, value in options.items())


def _demand(connection: Connection, version: int, setting: str) -> None:
    present = server_version(connection)
    if present < version:
        raise SourceError(
            f"{setting} needs PostgreSQL {version // 10000}, and this server is {present // 10000}",
            hint="take the setting out of the config, or upgrade the server",
        )
