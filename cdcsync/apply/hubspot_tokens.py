"""Access tokens: a private app's, which lasts, and OAuth's, renewed every half hour by one thread at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from cdcsync.errors import ConfigError, CredentialsError

EARLY: Final = 300.0
"""Seconds before its end that a token is renewed."""


class Grant(NamedTuple):
    """What HubSpot gave for a refresh token; ``lifetime`` in seconds. The refresh token may be a new one."""

    access_token: str
    lifetime: float
    refresh_token: str


class Tokens(Protocol):
    """Where access tokens come from. Thread-safe."""

    def current(self) -> str:
        """Give a token that should work. Raises as the request for a new one does."""

    def renew(self, refused: str) -> str | None:
        """Give a token to try after ``refused`` was refused; None if there is none."""


class PrivateToken:
    """The token of a private app, or a service key: it never expires, but a person may put another in its place.

    ``read`` fetches the secret (and raises ConfigError if it is not there, as the construction does then).
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._token = read()

    def current(self) -> str:
        """Give the token."""
        return self._token

    def renew(self, refused: str) -> str | None:
        """Give the secret as it is now, if it is another."""
        with contextlib.suppress(ConfigError):  # about to be written: the refusal is what there is to say
            self._token = self._read()
        return self._token if self._token != refused else None


class OAuthTokens:
    """Tokens got with a refresh token. ``fetch`` asks HubSpot (and raises what went wrong)."""

    def __init__(
        self, refresh_token: str, fetch: Callable[[str], Grant], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._refresh_token = refresh_token
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def current(self) -> str:
        """Give the token, renewed if it ends within five minutes."""
        with self._lock:
            return self._token if self._token and self._clock() < self._renew_at else self._refresh()

    def renew(self, refused: str) -> str | None:
        """Give a newer token than ``refused``; threads that were refused together share one request."""
        with self._lock:
            return self._token if self._token != refused else self._refresh()

    def _refresh(self) -> str:
        grant = self._fetch(self._refresh_token)
        if not grant.access_token:
            raise CredentialsError("HubSpot answered the refresh token without an access token")
        self._token, self._refresh_token = grant.access_token, grant.refresh_token or self._refresh_token
        self._renew_at = self._clock() + max(grant.lifetime - EARLY, grant.lifetime / 2)
        return self._token
