"""What can go wrong, in the words that the rest of the program acts on.

Each error has a stable ``code`` (part of the contract with users), says what happened, and carries a ``hint``:
what to do next. ``exit_code`` is what the process ends with when nothing above handles it.
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_OK = 0
EXIT_NOT_FINE = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 69
EXIT_BUG = 70
EXIT_TRY_LATER = 75
EXIT_REFUSED = 77
EXIT_CONFIG = 78

REBUILD: Final = (
    "cdcsync slot reset, then start again: every table is read anew, and rows are written by their keys, so nothing is"
    " doubled"
)
"""The remedy wherever state file and slot do not go on together: one is lost, damaged, an old copy, or another's."""


class CdcsyncError(Exception):
    """Base of every error that cdcsync raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_NOT_FINE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class ConfigError(CdcsyncError):
    """The config file is wrong; the message lists every mistake."""

    code = "config"
    exit_code = EXIT_CONFIG


class DecodeError(CdcsyncError):
    """Bytes from the replication stream that do not follow the protocol."""

    code = "wal-decode"
    exit_code = EXIT_BUG


class SourceError(CdcsyncError):
    """PostgreSQL cannot serve the stream as it is set up; retrying does not help."""

    code = "source"
    exit_code = EXIT_NOT_FINE


class SourceUnavailableError(CdcsyncError):
    """PostgreSQL is not reachable now; the connection is tried again."""

    code = "source-unavailable"
    exit_code = EXIT_UNREACHABLE


class SourceRefusedError(SourceUnavailableError):
    """PostgreSQL refuses the login; a daemon that runs tries on, since credentials are rotated."""

    code = "source-credentials"
    exit_code = EXIT_REFUSED


class StateError(CdcsyncError):
    """The state file cannot be used (damaged, newer, locked, or of another cluster or slot)."""

    code = "state"
    exit_code = EXIT_NOT_FINE


class StateAbsentError(StateError):
    """There is no state file, or nothing in it yet."""

    code = "state-absent"


class StateDamagedError(StateError):
    """The state file does not hold together as a database any more."""

    code = "state-damaged"


class StateFullError(StateError):
    """There is no space for what is to be written; nothing of it was."""

    code = "state-full"
    exit_code = EXIT_TRY_LATER


class StateHeldError(StateError):
    """Another process has the state file now; ``holder`` says which, in words."""

    def __init__(self, message: str, *, holder: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.holder = holder


class StateLostError(StateError):
    """Another process may have the state file by now."""

    code = "state-lost"
    exit_code = EXIT_TRY_LATER


class MirrorError(StateError):
    """The mirror of the state file cannot be written, or another daemon has taken it over."""

    code = "state-mirror"
    exit_code = EXIT_TRY_LATER


class DestinationError(CdcsyncError):
    """Base of the whole-request answers of a CRM. Per-record answers are ``model.Outcome``."""

    code = "crm"


class TransientError(DestinationError):
    """The request failed for a passing reason: no answer, 5xx, a lock. Part of it may have been done.

    ``shrink``: it took too long, or more than the CRM grants one request; fewer records in one may well go through.
    """

    code = "crm-transient"
    exit_code = EXIT_TRY_LATER

    def __init__(self, message: str, *, shrink: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.shrink = shrink


class RateLimitedError(DestinationError):
    """The CRM refused the request for its rate or quota; nothing was done.

    ``retry_after`` is in seconds if known; ``scope`` names the quota: ``burst``, ``daily``, ``concurrent``, ``bulk``.
    """

    code = "crm-rate-limited"
    exit_code = EXIT_TRY_LATER

    def __init__(self, message: str, *, scope: str = "burst", retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.scope = scope
        self.retry_after = retry_after


class BatchRejectedError(DestinationError):
    """The whole request was refused because of its content, without saying which record; nothing was done.

    Any part of the records may be sent on its own. ``Destination.send`` does so itself, and never raises this.
    """

    code = "crm-batch-rejected"

    def __init__(self, message: str, *, reason: str, field: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.field = field


class FatalError(DestinationError):
    """The CRM will not work as configured (missing object, field or permission); a person has to act."""

    code = "crm-fatal"
    exit_code = EXIT_NOT_FINE


class CredentialsError(FatalError):
    """The CRM refused the login."""

    code = "crm-credentials"
    exit_code = EXIT_REFUSED


class RowRejectedError(Exception):
    """A row cannot be mapped as its values are; it is parked, and its next change supersedes it.

    Not a ``CdcsyncError``: it never ends anything. ``code`` is stable, ``field`` the CRM field where one is to blame,
    and ``message`` holds none of the row's values.
    """

    def __init__(self, code: str, field: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message
