"""Tokens and scopes: who may call, and what. Private-app tokens do not expire; OAuth access tokens do. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from cdcsync.sandbox.hubspot_answers import RefusedError
from cdcsync.sandbox.hubspot_schema import ObjectType

PRIVATE_PREFIX: Final = "pat-"
_ENGAGEMENTS: Final = frozenset({"calls", "meetings", "notes", "tasks", "emails"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: its app (quotas are per app), and whether by OAuth."""

    app: str
    oauth: bool


class Access:
    """The portal's tokens. None for ``tokens`` or ``refresh_tokens`` accepts any, for ``scopes`` grants all."""

    def __init__(self) -> None:
        self.tokens: Collection[str] | None = None
        self.refresh_tokens: Collection[str] | None = None
        self.scopes: Collection[str] | None = None
        self.lifetime = 1800.0
        self.clear()

    def clear(self) -> None:
        """Forget the tokens given out and withdrawn."""
        self._issued: dict[str, float] = {}
        self._seen: set[str] = set()
        self._withdrawn: set[str] = set()

    def expire(self, now: float) -> None:
        """Make every access token given out so far invalid, and every private-app token that was used."""
        self._issued = {token: min(until, now) for token, until in self._issued.items()}
        self._withdrawn |= self._seen

    def caller(self, authorization: str, now: float) -> Caller:
        """Identify the caller by the Authorization header. Raises RefusedError."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthenticated()
        if token in self._issued:
            expired = int(now - self._issued[token])
            if now >= self._issued[token]:
                message = f"The OAuth token used to make this call expired {expired} second(s) ago."
                raise RefusedError(401, message, "EXPIRED_AUTHENTICATION")
            return Caller("oauth", oauth=True)
        known = token.startswith(PRIVATE_PREFIX) if self.tokens is None else token in self.tokens
        if not known or token in self._withdrawn:
            raise _unauthenticated()
        self._seen.add(token)
        return Caller(token, oauth=False)

    def exchange(self, body: bytes, now: float) -> dict[str, Any]:
        """Answer ``POST /oauth/v1/token``. Raises RefusedError for a bad grant."""
        form = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        refresh = form.get("refresh_token", "")
        if form.get("grant_type") != "refresh_token":
            raise OAuthRefusedError("BAD_GRANT_TYPE", "grant_type must be refresh_token")
        if not form.get("client_id") or not form.get("client_secret"):
            raise OAuthRefusedError("BAD_CLIENT_ID", "missing or invalid client id")
        if not refresh or (self.refresh_tokens is not None and refresh not in self.refresh_tokens):
            raise OAuthRefusedError("BAD_REFRESH_TOKEN", "missing or invalid refresh token")
        token = f"CNsandbox{len(self._issued) + 1:06d}"
        self._issued[token] = now + self.lifetime
        return {
            "token_type": "bearer",
            "refresh_token": refresh,
            "access_token": token,
            "expires_in": int(self.lifetime),
        }

    def require(self, scopes: Collection[str]) -> None:
        """Check that one of the scopes was granted. Raises RefusedError."""
        if self.scopes is None or any(scope in self.scopes for scope in scopes):
            return
        raise RefusedError(
            403,
            "One or more of the following scopes are required.",
            "MISSING_SCOPES",
            context={
                "requiredGranularScopes": list(scopes),
                "links": ["https://developers.hubspot.com/scopes"],
            },
        )


class OAuthRefusedError(RefusedError):
    """A refused token request; the code stands where other answers say ``error``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(400, message)
        self.code = code

    def body(self, correlation: str) -> dict[str, Any]:
        """Return the JSON body."""
        return {**super().body(correlation), "status": self.code}


def _unauthenticated() -> RefusedError:
    return RefusedError(
        401,
        "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can find more "
        "details at https://developers.hubspot.com/docs/methods/auth/oauth-overview",
        "INVALID_AUTHENTICATION",
    )


def object_scopes(kind: ObjectType, mode: str) -> tuple[str, ...]:
    """Return the scopes for records: ``mode`` is read or write."""
    if kind.name == "tickets":
        return ("tickets",)
    name = "custom" if kind.custom else "contacts" if kind.name in _ENGAGEMENTS else kind.name
    return (f"crm.objects.{name}.{mode}",)


def schema_scopes(kind: ObjectType, mode: str) -> tuple[str, ...]:
    """Return the scopes for property definitions."""
    if kind.name == "tickets":
        return ("tickets",)
    name = "custom" if kind.custom else "contacts" if kind.name in _ENGAGEMENTS else kind.name
    return (f"crm.schemas.{name}.{mode}",)
