"""The HTTP side of a sandbox: the CRM's API on one port, the admin API on another, faults in between.

Everything runs on one event loop, so a CRM sees one call at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from cdcsync.sandbox.admin import admin_app
from cdcsync.sandbox.books import Entry
from cdcsync.sandbox.crm import Crm, Request, Response, json_response
from cdcsync.sandbox.faults import REQUEST_KINDS, Rule
from cdcsync.sandbox.holds import Holds

MAX_BODY = 200 * 1024 * 1024
MAX_LINE = 256 * 1024  # longer than any CRM allows, so that the CRM itself can answer 414
TICK = 0.25  # seconds between two looks at what has become due
GARBAGE = b"<html><head><title>Please wait</title></head><body>We are down for maintenance.</body>"


def build(name: str) -> Crm:
    """Make the CRM called ``salesforce`` or ``hubspot``. Raises ValueError for another name."""
    if name == "salesforce":
        from cdcsync.sandbox.salesforce import Salesforce  # noqa: PLC0415 - one CRM does not load the other

        return Salesforce()
    if name == "hubspot":
        from cdcsync.sandbox.hubspot import Hubspot  # noqa: PLC0415 - one CRM does not load the other

        return Hubspot()
    raise ValueError(f"no sandbox for {name!r}; there are salesforce and hubspot")


class Sandbox:
    """One CRM being served. Port 0 takes a free port; ``url`` and ``admin_url`` are known after ``start``."""

    def __init__(self, crm: Crm, host: str = "127.0.0.1", port: int = 0, admin_port: int = 0) -> None:
        self.crm = crm
        self.url = ""
        self.admin_url = ""
        self._host = host
        self._ports = (port, admin_port)
        self._runners: list[web.AppRunner] = []
        self._holds = Holds()
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind both ports. Raises OSError if one is taken."""
        api = web.Application(client_max_size=MAX_BODY)
        api.router.add_route("*", "/{tail:.*}", self._answer)
        try:
            self.url = await self._serve(api, self._ports[0])
            self.admin_url = await self._serve(admin_app(self.crm, self._holds), self._ports[1])
        except OSError:
            await self.stop()
            raise
        self._ticker = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Close both ports; held requests are dropped."""
        self._holds.release(drop=True)
        if self._ticker:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _serve(self, app: web.Application, port: int) -> str:
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=1.0,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
        )
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, self._host, port)
        await site.start()
        bound = runner.addresses[0][1]
        return f"http://{self._host}:{bound}"

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.crm.advance(time.time())

    async def _answer(self, incoming: web.Request) -> web.StreamResponse:
        """Answer one request of the CRM's API, as the fault rules will have it."""
        request = Request(
            method=incoming.method,
            path=incoming.rel_url.raw_path,
            query=dict(incoming.query),
            headers={name.lower(): value for name, value in incoming.headers.items()},
            body=await incoming.read(),
            raw_query=incoming.rel_url.raw_query_string,
        )
        entry = self.crm.books.request(time.time(), request.method, request.path)
        response = await self._respond(request, entry)
        self.crm.books.answered(
            entry,
            status=response.status if response else 0,
            limited=response.limited if response else False,
            time=time.time(),
        )
        if response is None:
            cut(incoming)
            return web.Response(status=499)
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    async def _respond(self, request: Request, entry: Entry) -> Response | None:
        """Work out the answer; None means that the connection is to be cut."""
        self.crm.advance(time.time())
        rule = self.crm.faults.strike(REQUEST_KINDS, request.method, request.path, self.crm.objects_of(request))
        entry.fault = f"{rule.kind} {rule.when}" if rule else None
        if rule and rule.when == "before":
            stop, early = await self._disturb(rule, request, entry, None)
            if stop:
                return early
        response = self.crm.handle(request, time.time())
        entry.records = response.records
        if self.crm.settings["latency"]:
            await asyncio.sleep(self.crm.settings["latency"])
        if rule and rule.when == "after":
            return (await self._disturb(rule, request, entry, response))[1]
        return response

    async def _disturb(
        self, rule: Rule, request: Request, entry: Entry, response: Response | None
    ) -> tuple[bool, Response | None]:
        """Apply a fault. Returns whether it ends the request here, and with what (None: cut the connection)."""
        match rule.kind:
            case "refuse" | "do_then_fail":
                return True, self._refusal(rule, request)
            case "garbage":
                return True, _garbage(rule)
            case "reset":
                return True, None
            case "hold":
                released = await self._holds.hold(entry, rule.when)
                return not released, response if released else None
            case "slow":
                await asyncio.sleep(rule.seconds)
            case _:
                self.crm.expire_tokens()
        return False, response

    def _refusal(self, rule: Rule, request: Request) -> Response:
        if rule.body is None:
            response = self.crm.refusal(rule, request, time.time())
            return replace(response, headers={**response.headers, **rule.headers})
        return _custom(rule, rule.status)


def _custom(rule: Rule, status: int) -> Response:
    if isinstance(rule.body, str):
        return Response(status, rule.body.encode(), {"Content-Type": "text/html; charset=utf-8", **rule.headers})
    return json_response(status, rule.body, rule.headers)


def _garbage(rule: Rule) -> Response:
    if rule.body is not None:
        return _custom(rule, 200)
    return Response(200, GARBAGE, {"Content-Type": "text/html; charset=utf-8", **rule.headers})


def cut(incoming: web.Request) -> None:
    """Reset the TCP connection under a request: nothing more is sent, not even an orderly end."""
    transport = incoming.transport
    if transport is None:
        return
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class SandboxThread:
    """A context manager that serves a CRM (or a new one, by name) from a background thread.

    ``url`` and ``admin_url`` are known inside the ``with``. Raises OSError if it cannot be served.
    """

    def __init__(self, crm: Crm | str, settings: Mapping[str, Any] | None = None) -> None:
        self.crm = crm = build(crm) if isinstance(crm, str) else crm
        self.url = ""
        self.admin_url = ""
        if settings:
            crm.configure(settings)
        self._ready: threading.Event = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=f"sandbox-{crm.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._error:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop and self._stop:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for us
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        sandbox = Sandbox(self.crm)
        await sandbox.start()
        self.url, self.admin_url = sandbox.url, sandbox.admin_url
        self._ready.set()
        await self._stop.wait()
        await sandbox.stop()


async def serve(sandbox: Sandbox, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``announce`` gets one JSON line with both addresses when ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await sandbox.start()
    announce(json.dumps({"crm": sandbox.crm.name, "url": sandbox.url, "admin_url": sandbox.admin_url}))
    await stop.wait()
    await sandbox.stop()
