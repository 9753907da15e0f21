"""Connections to the source database, with everything pinned that would change the bytes the server prints.

Role and database settings of ``DateStyle`` and others reach into the replication stream and into what a SELECT returns;
the pins make both print the same. Dead servers are noticed by TCP keepalives; dead clients by ``wal_sender_timeout`` of
our own, whatever the server's is, so that a walsender without client does not hold the slot.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdcsync.errors import ConfigError, SourceRefusedError, SourceUnavailableError

if TYPE_CHECKING:
    from cdcsync.config import PostgresConfig

Connection = AsyncConnection[tuple[Any, ...]]

PINS: Final = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "timezone": "UTC",
    "client_min_messages": "warning",
}
SENDER_TIMEOUT: Final = "60s"

_LOGIN: Final = re.compile(
    r"authentication failed|no pg_hba\.conf entry|pg_hba\.conf rejects|is not permitted to log in"
    r"|no password supplied|role \".*\" does not exist"
)
"""What SQLSTATE class 28 says. libpq gives only the text: in another language, the server is just out of reach."""

SHUTTING_DOWN: Final = "the database system is shutting down"
"""How a server refuses connections while it stops; again, only in English."""

DEFAULTS: Final = {
    "application_name": "cdcsync",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""Connection parameters where neither the connection string nor a service file nor the environment names another."""

NOWHERE: Final = "/nowhere"
"""No server's directory, so that a look at the parameters reaches none."""


def conninfo(dsn: str, *, replication: bool = False) -> str:
    """Return ``dsn`` with our defaults and pins. Raises ConfigError if it is no connection string."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"postgres.dsn is no connection string: {error}") from error
    settled = _settled(dsn)
    options = [settled.get("options", "")]
    if replication:
        options.insert(0, f"-c wal_sender_timeout={SENDER_TIMEOUT}")
    options += [f"-c {name}={value}" for name, value in PINS.items()]
    ours = {name: settled.get(name, value) for name, value in DEFAULTS.items()}
    parameters = {**given, **ours, "options": " ".join(filter(None, options)), "client_encoding": "UTF8"}
    if replication:
        parameters["replication"] = "database"
    return make_conninfo("", **parameters)


def _settled(dsn: str) -> dict[str, str]:
    """Return all parameters that libpq takes from the string, its service and the environment, in their order.

    It tells them of a connection only: of one that finds no server. A service that does not exist is told later.
    """
    attempt = pq.PGconn.connect_start(make_conninfo(dsn, host=NOWHERE).encode())
    try:
        return {option.keyword.decode(): option.val.decode() for option in attempt.info if option.val}
    finally:
        attempt.finish()


async def connect(dsn: str, *, replication: bool = False) -> Connection:
    """Open a connection in autocommit mode, for SQL or (with ``replication``) for simple queries and the stream.

    Raises SourceUnavailableError (SourceRefusedError if it is the login that fails) or ConfigError.
    """
    try:
        return await AsyncConnection.connect(conninfo(dsn, replication=replication), autocommit=True)
    except psycopg.OperationalError as error:
        text = str(error).strip()
        if _LOGIN.search(text) or (error.pgconn is not None and error.pgconn.needs_password):
            raise SourceRefusedError(
                f"PostgreSQL refuses the login: {text}",
                hint="check user and password in postgres.dsn (or .pgpass, or the file that it refers to) and"
                " pg_hba.conf, which needs a line for the database, not for `replication`",
            ) from error
        raise SourceUnavailableError(
            f"cannot connect to PostgreSQL: {text}", hint="check postgres.dsn, and whether the server runs"
        ) from error


async def connect_again(settings: PostgresConfig, *, replication: bool = False) -> Connection:
    """Connect as ``connect``, in a daemon that runs: the connection string is read anew, since its secret may change.

    Raises SourceUnavailableError, also for a connection string that cannot be read just now.
    """
    try:
        return await connect(settings.dsn, replication=replication)
    except ConfigError as error:
        raise SourceUnavailableError(error.message, hint=error.hint) from error


def holds_any_bytes(connection: Connection) -> bool:
    """Whether the database is in SQL_ASCII, so that its texts need not be UTF-8.

    The server refuses to send those that are not while the client's encoding is UTF-8, and ends the stream at them;
    with ``RAW`` it sends all of them as they are.
    """
    return connection.info.parameter_status("server_encoding") == "SQL_ASCII"


RAW: Final = b"SET client_encoding = 'SQL_ASCII'"


async def until_closed(connection: Connection) -> None:
    """Wait until the server ends a connection that nobody uses meanwhile."""
    if connection.closed:
        return
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    descriptor = connection.fileno()
    loop.add_reader(descriptor, readable.set)
    try:
        while not connection.closed:
            await readable.wait()
            readable.clear()
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return
    finally:
        loop.remove_reader(descriptor)
