"""What all tests share: a real PostgreSQL, the sandbox CRMs, free ports.

Each xdist worker starts a private server: from the programs in the directory ``CDCSYNC_TEST_PGBIN``, else the embedded
one of version ``CDCSYNC_TEST_PG`` (16 unless said otherwise). ``CDCSYNC_TEST_DSN`` points the tests at a server that
runs already (a superuser's URI or conninfo, ``wal_level = logical``); tests that stop a server still start their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.polling import eventually
from tests.proxy import Proxy

if TYPE_CHECKING:
    from cdcsync.sandbox.server import SandboxThread


class Server(Protocol):
    """A PostgreSQL server to make databases on."""

    def dsn(self, dbname: str = "postgres") -> str:
        """Return a superuser's connection string for a database of the server."""


class ExternalPostgres:
    """The server that ``CDCSYNC_TEST_DSN`` names; it is never started, stopped or configured."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the given connection string, for another database of the same server."""
        return make_conninfo(self._dsn, dbname=dbname)


def private_server(directory: Path) -> EmbeddedPostgres:
    """Return a server of the chosen kind, to be started."""
    given = os.environ.get("CDCSYNC_TEST_PGBIN")
    version = int(os.environ.get("CDCSYNC_TEST_PG", "16"))
    return EmbeddedPostgres(directory, version, binaries=Path(given) if given else None)


@contextlib.contextmanager
def server_home() -> Iterator[Path]:
    """Make a directory with a short path, and remove it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-test-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def pg_server() -> Iterator[Server]:
    """One server for all tests of a worker: change no setting of it, and touch only your own database."""
    if dsn := os.environ.get("CDCSYNC_TEST_DSN"):
        yield ExternalPostgres(dsn)
        return
    with server_home() as directory, private_server(directory) as server:
        yield server


@pytest.fixture
def server_directory() -> Iterator[Path]:
    """Give a directory for a private server; pytest's own are closed to the user that it may run as."""
    with server_home() as directory:
        yield directory


@pytest.fixture
def own_pg_server(server_directory: Path) -> Iterator[EmbeddedPostgres]:
    """Give a started private server of the test's own, to configure, stop, kill and restart."""
    with private_server(server_directory) as server:
        yield server


@pytest.fixture
def pg(pg_server: Server) -> Iterator[str]:
    """Give the connection string of a fresh database; it goes afterwards, with its slots and connections."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield pg_server.dsn(name)
    with psycopg.connect(pg_server.dsn(), autocommit=True) as connection:
        eventually(lambda: _without_slots(connection, name), what=f"slots of database {name} cannot be dropped")
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _without_slots(connection: psycopg.Connection[tuple[object, ...]], database: str) -> bool:
    """Drop the database's slots, ending the sessions that hold them; true when none is left."""
    connection.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active", [database]
    )
    connection.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s AND NOT active",
        [database],
    )
    left = connection.execute("SELECT 1 FROM pg_replication_slots WHERE database = %s LIMIT 1", [database])
    return left.fetchone() is None


@pytest.fixture
def free_port() -> int:
    """Give a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def pg_proxy(pg: str) -> Iterator[Proxy]:
    """Give a proxy before the test's database; ``proxy.dsn`` is the way through it."""
    with Proxy(pg) as proxy:
        yield proxy


@pytest.fixture
def salesforce_sandbox() -> Iterator[SandboxThread]:
    """Give a sandbox Salesforce, served from a thread."""
    from cdcsync.sandbox.server import SandboxThread  # noqa: PLC0415 - only tests that want it load its server

    with SandboxThread("salesforce") as sandbox:
        yield sandbox


@pytest.fixture
def hubspot_sandbox() -> Iterator[SandboxThread]:
    """Give a sandbox HubSpot, served from a thread."""
    from cdcsync.sandbox.server import SandboxThread  # noqa: PLC0415 - only tests that want it load its server

    with SandboxThread("hubspot") as sandbox:
        yield sandbox
