"""Getting an access token: OAuth client credentials, or JWT bearer signed with the connected app's key.

simple-salesforce's own login is not used: it builds addresses of the form ``https://{domain}.salesforce.com`` only,
and drops the answer's ``id``, by which we know our own bulk jobs. Neither flow has a refresh token: a new token is
asked for when the old one is refused.
Sources: Salesforce help, "OAuth 2.0 Client Credentials Flow" and "OAuth 2.0 JWT Bearer Flow".
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import jwt

from cdcsync.apply.salesforce_errors import RATE_STATUS, SHOWN, THEIR_FAULT, Answer
from cdcsync.config import SalesforceConfig
from cdcsync.errors import CredentialsError, DestinationError, RateLimitedError, TransientError

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_SECONDS: Final = 180
SUCCESS: Final = 200
PASSING: Final = frozenset({"server_error", "temporarily_unavailable"})

APP: Final = "Setup → App Manager → the connected app"
HINTS: Final = (
    ("hasn't approved", f"pre-authorize the user: {APP} → Manage → Permitted Users: “Admin approved users are …”"),
    ("no client credentials user", f"{APP} → Manage → Client Credentials Flow: choose the user to run as"),
    ("not supported on this domain", "set login_url to the My Domain: https://NAME.my.salesforce.com"),
    ("audience", "set login_url to the My Domain, https://login.salesforce.com or https://test.salesforce.com"),
    ("expired", "check this machine's clock"),
    ("assertion", f"private_key must belong to the certificate in {APP} → Use digital signatures"),
    ("invalid_client_id", f"client_id is the Consumer Key: {APP} → Manage Consumer Details"),
    ("invalid_client", f"client_secret is the Consumer Secret: {APP} → Manage Consumer Details"),
    ("inactive", "the user or the org is not active any more"),
)
"""What to do, by words in the answer's error and description; the first that fits."""


class Grant(NamedTuple):
    """A token, the instance to use it on (a URL), and the id of the user that it belongs to."""

    access_token: str
    instance_url: str
    user_id: str


class Login:
    """Asks for tokens. ``post`` sends a form and gives the answer; it raises TransientError if there is none."""

    def __init__(
        self,
        config: SalesforceConfig,
        post: Callable[[str, Mapping[str, str]], Answer],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._post = post
        self._clock = clock

    def grant(self) -> Grant:
        """Log in. Raises CredentialsError, TransientError, RateLimitedError, or ConfigError for a secret not there."""
        url = f"{self._config.login_url}/services/oauth2/token"
        answer = self._post(url, self._form())
        if answer.status != SUCCESS:
            raise refused(answer)
        body = answer.object()
        token, instance = str(body.get("access_token") or ""), str(body.get("instance_url") or "")
        if not token or not instance:
            raise TransientError("Salesforce answered the login without a token or an instance")
        self._check(instance)
        return Grant(token, instance, str(body.get("id") or "").rpartition("/")[2])

    def _form(self) -> dict[str, str]:
        config = self._config
        if config.private_key is not None:
            return {"grant_type": JWT_BEARER, "assertion": self._assertion(config.private_key.read())}
        secret = config.client_secret.read() if config.client_secret is not None else ""
        return {"grant_type": "client_credentials", "client_id": config.client_id, "client_secret": secret}

    def _assertion(self, private_key: str) -> str:
        claims = {
            "iss": self._config.client_id,
            "sub": self._config.username,
            "aud": self._config.login_url,
            "exp": int(self._clock()) + ASSERTION_SECONDS,
        }
        try:
            return jwt.encode(claims, private_key, algorithm="RS256")
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise CredentialsError(
                f"private_key cannot sign: {error}", hint="give an RSA key in PEM form, without a passphrase"
            ) from error

    def _check(self, instance: str) -> None:
        """Send the token over TLS only; a sandbox on this machine, which was logged in to without, is the exception."""
        parts = urlsplit(instance)
        plain = parts.scheme == "http" and self._config.login_url.startswith("http:") and is_loopback(instance)
        if not parts.hostname or not (parts.scheme == "https" or plain):
            raise CredentialsError(
                f"Salesforce answered the login with the instance {instance!r}, which is not https",
                hint="check login_url",
            )


def is_loopback(url: str) -> bool:
    """Tell whether a URL is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refused(answer: Answer) -> DestinationError:
    """Translate a refused login: ``{"error": …, "error_description": …}`` with status 400."""
    try:
        body = answer.json()
    except TransientError as page:
        return page
    code, description = (
        str(body.get(name) or "") if isinstance(body, dict) else "" for name in ("error", "error_description")
    )
    words = f"Salesforce refused the login: {': '.join(filter(None, (code, description))) or repr(answer.text[:SHOWN])}"
    if answer.status in RATE_STATUS or "rate exceeded" in description.lower():
        return RateLimitedError(words, retry_after=answer.retry_after)
    if answer.status >= THEIR_FAULT or not code or code in PASSING:
        return TransientError(words)
    said = f"{code} {description}".lower()
    hint = next((hint for mark, hint in HINTS if mark in said), "check login_url and the connected app")
    return CredentialsError(words, hint=hint)
