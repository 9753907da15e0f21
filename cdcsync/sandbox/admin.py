"""The admin API of a sandbox: JSON over HTTP, for tests and people, on a port of its own.

``GET /records?object=`` · as a person in the CRM would: ``PATCH``/``DELETE /records/{object}/{id}``, and
``POST /records/{object}/{id}/merge`` (``{"other": id}``; answers the survivor's id) · ``DELETE /tokens`` (revoke all) ·
``GET /requests?since=N`` · ``GET /books`` · ``GET``/``PUT /settings`` (a day's quota is one of them) ·
``POST /faults`` (a list of rules), ``GET /faults``, ``DELETE /faults`` · ``POST /faults/release`` · ``POST /reset``.
Mistakes are answered 400 with ``{"error": …}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from cdcsync.sandbox.crm import Crm, SettingsError, to_json
from cdcsync.sandbox.faults import RuleError
from cdcsync.sandbox.holds import Holds

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _answer(obj: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=to_json(obj), content_type="application/json")


async def _body(request: web.Request) -> Any:
    content = await request.read()
    return json.loads(content) if content else {}


@web.middleware
async def _explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (SettingsError, RuleError, json.JSONDecodeError) as error:
        return _answer({"error": str(error)}, 400)


class Admin:
    """The handlers. All but the ledger first let the CRM do what has become due."""

    def __init__(self, crm: Crm, holds: Holds) -> None:
        self._crm = crm
        self._holds = holds

    async def records(self, request: web.Request) -> web.Response:
        """List records, archived ones too."""
        self._crm.advance(time.time())
        return _answer(self._crm.records(request.query.get("object")))

    async def edit(self, request: web.Request) -> web.Response:
        """Change a record; the body is {field: value}."""
        fields = await _body(request)
        if not isinstance(fields, dict):
            raise SettingsError("the body must be an object of fields")
        now = time.time()
        self._crm.advance(now)
        self._crm.edit(request.match_info["object"], request.match_info["id"], fields, now)
        return _answer({"ok": True})

    async def remove(self, request: web.Request) -> web.Response:
        """Delete a record."""
        now = time.time()
        self._crm.advance(now)
        self._crm.remove(request.match_info["object"], request.match_info["id"], now)
        return _answer({"ok": True})

    async def merge(self, request: web.Request) -> web.Response:
        """Merge another record into this one; the body is ``{"other": id}``."""
        body = await _body(request)
        other = body.get("other") if isinstance(body, dict) else None
        if not isinstance(other, str):
            raise SettingsError('the body must be {"other": id}')
        now = time.time()
        self._crm.advance(now)
        return _answer({"id": self._crm.merge(request.match_info["object"], request.match_info["id"], other, now)})

    async def revoke(self, _: web.Request) -> web.Response:
        """Revoke every access token."""
        self._crm.expire_tokens()
        return _answer({"ok": True})

    async def requests(self, request: web.Request) -> web.Response:
        """Show the request ledger."""
        try:
            since = int(request.query.get("since", "0"))
        except ValueError as error:
            raise SettingsError("since must be a number") from error
        return _answer(self._crm.books.requests(since))

    async def books(self, _: web.Request) -> web.Response:
        """Show the books."""
        self._crm.advance(time.time())
        return _answer(self._crm.books.summary())

    async def settings(self, _: web.Request) -> web.Response:
        """Show the settings."""
        return _answer(self._crm.settings)

    async def configure(self, request: web.Request) -> web.Response:
        """Change settings; the body is {name: value}."""
        settings = await _body(request)
        if not isinstance(settings, dict):
            raise SettingsError("the body must be an object of settings")
        self._crm.advance(time.time())
        self._crm.configure(settings)
        return _answer(self._crm.settings)

    async def faults(self, _: web.Request) -> web.Response:
        """Show the fault rules and the held requests."""
        return _answer({"rules": [rule.as_json() for rule in self._crm.faults.rules], "held": self._holds.as_json()})

    async def add_faults(self, request: web.Request) -> web.Response:
        """Add fault rules; the body is a list of them, or one."""
        raw = await _body(request)
        rules = raw if isinstance(raw, list) else [raw]
        if not all(isinstance(rule, dict) for rule in rules):
            raise RuleError("the body must be a list of rules")
        self._crm.faults.add(rules)
        return await self.faults(request)

    async def clear_faults(self, _: web.Request) -> web.Response:
        """Drop all fault rules; held requests stay held."""
        self._crm.faults.clear()
        return _answer({"ok": True})

    async def release(self, request: web.Request) -> web.Response:
        """Let held requests go; ``{"drop": true}`` cuts them off instead, ``{"count": n}`` takes the n oldest."""
        body = await _body(request)
        count = body.get("count")
        if count is not None and not isinstance(count, int):
            raise SettingsError("count must be a whole number")
        return _answer({"released": self._holds.release(drop=bool(body.get("drop")), count=count)})

    async def reset(self, _: web.Request) -> web.Response:
        """Forget records and books."""
        self._crm.reset()
        return _answer({"ok": True})


def admin_app(crm: Crm, holds: Holds) -> web.Application:
    """Build the admin API of one CRM."""
    admin = Admin(crm, holds)
    app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[_explain])
    app.router.add_get("/records", admin.records)
    app.router.add_patch("/records/{object}/{id}", admin.edit)
    app.router.add_delete("/records/{object}/{id}", admin.remove)
    app.router.add_post("/records/{object}/{id}/merge", admin.merge)
    app.router.add_delete("/tokens", admin.revoke)
    app.router.add_get("/requests", admin.requests)
    app.router.add_get("/books", admin.books)
    app.router.add_get("/settings", admin.settings)
    app.router.add_put("/settings", admin.configure)
    app.router.add_get("/faults", admin.faults)
    app.router.add_post("/faults", admin.add_faults)
    app.router.add_delete("/faults", admin.clear_faults)
    app.router.add_post("/faults/release", admin.release)
    app.router.add_post("/reset", admin.reset)
    return app
