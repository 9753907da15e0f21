"""The ``[alert]`` table: who is told when something goes wrong, and when it is over."""

from __future__ import annotations

import shlex
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag

from cdcsync.config.crm import is_loopback
from cdcsync.config.secret import Secret, form_of
from cdcsync.config.table import Duration, Table
from cdcsync.errors import ConfigError


def _command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError as error:
        msg = f"not a command line: {error}"
        raise ValueError(msg) from error
    if not words:
        msg = "expected a command with its arguments"
        raise ValueError(msg)
    return command


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        msg = "expected a URL such as https://hooks.example.com/…"
        raise ValueError(msg)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        msg = "plain http is taken on loopback addresses only: use https"
        raise ValueError(msg)
    return url


class AlertConfig(Table):
    """Who is told when something goes wrong, once at its beginning and once at its end."""

    command: Annotated[str, AfterValidator(_command)] | None = None
    """A command with arguments, run without a shell; it gets JSON on standard input, and CDCSYNC_ALERT_* variables."""
    webhook: (
        Annotated[
            Annotated[str, AfterValidator(_url), Tag("<text>")] | Annotated[Secret, Tag("<reference>")],
            Discriminator(form_of),
        ]
        | None
    ) = None
    """A URL that the JSON is POSTed to; where it holds a token, a reference to it."""
    after: Duration = 60.0
    """How long what may pass by itself (a CRM that fails, a lost connection) has to last."""
    rejects: Annotated[int, Field(ge=1)] | None = None
    """From how many parked rows of a CRM on there is an alert; without it there is none."""

    def webhook_url(self) -> str:
        """Return the webhook's URL. Raises ConfigError if it is a reference that cannot be read, or not to a URL."""
        if not isinstance(self.webhook, Secret):
            return self.webhook or ""
        url = self.webhook.read()
        try:
            return _url(url)
        except ValueError as error:
            raise ConfigError(f"alert.webhook refers to what is no webhook's URL: {error}") from error
