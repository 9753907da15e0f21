"""How an alert is told: to a command of the user's, and to a webhook. Both fail with AlertError, and hold nobody up."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import shlex
import signal
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

from cdcsync.alerts import Notice
from cdcsync.config.alert import AlertConfig
from cdcsync.config.crm import is_loopback
from cdcsync.errors import CdcsyncError, ConfigError
from cdcsync.status_json import FORMAT

COMMAND_SECONDS: Final = 30.0
WEBHOOK_SECONDS: Final = 10.0
WORDS_KEPT: Final = 300
"""Of what a command says about its failure."""


class AlertError(CdcsyncError):
    """An alert could not be told."""

    code = "alert"


def document(notice: Notice) -> dict[str, Any]:
    """Return the notice as docs/json.md describes it."""
    return {
        "format": FORMAT,
        "id": notice.id,
        "event": notice.event,
        "alert": notice.name.kind,
        "subject": notice.name.subject or None,
        "text": notice.text,
        "since": _time(notice.since),
        "at": _time(notice.at),
    }


async def run_command(command: str, notice: Notice) -> None:
    """Run a command, with the notice as JSON on its standard input and in ``CDCSYNC_ALERT_*``. Raises AlertError."""
    told = document(notice)
    names = {"id": "ID", "event": "EVENT", "alert": "NAME", "subject": "SUBJECT", "text": "TEXT", "since": "SINCE"}
    variables = {f"CDCSYNC_ALERT_{name}": str(told[key] or "") for key, name in names.items()}
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    except OSError as error:
        raise AlertError(f"the alert command cannot be run: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            _, words = await process.communicate(json.dumps(told, ensure_ascii=False).encode())
    except TimeoutError as error:
        await _kill(process)
        raise AlertError(f"the alert command did not end within {COMMAND_SECONDS:.0f} s") from error
    except asyncio.CancelledError:
        await _kill(process)
        raise
    if process.returncode:
        said = words.decode(errors="replace").strip()[-WORDS_KEPT:]
        raise AlertError(f"the alert command ended with {process.returncode}{f': {said}' if said else ''}")


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End a command with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def post(config: AlertConfig, notice: Notice) -> None:
    """POST the notice as JSON to the webhook, in a thread. Raises AlertError; its words never hold the URL's path."""
    try:
        url = config.webhook_url()
    except ConfigError as error:
        raise AlertError(error.message, hint=error.hint) from error
    await asyncio.to_thread(_post, url, json.dumps(document(notice), ensure_ascii=False).encode())


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "cdcsync"}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 — http(s), as the config has checked
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))  # no proxy reaches what listens here
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=WEBHOOK_SECONDS):
            return
    except urllib.error.HTTPError as error:
        error.close()
        raise AlertError(f"the webhook answered {error.code}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise AlertError(f"the webhook cannot be reached: {reason}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nowhere: a webhook that answers so is not the one that was meant."""

    def redirect_request(self, *_: object) -> None:
        """Let the answer be an error."""


def _time(unix: float) -> str:
    return dt.datetime.fromtimestamp(unix, dt.UTC).isoformat(timespec="milliseconds")
