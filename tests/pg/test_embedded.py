"""The embedded server: what the other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cdcsync.demo.postgres import SOCKET_PATH_MAX, EmbeddedPostgres
from cdcsync.errors import CdcsyncError, SourceUnavailableError
from tests.polling import eventually
from tests.proxy import Proxy


def ask(dsn: str, query: str) -> object:
    """Return the one value that a query gives."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("version", [16, 18])
def test_serves_logical_replication_in_both_versions(version: int, server_directory: Path) -> None:
    """Each version starts ready for logical decoding, keeps its data over a restart, and is gone after the stop."""
    with EmbeddedPostgres(server_directory, version) as server:
        assert ask(server.dsn(), "SHOW server_version_num").__str__().startswith(str(version))
        assert ask(server.dsn(), "SHOW wal_level") == "logical"
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS id")
        pid = server.pid
        server.restart("immediate")
        assert server.pid != pid
        assert ask(server.dsn(), "SELECT id FROM t") == 1
    with pytest.raises(psycopg.OperationalError):
        ask(server.dsn(), "SELECT 1")
    with pytest.raises(SourceUnavailableError):
        _ = server.pid


def test_serves_from_the_programs_of_any_installation(server_directory: Path) -> None:
    """A directory of binaries takes the place of the wheel's default version, and its programs are those that run."""
    binaries = EmbeddedPostgres(server_directory / "unused", 18).binaries
    with EmbeddedPostgres(server_directory, binaries=binaries) as server:
        assert ask(server.dsn(), "SELECT current_setting('server_version_num')::int / 10000") == 18
        assert server.program("pg_ctl") == binaries / "pg_ctl"


def test_settings_and_port(server_directory: Path, free_port: int) -> None:
    """Settings reach the server, can be changed for the next start, and a port opens TCP on the loopback."""
    with EmbeddedPostgres(server_directory, settings={"max_connections": "17"}, port=free_port) as server:
        assert ask(server.dsn(tcp=True), "SHOW max_connections") == "17"
        assert ask(server.dsn(), "SHOW listen_addresses") == "127.0.0.1"
        server.settings["cluster_name"] = "it's"
        server.restart()
        assert ask(server.dsn(), "SHOW cluster_name") == "it's"


def test_deep_directory_gets_a_short_socket(server_directory: Path) -> None:
    """A cluster's path that is too long for a unix socket does not matter."""
    server = EmbeddedPostgres(server_directory / ("deep" * 20) / "cluster")
    assert len(str(server.socket_directory / ".s.PGSQL.5432").encode()) <= SOCKET_PATH_MAX
    with server:
        assert ask(server.dsn(), "SELECT 1") == 1


def test_refuses_what_it_cannot_do(server_directory: Path) -> None:
    """Unknown versions, directories without a server and broken settings are told, and leave nothing running."""
    with pytest.raises(CdcsyncError, match="choose one of 16, 18"):
        EmbeddedPostgres(server_directory, 9)
    with pytest.raises(CdcsyncError, match="lacks postgres and initdb and pg_ctl"):
        EmbeddedPostgres(server_directory, binaries=server_directory)
    server = EmbeddedPostgres(server_directory, settings={"max_connections": "none"})
    with pytest.raises(SourceUnavailableError, match="max_connections"):
        server.start()
    assert not server.running


def test_does_not_outlive_its_killed_owner(server_directory: Path) -> None:
    """A server whose owning process is killed with -9 stops by itself."""
    program = (
        "import sys, time; from pathlib import Path; from cdcsync.demo.postgres import EmbeddedPostgres\n"
        "print(EmbeddedPostgres(Path(sys.argv[1])).start().dsn(), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(server_directory)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert ask(owner.stdout.readline().strip(), "SELECT 1") == 1
        os.kill(owner.pid, signal.SIGKILL)
    eventually(lambda: not (server_directory / "data" / "postmaster.pid").exists(), what="the server goes on")


def test_each_test_has_its_own_database(pg: str) -> None:
    """The fixture's database is empty, takes slots, and is dropped with them even while a session is open."""
    assert ask(pg, "SELECT count(*) FROM pg_stat_user_tables") == 0
    slot = ask(pg, "SELECT slot_name FROM pg_create_logical_replication_slot(current_database() || '_s', 'pgoutput')")
    assert ask(pg, "SELECT current_database() || '_s'") == slot


@pytest.fixture
def through(pg_proxy: Proxy) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Give a connection through the proxy."""
    with psycopg.connect(pg_proxy.dsn, autocommit=True) as connection:
        yield connection


def test_proxy_cuts(pg_proxy: Proxy, through: psycopg.Connection[tuple[object, ...]]) -> None:
    """A cut connection fails; the next one works; a refused one fails at once."""
    assert through.execute("SELECT 1").fetchone() == (1,)
    pg_proxy.cut()
    with pytest.raises(psycopg.OperationalError):
        through.execute("SELECT 1")
    assert ask(pg_proxy.dsn, "SELECT 2") == 2
    pg_proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        ask(pg_proxy.dsn, "SELECT 3")


def test_proxy_half_closes(pg_proxy: Proxy, through: psycopg.Connection[tuple[object, ...]]) -> None:
    """After a half-close the client reads the end of the stream."""
    pg_proxy.half_close()
    with pytest.raises(psycopg.OperationalError):
        through.execute("SELECT 1")


def test_proxy_stalls(pg_proxy: Proxy, through: psycopg.Connection[tuple[object, ...]]) -> None:
    """While stalled no answer comes; it comes when the flow is restored."""
    pg_proxy.stall()
    through.pgconn.send_query(b"SELECT 1")
    through.pgconn.flush()
    through.pgconn.nonblocking = 1
    through.pgconn.consume_input()
    assert through.pgconn.is_busy()
    pg_proxy.flow()

    def answered() -> bool:
        through.pgconn.consume_input()
        return not through.pgconn.is_busy()

    eventually(answered)
    while through.pgconn.get_result():
        pass
