"""A TCP proxy before a PostgreSQL server (or any other) that misbehaves on command: cuts, stalls, half-closes, refuses.

It listens on 127.0.0.1 and forwards to the server's TCP port or unix socket, in threads of its own, so that blocking
clients and event loops can be tested alike.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK = 65536


class Link:
    """One proxied connection: the client's socket, the server's socket, and the two threads between them."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: Relay) -> None:
        self.client = client
        self.server = server
        self.threads = [
            threading.Thread(
                target=self._pump, args=(client, server, proxy.upward, proxy.greeting, proxy.observe), daemon=True
            ),
            threading.Thread(target=self._pump, args=(server, client, proxy.downward), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        flowing: threading.Event,
        first: Callable[[bytes], bytes] = bytes,
        observe: Callable[[bytes], object] = bytes,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                flowing.wait()
                observe(data)
                target.sendall(first(data))
                first = bytes
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Close both sides at once, for both peers to see."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def half_close(self) -> None:
        """Tell the client that the server sends no more; what the client sends still flows."""
        with suppress(OSError):
            self.client.shutdown(socket.SHUT_WR)

    @property
    def over(self) -> bool:
        """Whether both directions have ended."""
        return not any(thread.is_alive() for thread in self.threads)

    def close(self) -> None:
        """Cut, wait for the threads, and give the sockets back."""
        self.cut()
        for thread in self.threads:
            thread.join()
        self.client.close()
        self.server.close()


class Relay:
    """A context manager; ``target`` is a host and port, or the path of a unix socket."""

    def __init__(self, target: str | tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.upward = threading.Event()
        self.downward = threading.Event()
        self._refusing = False
        self.greeting: Callable[[bytes], bytes] = bytes
        """What becomes of the first bytes that each client sends."""
        self.observe: Callable[[bytes], object] = bytes
        """Is shown all that later clients send, piece by piece, in threads."""
        self.links: list[Link] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def cut(self) -> None:
        """Close all present connections; new ones are taken."""
        for link in list(self.links):
            link.cut()

    def half_close(self) -> None:
        """End the server's direction of all present connections."""
        for link in list(self.links):
            link.half_close()

    def refuse(self) -> None:
        """Close new connections at once."""
        self._refusing = True

    def accept(self) -> None:
        """Take new connections again."""
        self._refusing = False

    def stall(self) -> None:
        """Hold what the server sends, and keep all connections open."""
        self.downward.clear()

    def stall_both(self) -> None:
        """Hold both directions, as a network does that drops packets."""
        self.downward.clear()
        self.upward.clear()

    def flow(self) -> None:
        """Let everything pass again."""
        self.downward.set()
        self.upward.set()

    def drop_parameters(self, *names: str) -> None:
        """Leave out these parameters of new connections, as connection poolers do with those that they do not know."""
        self.greeting = partial(_without, names)

    def __enter__(self) -> Self:
        self.flow()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.flow()
        for link in self.links:
            link.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = None if self._refusing else self._connect()
                if server is None:
                    client.close()
                else:
                    self._forget_ended()
                    self.links.append(Link(client, server, self))

    def _forget_ended(self) -> None:
        """Give back the sockets of links that have ended; a long run has thousands."""
        for link in [link for link in self.links if link.over]:
            link.close()
            self.links.remove(link)

    def _connect(self) -> socket.socket | None:
        family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET
        server = socket.socket(family)
        try:
            server.connect(self._target)
        except OSError:
            server.close()
            return None
        return server


class Proxy(Relay):
    """Before a PostgreSQL server: ``dsn`` is the given connection string with our address in place of the server's."""

    def __init__(self, dsn: str) -> None:
        parameters = conninfo_to_dict(dsn)
        host, port = str(parameters.get("host") or "127.0.0.1"), int(parameters.get("port") or 5432)
        super().__init__(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable")


def _without(names: tuple[str, ...], startup: bytes) -> bytes:
    """Take parameters out of a startup packet: length, protocol version, names and values, each with a NUL behind."""
    texts = startup[8:].split(b"\0")
    pairs = [pair for pair in zip(texts[::2], texts[1::2], strict=False) if pair[0]]
    kept = b"".join(name + b"\0" + value + b"\0" for name, value in pairs if name.decode() not in names) + b"\0"
    return (8 + len(kept)).to_bytes(4, "big") + startup[4:8] + kept
