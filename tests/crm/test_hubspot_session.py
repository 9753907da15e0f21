"""The line to HubSpot when there is no proper answer: real sockets, the vendor's client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from cdcsync.apply.base import OpenGate
from cdcsync.apply.hubspot_session import HubspotSession
from cdcsync.config import HubspotConfig
from cdcsync.errors import BatchRejectedError, FatalError, RateLimitedError, TransientError
from cdcsync.model import Window


class Peer:
    """Answers every connection with the same bytes and closes it."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):  # a client may hang up at any moment
                if not connection.recv(65536):
                    return
                connection.sendall(self._answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    def close(self) -> None:
        """Stop answering."""
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """Give a peer that answers with the test's bytes."""
    server = Peer(request.param)
    yield server
    server.close()


class Listener(OpenGate):
    """A gate that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def seen(self, windows: Sequence[Window]) -> None:
        """Remember quotas."""
        self.told.append(list(windows))

    def refused(self, scope: str, retry_after: float | None) -> None:
        """Remember a refusal."""
        self.told.append((scope, retry_after))


def ask(url: str, gate: OpenGate | None = None) -> None:
    """Send one request to ``url``."""
    config = HubspotConfig.model_validate(
        {"token": {"env": "TOKEN"}, "base_url": url}, context={"environ": {"TOKEN": "pat-na1-1"}}
    )
    session = HubspotSession(config, gate or OpenGate())
    try:
        session.call(session.objects.upsert, "contacts", {"inputs": []})
    finally:
        session.close()


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    """Give an HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    "peer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"nonsense\r\n\r\n",
        http("200 OK", b"<html>please wait</html>"),
        http("200 OK", b'{"results": '),
        http("502 Bad Gateway", b"<html>\xff\xfe</html>"),
        http("504 Gateway Time-out"),
        http("302 Found", b"", "Location: http://127.0.0.1:9/"),
        http("403 Forbidden", b"<html>firewall</html>"),
        http("423 Locked", b'{"status":"error","message":"locked"}'),
    ],
    indirect=True,
    ids=["closed", "cut", "not HTTP", "HTML", "cut JSON", "502", "504", "redirect", "firewall", "locked"],
)
def test_no_proper_answer_is_transient(peer: Peer) -> None:
    """Whatever a network or a gateway does instead of answering, the request may be repeated."""
    with pytest.raises(TransientError):
        ask(f"http://127.0.0.1:{peer.port}")


@pytest.mark.parametrize("peer", [b"no TLS here"], indirect=True)
def test_a_failed_tls_handshake_is_transient(peer: Peer) -> None:
    """The client turns a TLS failure into an AttributeError of its own; it is no bug of ours."""
    with pytest.raises(TransientError, match="SSL"):
        ask(f"https://127.0.0.1:{peer.port}")


def test_nobody_listening_is_transient() -> None:
    """A refused connection may be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TransientError, match="no answer"):
        ask(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "peer",
    [http("429 Too Many Requests", b'{"policyName":"DAILY","message":"x"}', "X-HubSpot-RateLimit-Daily: 9")],
    indirect=True,
)
def test_a_refusal_is_told_to_the_gate_before_it_is_raised(peer: Peer) -> None:
    """The gate learns the quota's scope, then what the headers show."""
    gate = Listener()
    with pytest.raises(RateLimitedError) as caught:
        ask(f"http://127.0.0.1:{peer.port}", gate)
    assert caught.value.scope == "daily"
    assert gate.told == [("daily", None), []]


@pytest.mark.parametrize("peer", [http("477 Moving", b'{"message":"moving"}', "Retry-After: 600")], indirect=True)
def test_retry_after_of_a_passing_refusal_is_told_to_the_gate(peer: Peer) -> None:
    """An account that is being moved names the seconds to wait."""
    gate = Listener()
    with pytest.raises(TransientError, match="moving"):
        ask(f"http://127.0.0.1:{peer.port}", gate)
    assert gate.told == [("availability", 600.0), []]


@pytest.mark.parametrize("peer", [http("404 Not Found", b"<html>no such page</html>")], indirect=True)
def test_an_unknown_path_is_fatal(peer: Peer) -> None:
    """A wrong base_url does not heal by itself."""
    with pytest.raises(FatalError):
        ask(f"http://127.0.0.1:{peer.port}")


@pytest.mark.parametrize("peer", [http("400 Bad Request", b'{"message":"no","category":"X"}')], indirect=True)
def test_a_refused_content_rejects_the_batch(peer: Peer) -> None:
    """HubSpot's words and category are kept."""
    with pytest.raises(BatchRejectedError, match="no") as caught:
        ask(f"http://127.0.0.1:{peer.port}")
    assert caught.value.reason == "X"
