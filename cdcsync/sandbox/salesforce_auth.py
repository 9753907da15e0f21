"""OAuth: the token endpoint (client credentials and JWT bearer), and who a token belongs to (facts 11)."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import jwt
from jwt.types import Options

from cdcsync.sandbox.crm import Request, Response, json_response
from cdcsync.sandbox.salesforce_ids import new_id
from cdcsync.sandbox.salesforce_store import USER_PREFIX

ORG_ID: Final = new_id("00D", 1)
JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LONGEST_ASSERTION: Final = 180  # seconds
_LEEWAY: Final = 30  # seconds of clock difference that are forgiven
_LOGIN_HOSTS: Final = frozenset({"login.salesforce.com", "test.salesforce.com"})


@dataclass(frozen=True, slots=True)
class Session:
    """A login. ``expires`` is a Unix time."""

    user_id: str
    username: str
    expires: float


class OAuthError(Exception):
    """The token endpoint refuses."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


class Logins:
    """The org's users and sessions. ``settings`` are the CRM's, read at every request."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._sessions: dict[str, Session] = {}
        self._users: dict[str, str] = {}

    def expire(self) -> None:
        """End all sessions."""
        self._sessions.clear()

    def session(self, request: Request, now: float) -> Session | None:
        """Find the session of a request's bearer token."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        session = self._sessions.get(token) if scheme in {"Bearer", "OAuth"} else None
        return session if session and session.expires > now else None

    def token(self, request: Request, now: float) -> Response:
        """Answer the token endpoint."""
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        try:
            username = self._grant(request, form, now)
        except OAuthError as refused:
            return json_response(400, {"error": refused.error, "error_description": refused.description})
        return json_response(200, self._open(username, request.headers.get("host", ""), now))

    def userinfo(self, session: Session) -> dict[str, Any]:
        """Describe a session's user, as ``/services/oauth2/userinfo`` does."""
        return {
            "sub": session.user_id,
            "user_id": session.user_id,
            "organization_id": ORG_ID,
            "preferred_username": session.username,
            "email": session.username,
            "active": True,
        }

    def _open(self, username: str, host: str, now: float) -> dict[str, Any]:
        user_id = self._users.setdefault(username, new_id(USER_PREFIX, len(self._users) + 1))
        token = f"{ORG_ID[:15]}!{secrets.token_urlsafe(60)}"
        self._sessions[token] = Session(user_id, username, now + float(self._settings["token_seconds"]))
        return {
            "access_token": token,
            "scope": "api",
            "instance_url": f"http://{host}",
            "id": f"http://{host}/id/{ORG_ID}/{user_id}",
            "token_type": "Bearer",
            "issued_at": str(int(now * 1000)),
        }

    def _grant(self, request: Request, form: Mapping[str, str], now: float) -> str:
        match form.get("grant_type"):
            case "client_credentials":
                client_id, secret = _client(request, form)
                self._check_client(client_id)
                wanted = self._settings["client_secret"]
                if not secret or (wanted is not None and secret != wanted):
                    raise OAuthError("invalid_client", "invalid client credentials")
                return f"{client_id}@sandbox.example.com"
            case str(grant) if grant == JWT_BEARER:
                return self._assertion(request, form.get("assertion", ""), now)
            case None:
                raise OAuthError("invalid_request", "must supply grant_type")
            case _:
                raise OAuthError("unsupported_grant_type", "grant type not supported")

    def _check_client(self, client_id: object) -> None:
        wanted = self._settings["client_id"]
        if not client_id or (wanted is not None and client_id != wanted):
            raise OAuthError("invalid_client_id", "client identifier invalid")

    def _assertion(self, request: Request, assertion: str, now: float) -> str:
        claims = self._claims(assertion)
        self._check_client(claims.get("iss"))
        audience = str(claims.get("aud", ""))
        if urlsplit(audience).netloc not in {*_LOGIN_HOSTS, request.headers.get("host", "")}:
            raise OAuthError("invalid_grant", "audience is invalid")
        try:
            expires = float(claims.get("exp", 0))
        except (TypeError, ValueError):
            raise OAuthError("invalid_grant", "invalid assertion") from None
        if not now - _LEEWAY < expires <= now + LONGEST_ASSERTION + _LEEWAY:
            raise OAuthError("invalid_grant", "assertion is expired or lives too long")
        username = claims.get("sub")
        if not isinstance(username, str) or not username:
            raise OAuthError("invalid_grant", "user hasn't approved this consumer")
        if self._settings["username"] not in {None, username}:
            raise OAuthError("invalid_grant", "user hasn't approved this consumer")
        return username

    def _claims(self, assertion: str) -> Mapping[str, Any]:
        key = self._settings["public_key"]
        unchecked: Options = {"verify_exp": False, "verify_aud": False, "verify_iat": False, "verify_sub": False}
        try:
            if jwt.get_unverified_header(assertion).get("alg") != "RS256":
                raise OAuthError("invalid_grant", "invalid assertion")
            if key is None:
                claims = jwt.decode(assertion, options={**unchecked, "verify_signature": False})
            else:
                claims = jwt.decode(assertion, key, algorithms=["RS256"], options=unchecked)
        except jwt.InvalidTokenError:
            raise OAuthError("invalid_grant", "invalid assertion") from None
        return claims


def _client(request: Request, form: Mapping[str, str]) -> tuple[str, str]:
    """Take the client's id and secret from the form, or from an HTTP Basic header."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme == "Basic":
        try:
            client_id, _, secret = base64.b64decode(encoded).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return client_id, secret
    return form.get("client_id", ""), form.get("client_secret", "")
