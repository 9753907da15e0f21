"""The PostgreSQL servers that tests run on: which there are, and how each is started."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.polling import eventually

CHOICES = ("CDCSYNC_TEST_DSN", "CDCSYNC_TEST_PGBIN", "CDCSYNC_TEST_PG")
SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian and its kin install servers, each in a directory of its major version."""
OLDEST = 13


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


def private_server(directory: Path, name: str = "chosen") -> EmbeddedPostgres:
    """Return a server by one of ``server_names``, to be started."""
    given = os.environ.get("CDCSYNC_TEST_PGBIN")
    version = int(os.environ.get("CDCSYNC_TEST_PG", "16"))
    if name == "chosen":
        return EmbeddedPostgres(directory, version, binaries=Path(given) if given else None)
    kind, _, number = name.partition("-")
    binaries = SYSTEM / number / "bin" if kind == "system" else None
    return EmbeddedPostgres(directory, int(number), binaries=binaries)


def server_names() -> list[str]:
    """Name all servers at hand: the one that the environment chooses, else both embedded ones and the system's own."""
    if any(os.environ.get(choice) for choice in CHOICES):
        return ["chosen"]
    installed = sorted(int(path.parent.parent.name) for path in SYSTEM.glob("[0-9]*/bin/postgres"))
    return ["chosen", "embedded-18", *(f"system-{version}" for version in installed if version >= OLDEST)]


def needs(dsn: str, major: int) -> None:
    """Skip the test on a server of an older major version."""
    with psycopg.connect(dsn) as connection:
        if connection.info.server_version < major * 10000:
            pytest.skip(f"needs PostgreSQL {major}")


@contextmanager
def server_home() -> Iterator[Path]:
    """Make a directory with a short path, and remove it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="cdcsync-test-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Servers:
    """Servers by name, each started when it is first asked for, and running until the stack is closed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, Server] = {}

    def __getitem__(self, name: str) -> Server:
        if name not in self._running:
            dsn = os.environ.get("CDCSYNC_TEST_DSN")
            self._running[name] = ExternalPostgres(dsn) if dsn else self._start(name)
        return self._running[name]

    def _start(self, name: str) -> Server:
        return self._stack.enter_context(private_server(self._stack.enter_context(server_home()), name))


@contextmanager
def fresh_database(server: Server, options: str = "") -> Iterator[str]:
    """Make a database (``options`` is more of its SQL), and drop it afterwards with its slots and connections."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}".encode())
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        eventually(lambda: _without_slots(connection, name), what=f"slots of database {name} cannot be dropped")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


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
