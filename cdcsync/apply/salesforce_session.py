"""The line to Salesforce: simple-salesforce's client, the gate, the login, and one place where answers become errors.

Of simple-salesforce 1.12 this uses the client object (instance address, headers, session) but none of its calls: those
raise their errors without the answer's headers (``Retry-After``, ``Sforce-Limit-Info``), log in again on their own, in
every thread that was refused, and know no time-outs. https is hard-coded in its addresses; a sandbox on this machine
speaks plain http, so an adapter on the session sends such requests there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from simple_salesforce.api import Salesforce

from cdcsync.apply.base import Gate
from cdcsync.apply.salesforce_errors import Answer, refusal
from cdcsync.apply.salesforce_login import Login, is_loopback
from cdcsync.config import SalesforceConfig
from cdcsync.errors import BatchRejectedError, RateLimitedError, TransientError
from cdcsync.model import Window

TIMEOUT: Final = (10.0, 120.0)
"""Seconds to connect, and between two reads: Salesforce gives up on a request after 120."""
DAY: Final = 86_400.0
NO_ERROR: Final = 300
JSON: Final = "application/json; charset=UTF-8"


class _Access(NamedTuple):
    """One login."""

    client: Salesforce
    user_id: str


class _PlainHttp(HTTPAdapter):
    """Sends what is addressed to https://HOST:PORT over plain http, past all proxies."""

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """Send one request."""
        request.url = "http:" + (request.url or "").removeprefix("https:")
        return super().send(request, *arguments, **{**options, "proxies": {}})


class SalesforceSession:
    """Connections and the login of one org. Thread-safe. ``timeout``: seconds to connect, and between two reads."""

    def __init__(self, config: SalesforceConfig, gate: Gate, timeout: tuple[float, float] = TIMEOUT) -> None:
        self._config = config
        self._gate = gate
        self._timeout = timeout
        self._http = _http_session(config)
        self._login = Login(config, self._post_form)
        self._lock = threading.Lock()
        self._access: _Access | None = None

    def log_in(self) -> None:
        """Get a new token. Raises CredentialsError, ConfigError, TransientError or RateLimitedError."""
        self._renewed(self._access)

    @property
    def user_id(self) -> str:
        """The id of the user that we act as."""
        return (self._access or self._renewed(None)).user_id

    def call(
        self,
        method: str,
        path: str,
        body: str | bytes | None = None,
        *,
        content_type: str = JSON,
        accept: frozenset[int] = frozenset(),
        records: bool = False,
    ) -> Answer:
        """Send one request, after a new login once more if the token was refused (which then did no work).

        ``path`` is relative to ``/services/data/vXX.0/``, or absolute on the instance. Statuses in ``accept`` are
        answers like successes. Raises TransientError, RateLimitedError, CredentialsError or FatalError; for a request
        that carries ``records`` to write also BatchRejectedError.
        """
        access = self._access or self._renewed(None)
        answer = self._send(access, method, path, body, content_type)
        if answer.login_refused:
            answer = self._send(self._renewed(access), method, path, body, content_type)
        try:
            return self._accept(answer, accept)
        except BatchRejectedError as error:
            if records:
                raise
            raise TransientError(f"Salesforce answered {answer.status}: {error.reason}: {error.message}") from error

    def batches_sent(self, batches: int) -> None:
        """Report the use of the org's bulk batches."""
        self._gate.spent("bulk", batches)

    def batches_used_up(self) -> None:
        """Report that the org has no bulk batches left."""
        self._gate.refused("bulk", None)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _renewed(self, refused: _Access | None) -> _Access:
        """Give a login other than ``refused``; threads that were refused together share one."""
        with self._lock:
            if self._access is None or self._access is refused:
                self._access = self._log_in()
            return self._access

    def _log_in(self) -> _Access:
        try:
            grant = self._login.grant()
        except RateLimitedError as error:
            self._gate.refused(error.scope, error.retry_after)
            raise
        self._gate.seen([])
        client = Salesforce(
            session=self._http,
            instance_url=grant.instance_url,
            session_id=grant.access_token,
            version=self._config.api_version,
        )
        prefix = f"https://{client.sf_instance}/"
        if grant.instance_url.startswith("http:") and prefix not in self._http.adapters:
            self._http.mount(prefix, _PlainHttp(pool_maxsize=self._config.max_parallel))
        return _Access(client, grant.user_id)

    def _send(self, access: _Access, method: str, path: str, body: str | bytes | None, content_type: str) -> Answer:
        client = access.client
        return self._exchange(
            method,
            urljoin(client.base_url, path),
            data=body.encode() if isinstance(body, str) else body,
            headers={**client.headers, "X-PrettyPrint": "0", "Content-Type": content_type},
        )

    def _post_form(self, url: str, form: Mapping[str, str]) -> Answer:
        return self._exchange("POST", url, data=form, headers={"Accept": "application/json"})

    def _exchange(self, method: str, url: str, **options: Any) -> Answer:
        """Pass the gate, send, read; every HTTP status is an answer. Raises TransientError if there is none."""
        self._gate.wait("burst")
        try:
            response = self._http.request(method, url, timeout=self._timeout, allow_redirects=False, **options)
        except requests.RequestException as error:
            slow = isinstance(error, requests.ReadTimeout)
            raise TransientError(f"no answer from Salesforce: {_cause(error)}", shrink=slow) from error
        return Answer(response.status_code, response.content, response.headers)

    def _accept(self, answer: Answer, accept: frozenset[int]) -> Answer:
        error = None if answer.status < NO_ERROR or answer.status in accept else refusal(answer)
        if isinstance(error, RateLimitedError):
            self._gate.refused(error.scope, error.retry_after)
            raise error
        shown = windows(answer.headers)
        if shown or error is None:
            self._gate.seen(shown)
        if error is not None:
            raise error
        return answer


def windows(headers: Mapping[str, str]) -> list[Window]:
    """Read the org's allowance of the last 24 hours from ``Sforce-Limit-Info: api-usage=18/5000``."""
    usage = Salesforce.parse_api_usage(headers.get("Sforce-Limit-Info", "")).get("api-usage")
    if usage is None or not usage.total:
        return []
    return [Window("daily", usage.total, max(0, usage.total - usage.used), DAY)]


def _http_session(config: SalesforceConfig) -> requests.Session:
    session = requests.Session()
    session.mount("https://", HTTPAdapter(pool_maxsize=config.max_parallel))
    session.auth = _as_it_is
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # what threads share should not change
    session.trust_env = not is_loopback(config.login_url)  # no proxy between us and this machine
    return session


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the Authorization header alone, which requests would take from a ~/.netrc otherwise."""
    return request


def _cause(error: requests.RequestException) -> str:
    """Say what went wrong without the address, whose query may hold a row's key."""
    inner = error.args[0] if error.args else error
    return f"{type(error).__name__}: {getattr(inner, 'reason', None) or inner}"
