"""The status page: a small HTTP server on a loopback address that renders the present ``Snapshot``.

It reads and never acts, and it shows no row's values and no secret. The Host header has to name a loopback address,
so that a web page in the operator's browser cannot read it through a name that it points here (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from cdcsync.errors import ConfigError
from cdcsync.metrics import CONTENT_TYPE, to_prometheus
from cdcsync.page_html import to_html
from cdcsync.status import Snapshot
from cdcsync.status_json import dumps

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "cdcsync",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@contextlib.asynccontextmanager
async def serve(listen: str, snapshot: Callable[[], Snapshot]) -> AsyncIterator[str]:
    """Serve ``/``, ``/status.json``, ``/metrics``, ``/healthz`` and ``/readyz`` for as long as the context lasts.

    ``listen`` is ``host:port``, port 0 for a free one; yields the URL. ``snapshot`` is called once per request, on
    the event loop. Raises ConfigError if the address is not a loopback one or cannot be had.
    """
    host, port = parse_listen(listen)
    runner = web.AppRunner(_application(snapshot), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"status.listen: cannot listen on {listen}: {error.strerror or error}",
                hint="choose a free port, or leave status.listen empty to do without the page",
            ) from error
        bound_host, bound_port = runner.addresses[0][:2]
        yield f"http://[{bound_host}]:{bound_port}/" if ":" in bound_host else f"http://{bound_host}:{bound_port}/"
    finally:
        await runner.cleanup()


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[::1]:port``. Raises ConfigError unless the host is a loopback address."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit() or not is_loopback(host):
        raise ConfigError(
            f"status.listen: {listen!r} is not a loopback address with a port",
            hint='write for example listen = "127.0.0.1:9187"; to look from elsewhere, forward the port over ssh',
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether a host name, without port and brackets, can only mean this machine."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _application(snapshot: Callable[[], Snapshot]) -> web.Application:
    application = web.Application(middlewares=[_check_host])
    application.on_response_prepare.append(_add_headers)
    routes: dict[str, Callable[[Snapshot], web.Response]] = {
        "/": _page,
        "/status.json": lambda now: web.Response(text=dumps(now), content_type="application/json"),
        "/metrics": lambda now: web.Response(body=to_prometheus(now), headers={"Content-Type": CONTENT_TYPE}),
        "/healthz": lambda _: web.Response(text="ok\n"),
        "/readyz": _ready,
    }
    for path, render in routes.items():
        application.router.add_get(path, _handler(render, snapshot))
    return application


def _handler(render: Callable[[Snapshot], web.Response], snapshot: Callable[[], Snapshot]) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return render(snapshot())

    return handle


def _page(now: Snapshot) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    allowed = f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:"
    headers = {"Content-Security-Policy": f"{NOTHING_ALLOWED}; {allowed}"}
    return web.Response(text=to_html(now, nonce), content_type="text/html", headers=headers)


def _ready(now: Snapshot) -> web.Response:
    return web.Response(status=200 if now.ready else 503, text=f"{now.sentence}\n")


@web.middleware
async def _check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    host = request.headers.get("Host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not is_loopback(name):
        return web.Response(status=421, text="This page answers to loopback names only.\n")
    return await handler(request)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", NOTHING_ALLOWED)
