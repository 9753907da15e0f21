"""The line to HubSpot: the vendor's client, the gate, the token, and one place where answers become errors.

What has to be known of hubspot-api-client 12: its models cost ten times the CPU of the raw answer, so answers are read
raw; each access to an API object makes a new connection pool, so the objects are kept; there is no timeout by default;
a lost answer surfaces as an urllib3 error, and a TLS failure as an AttributeError out of its own error handling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hubspot import HubSpot
from urllib3.exceptions import HTTPError, ReadTimeoutError

from cdcsync.apply.base import Gate
from cdcsync.apply.hubspot_answers import Answer, read, refusal, scope, windows
from cdcsync.apply.hubspot_tokens import Grant, OAuthTokens, PrivateToken, Tokens
from cdcsync.config import HubspotConfig
from cdcsync.errors import BatchRejectedError, CredentialsError, RateLimitedError, TransientError

TIMEOUT: Final = (10, 60)
"""Seconds to connect, and between two reads."""
UNAUTHORIZED: Final = 401
NO_ERROR: Final = 300


class HubspotSession:
    """Connections and the login of one HubSpot account. Thread-safe after its construction.

    Construction imports the client's parts (100 ms) and connects to nothing. Raises ConfigError if a secret is missing.
    """

    def __init__(self, config: HubspotConfig, gate: Gate) -> None:
        self._gate = gate
        client = HubSpot(host=config.base_url, retry=False, connection_pool_maxsize=config.max_parallel)
        self.objects = client.crm.objects.batch_api
        self.properties = client.crm.properties.core_api
        self.associations = client.crm.associations.v4.batch_api
        self.labels = client.crm.associations.v4.schema.definitions_api
        self._oauth = client.oauth.tokens_api
        self._config = config
        self._tokens = self._login(config)

    def call(self, method: Callable[..., Any], *arguments: object) -> Mapping[str, Any]:
        """Send one request with a method of one of the API objects; return the JSON object of its answer.

        Raises TransientError, RateLimitedError, CredentialsError, FatalError or BatchRejectedError.
        """
        token = self._tokens.current()
        answer = self._once(method, arguments, token)
        if answer.status == UNAUTHORIZED:
            newer = self._tokens.renew(token)
            if newer is not None:
                answer = self._once(method, arguments, newer)
        return self._accept(answer)

    def ask(self, method: Callable[..., Any], *arguments: object) -> Mapping[str, Any]:
        """Send one request that only reads: raises as ``call`` does, but for BatchRejectedError.

        A refusal for a reason that we do not know is waited out; it must not be taken for one of records to write.
        """
        try:
            return self.call(method, *arguments)
        except BatchRejectedError as error:
            raise TransientError(f"HubSpot refuses to read: {error.reason}: {error.message}") from error

    def authenticate(self) -> None:
        """Prove the login with one small request; whether the token may read contacts does not matter here."""
        token = self._tokens.current()
        answer = self._once(self.properties.get_by_name, ("contacts", "hs_object_id"), token)
        if answer.status not in {403, 404}:
            self._accept(answer)

    def close(self) -> None:
        """Close all connections."""
        for api in (self.objects, self.properties, self.associations, self.labels, self._oauth):
            api.api_client.rest_client.pool_manager.clear()

    def _once(self, method: Callable[..., Any], arguments: tuple[object, ...], token: str) -> Answer:
        bearer = {"in": "header", "key": "Authorization", "value": f"Bearer {token}"}
        return self._exchange(method, *arguments, _request_auth=bearer)

    def _exchange(self, method: Callable[..., Any], *arguments: object, **options: object) -> Answer:
        """Pass the gate, send, read; every HTTP status is an answer. Raises TransientError if there is none."""
        self._gate.wait("burst")
        try:
            response = method(*arguments, _preload_content=False, _request_timeout=TIMEOUT, **options)
            status, body, headers = response.status, response.data, response.headers
        except (HTTPError, UnicodeDecodeError) as error:
            slow = isinstance(error, ReadTimeoutError)
            raise TransientError(f"no answer from HubSpot: {type(error).__name__}: {error}", shrink=slow) from error
        except Exception as error:
            refused = _api_error(error)
            if refused is None:
                raise
            status, body, headers = refused.status, refused.body, refused.headers
            if not status:
                raise TransientError(f"no connection to HubSpot: {refused.reason}") from error
        return read(status, body if isinstance(body, str) else (body or b"").decode("utf-8", "replace"), headers or {})

    def _accept(self, answer: Answer) -> Mapping[str, Any]:
        if answer.status < NO_ERROR:
            self._gate.seen(windows(answer.headers))
            return answer.body
        if answer.status == 429:  # noqa: PLR2004 - too many requests
            self._gate.refused(scope(answer), answer.retry_after)
        elif answer.retry_after is not None:
            self._gate.refused("availability", answer.retry_after)
        self._gate.seen(windows(answer.headers))
        raise refusal(answer)

    def _login(self, config: HubspotConfig) -> Tokens:
        if config.token is not None:
            return PrivateToken(config.token.read)
        if config.refresh_token is None:
            raise CredentialsError("no token for HubSpot", hint="set token in the CRM's section of the config")
        return OAuthTokens(config.refresh_token.read(), self._grant)

    def _grant(self, refresh_token: str) -> Grant:
        secret = self._config.client_secret
        answer = self._exchange(
            lambda **options: self._oauth.create(
                grant_type="refresh_token",
                client_id=self._config.client_id,
                client_secret=secret.read() if secret else "",
                refresh_token=refresh_token,
                **options,
            )
        )
        try:
            body = self._accept(answer)
        except (RateLimitedError, TransientError):
            raise
        except (CredentialsError, BatchRejectedError) as error:
            raise CredentialsError(
                f"HubSpot refused to renew the login: {error.message}",
                hint="authorize the app again and store the new refresh token; check client_id and client_secret",
            ) from error
        return Grant(
            str(body.get("access_token", "")), float(body.get("expires_in", 0)), str(body.get("refresh_token", ""))
        )


def _api_error(error: Exception) -> Any:
    """Find the client's ApiException (a class of its own in each sub-package) in what was raised; None if it is none.

    On a failed TLS handshake the client's own error handling fails (it decodes a body that is not there).
    """
    for candidate in (error, error.__context__):
        if type(candidate).__module__.startswith("hubspot.") and hasattr(candidate, "body"):
            return candidate
    return None
