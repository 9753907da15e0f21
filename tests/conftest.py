"""What all tests share: a real PostgreSQL, the sandbox CRMs, free ports.

Each xdist worker starts a private server: from the programs in the directory ``CDCSYNC_TEST_PGBIN``, else the embedded
one of version ``CDCSYNC_TEST_PG`` (16 unless said otherwise). ``CDCSYNC_TEST_DSN`` points the tests at a server that
runs already (a superuser's URI or conninfo, ``wal_level = logical``); tests that stop a server still start their own.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cdcsync.demo.postgres import EmbeddedPostgres
from tests.proxy import Proxy
from tests.servers import Server, Servers, fresh_database, private_server, server_home, server_names

if TYPE_CHECKING:
    from cdcsync.sandbox.server import SandboxThread


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Give all servers at hand, by name: change no setting of them, and touch only your own database."""
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(scope="session")
def pg_server(servers: Servers) -> Server:
    """One server for all tests of a worker: change no setting of it, and touch only your own database."""
    return servers["chosen"]


@pytest.fixture(params=server_names())
def each_server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Give each server at hand in turn; else as ``pg_server``."""
    return servers[request.param]


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
    with fresh_database(pg_server) as dsn:
        yield dsn


@pytest.fixture
def each_pg(each_server: Server) -> Iterator[str]:
    """Give a fresh database on each server at hand in turn, as ``pg`` does."""
    with fresh_database(each_server) as dsn:
        yield dsn


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
