"""All that libpq takes, for both kinds of connections; and credentials that change while the daemon runs.

Answers the complaints of groups D and I: who holds a slot, and which of several servers is the one to read.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdcsync.config import PostgresConfig
from cdcsync.demo.postgres import EmbeddedPostgres
from cdcsync.errors import SourceRefusedError, SourceUnavailableError
from cdcsync.wal.connect import DEFAULTS, connect, connect_again
from cdcsync.wal.slot import identify_system
from cdcsync.wal.source import Source
from tests.pg.reading import Setup, reading, set_up
from tests.polling import eventually_async
from tests.servers import private_server


async def opens(dsn: str) -> None:
    """See that both kinds of connections can be opened."""
    async with await connect(dsn) as connection, await connect(dsn, replication=True) as replication:
        await connection.execute("SELECT 1")
        assert (await identify_system(replication)).lsn > 0


async def test_service_files_variables_and_uris(pg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of libpq's ways to name a server works for SQL and for the stream."""
    parameters = {name: str(value) for name, value in conninfo_to_dict(pg).items()}
    await opens(pg)
    await opens(make_conninfo(pg))
    service = tmp_path / "services.conf"
    service.write_text("[shop]\n" + "".join(f"{name}={value}\n" for name, value in parameters.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    await opens("service=shop")
    for name, value in parameters.items():
        monkeypatch.setenv({"dbname": "PGDATABASE"}.get(name, f"PG{name.upper()}"), value)
    await opens("")


async def test_a_service_file_and_variables_are_not_overruled(
    pg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our defaults stand behind the string, its service and the environment, which stand in libpq's own order."""
    service = tmp_path / "services.conf"
    parameters = {**conninfo_to_dict(pg), "keepalives_idle": "77", "options": "-c work_mem=5MB"}
    service.write_text("[shop]\n" + "".join(f"{name}={value}\n" for name, value in parameters.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    monkeypatch.setenv("PGAPPNAME", "replicator")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "33")
    for dsn in ("service=shop", f"service=shop dbname={parameters['dbname']}"):
        async with await connect(dsn) as connection:
            given = connection.info.get_parameters()
            assert {name: given.get(name) for name in ("application_name", "connect_timeout", "keepalives_idle")} == {
                "application_name": "replicator",
                "connect_timeout": "33",
                "keepalives_idle": "77",
            }
            assert given["tcp_user_timeout"] == DEFAULTS["tcp_user_timeout"]
            assert await (await connection.execute("SHOW work_mem")).fetchone() == ("5MB",)
            assert await (await connection.execute("SHOW extra_float_digits")).fetchone() == ("3",)
    async with await connect(make_conninfo("service=shop", application_name="mine", keepalives_idle=7)) as connection:
        assert connection.info.get_parameters()["application_name"] == "mine"
        assert connection.info.get_parameters()["keepalives_idle"] == "7"
    monkeypatch.delenv("PGAPPNAME")
    async with await connect(pg) as connection:
        assert connection.info.get_parameters()["application_name"] == "cdcsync"
    with pytest.raises(SourceUnavailableError, match="elsewhere"):
        await connect("service=elsewhere")


async def test_several_hosts(pg: str, tmp_path: Path) -> None:
    """A first host that is down is passed by."""
    host = conninfo_to_dict(pg)["host"]
    await opens(make_conninfo(pg, host=f"{tmp_path},{host}", port="5432,5432", target_session_attrs="read-write"))
    with pytest.raises(SourceUnavailableError):
        await connect(make_conninfo(pg, host=str(tmp_path)))


@pytest.fixture
def guarded(server_directory: Path, free_port: int) -> Iterator[EmbeddedPostgres]:
    """Give a server whose TCP port asks the role ``reader`` for a password (``first``)."""
    server = private_server(server_directory)
    server.port = free_port
    with server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE reader LOGIN SUPERUSER REPLICATION PASSWORD 'first'")
        (server.data / "pg_hba.conf").write_text(
            "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.reload()
        yield server


def reader_dsn(server: EmbeddedPostgres, password: str | None) -> str:
    """Return the role's connection string over TCP."""
    return make_conninfo(server.dsn(tcp=True), user="reader", password=password)


async def test_passwords(guarded: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scram password comes from the dsn or .pgpass; a wrong, missing or unknown login is no dead host."""
    await opens(reader_dsn(guarded, "first"))
    passfile = tmp_path / "pgpass"
    passfile.write_text("127.0.0.1:*:*:reader:first\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    await opens(reader_dsn(guarded, None))
    monkeypatch.delenv("PGPASSFILE")
    stranger = make_conninfo(reader_dsn(guarded, "first"), user="nobody")
    for dsn in (reader_dsn(guarded, "wrong"), reader_dsn(guarded, None), stranger):
        with pytest.raises(SourceRefusedError) as caught:
            await connect(dsn)
        assert caught.value.exit_code == 77
        assert "wrong" not in str(caught.value)


async def test_credentials_are_rotated_while_running(guarded: EmbeddedPostgres, tmp_path: Path) -> None:
    """The secret's file is read at each connect; a login refused meanwhile is said and tried again, not final."""
    secret = tmp_path / "dsn"
    secret.write_text(reader_dsn(guarded, "first") + "\n")
    async with await connect(guarded.dsn()) as connection:
        db = await set_up(guarded.dsn(), connection)
        settings = PostgresConfig.model_validate({"dsn": {"file": str(secret)}, "slot": db.slot})
        source = Source(settings, sink=lambda _: None, log=structlog.get_logger())
        task = asyncio.ensure_future(source.run(db.start, db.identity))
        await eventually_async(lambda: source.connected)
        await db.execute("ALTER ROLE reader PASSWORD 'second'")
        await db.terminate()
        await eventually_async(lambda: "refuses the login" in (source.last_error or ""))
        secret.unlink()
        await eventually_async(lambda: "cannot be read" in (source.last_error or ""))
        with pytest.raises(SourceUnavailableError):
            await connect_again(settings)
        secret.write_text(reader_dsn(guarded, "second") + "\n")
        await eventually_async(lambda: source.connected)
        assert not task.done()
        await source.stop()
        await task


def make_authority(directory: Path) -> ssl.SSLContext:
    """Write ``ca.pem``, and return a server's context with a certificate of it for 127.0.0.1."""
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Test CA", "server")]

    def certificate(number: int, extension: x509.ExtensionType) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(names[number]).issuer_name(names[0])
        builder = builder.public_key(keys[number].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        return builder.add_extension(extension, critical=False).sign(keys[0], hashes.SHA256())

    pem = serialization.Encoding.PEM
    authority = certificate(0, x509.BasicConstraints(ca=True, path_length=None))
    server = certificate(1, x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]))
    (directory / "ca.pem").write_bytes(authority.public_bytes(pem))
    (directory / "server.pem").write_bytes(
        server.public_bytes(pem)
        + keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context


class TlsFront:
    """Speaks TLS to clients and plain to a server's unix socket: the embedded servers are built without TLS."""

    REQUEST = struct.pack("!ii", 8, 80877103)

    def __init__(self, dsn: str, context: ssl.SSLContext) -> None:
        parameters = conninfo_to_dict(dsn)
        self._target = f"{parameters['host']}/.s.PGSQL.{parameters['port']}"
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._listener.getsockname()[1], gssencmode="disable")
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if client.recv(8) != self.REQUEST:
                client.close()
                return
            client.sendall(b"S")
            server = socket.socket(socket.AF_UNIX)
            self._sockets.append(server)
            server.connect(self._target)
            asyncio.run(self._relay(client, server))

    async def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Relay on one loop: a TLS connection must not be read and written by two threads."""
        plain_reader, plain_writer = await asyncio.open_unix_connection(sock=server)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=self._context)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError, ssl.SSLError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pump(reader, plain_writer), pump(plain_reader, writer))


@pytest.fixture
def tls(pg: str, tmp_path: Path) -> Iterator[TlsFront]:
    """Give a TLS front before the test's database; ``ca.pem`` is in the test's directory."""
    front = TlsFront(pg, make_authority(tmp_path))
    try:
        yield front
    finally:
        front.close()


async def test_tls_is_verified(tls: TlsFront, tmp_path: Path) -> None:
    """verify-full takes the certificate of the given authority, for the name it is made for, and no other."""
    authority = str(tmp_path / "ca.pem")
    await opens(make_conninfo(tls.dsn, sslmode="verify-full", sslrootcert=authority))
    with pytest.raises(SourceUnavailableError, match="certificate"):
        await connect(make_conninfo(tls.dsn, sslmode="verify-full", sslrootcert=authority, host="localhost"))


async def test_many_rows_over_tls(db: Setup, tls: TlsFront) -> None:
    """All rows come through an encrypted stream, and none of them is left behind in libpq's or TLS's buffers."""
    async with reading(db, dsn=make_conninfo(tls.dsn, sslmode="require")) as reader:
        for number in range(20):
            first = number * 1000
            await db.execute(
                f"INSERT INTO t SELECT i, repeat('x', i % 400) FROM generate_series({first}, {first + 999}) i"
            )
        await reader.commits_reach(20)
        await db.execute("INSERT INTO t VALUES (-1)")
        await reader.commits_reach(21)
    assert len(reader.changes) == 20_001
    assert reader.connections == 1


async def test_a_server_without_time_limit_gets_ours(own_pg_server: EmbeddedPostgres) -> None:
    """With wal_sender_timeout = 0 a dead client would hold the slot for minutes: the session has a limit of its own."""
    own_pg_server.settings["wal_sender_timeout"] = "0"
    own_pg_server.restart()
    async with await connect(own_pg_server.dsn(), replication=True) as replication:
        assert await (await replication.execute("SHOW wal_sender_timeout")).fetchone() == ("1min",)
