"""OAuth tokens: renewed early, once, and by one thread at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cdcsync.apply.hubspot_tokens import Grant, OAuthTokens, PrivateToken
from cdcsync.errors import ConfigError, CredentialsError


class Issuer:
    """Gives numbered tokens for half an hour, on a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []

    def fetch(self, refresh_token: str) -> Grant:
        """Give the next token, and a new refresh token with it."""
        self.asked.append(refresh_token)
        return Grant(f"token{len(self.asked)}", 1800.0, f"refresh{len(self.asked)}")

    def clock(self) -> float:
        """Tell the time."""
        return self.now


def test_a_token_is_renewed_five_minutes_early_with_the_newest_refresh_token() -> None:
    """A token is used until five minutes before its end; HubSpot may replace the refresh token at any time."""
    issuer = Issuer()
    tokens = OAuthTokens("refresh0", issuer.fetch, issuer.clock)
    assert tokens.current() == "token1"
    issuer.now = 1499.0
    assert tokens.current() == "token1"
    issuer.now = 1500.0
    assert tokens.current() == "token2"
    assert issuer.asked == ["refresh0", "refresh1"]


def test_threads_refused_together_share_one_renewal() -> None:
    """Eight threads whose token was refused get one new token by one request."""
    issuer = Issuer()
    tokens = OAuthTokens("r", issuer.fetch, issuer.clock)
    refused = tokens.current()
    ready = threading.Barrier(8)

    def renew() -> str | None:
        ready.wait()
        return tokens.renew(refused)

    with ThreadPoolExecutor(8) as pool:
        assert {future.result() for future in [pool.submit(renew) for _ in range(8)]} == {"token2"}
    assert len(issuer.asked) == 2


def test_an_empty_grant_is_refused() -> None:
    """An answer without a token is no login."""
    with pytest.raises(CredentialsError):
        OAuthTokens("r", lambda _: Grant("", 0.0, "")).current()


def test_a_private_token_is_replaced_by_what_a_person_stores() -> None:
    """A refused private token is final until the secret is another; one that is just being written is waited for."""
    stored = ["pat"]

    def read() -> str:
        if not stored:
            raise ConfigError("empty")
        return stored[0]

    token = PrivateToken(read)
    assert token.current() == "pat"
    assert token.renew("pat") is None
    stored.clear()
    assert token.renew("pat") is None
    stored.append("another")
    assert token.renew("pat") == "another"
    assert token.current() == "another"
