"""What Salesforce's answers mean: refused requests as our errors, refused rows as outcomes. Pure.

Sources: the REST guide's status codes and error responses, the Bulk API 2.0 guide's result samples, and recorded
answers. A status code (``UNABLE_TO_LOCK_ROW``) means the same in a REST error, in a Collections result and in an
``sf__Error`` cell; only its wrapping differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

from cdcsync.errors import (
    BatchRejectedError,
    CredentialsError,
    DestinationError,
    FatalError,
    RateLimitedError,
    TransientError,
)
from cdcsync.model import Applied, Missing, Op, Outcome, Rejected, Retry

SHOWN: Final = 300
"""Characters of an answer that is not what it should be that are worth showing."""

OUR_FAULT: Final = 400
UNAUTHORIZED: Final = 401
THEIR_FAULT: Final = 500

GONE: Final = frozenset({"ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY"})
"""The id names no record (any more), or, in a write, a record that it refers to by id is not there."""
PASSING: Final = frozenset(
    {
        "UNABLE_TO_LOCK_ROW",
        "SERVER_UNAVAILABLE",
        "QUERY_TIMEOUT",
        "TXN_SECURITY_METERING_ERROR",
        "API_CURRENTLY_DISABLED",
        "FUNCTIONALITY_TEMPORARILY_UNAVAILABLE",
        "ORG_LOCKED",
        "ALL_OR_NONE_OPERATION_ROLLED_BACK",
        "PROCESSING_HALTED",
        "UNKNOWN_EXCEPTION",
    }
)
"""Another try may succeed without anybody's doing. The last one is Salesforce's word for a failure of its own."""
TOO_LONG: Final = "REQUEST_RUNNING_TOO_LONG"
LIMIT_WORDS: Final = (
    "LimitException",
    "Apex CPU time limit exceeded",
    "Apex heap size too large",
    "Too many SOQL queries",
    "Too many query rows",
    "Too many DML",
)
"""What one transaction's automation may do is limited, whatever code says so: a smaller one has more for each row."""
OWN_WORDS: Final = "FIELD_CUSTOM_VALIDATION_EXCEPTION"
"""The message of this code is the text of somebody's validation rule."""
LOCK_WORDS: Final = ("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access")
"""A lock that a trigger or flow ran into is reported with the trigger's code, and these words in the message."""
QUOTAS: Final = frozenset({"REQUEST_LIMIT_EXCEEDED", "EXCEEDEDQUOTA", "EXCEEDED_QUOTA"})
BATCHES: Final = "ApiBatchItems"
"""Names the quota of bulk batches, which has nothing to do with that of requests."""
STORAGE: Final = "STORAGE_LIMIT_EXCEEDED"
ROW_SETUP: Final = frozenset({"INVALID_TYPE", STORAGE})
SETUP: Final = ROW_SETUP | {
    "INVALIDJOB",
    "NOT_FOUND",
    "UNSUPPORTED_API_VERSION",
    "FUNCTIONALITY_NOT_ENABLED",
    "FEATURENOTENABLED",
    "TRIAL_EXPIRED",
}
"""Faults of the mapping or the org's setup, whichever record meets them: somebody has to act."""
UNKNOWN_COLUMN: Final = "No such column"
EXPIRED: Final = "INVALID_SESSION_ID"
SLOW_STATUS: Final = frozenset({408, 504})
PASSING_STATUS: Final = frozenset({408, 409, 420, 423, 425})
"""Time-outs, conflicts and locks; 420 is answered by Salesforce's edge."""
TOO_LARGE: Final = 413
CONTENT_STATUS: Final = frozenset({400, TOO_LARGE})
RATE_STATUS: Final = frozenset({429, 503})
CHECK_HINT: Final = "run `cdcsync check`: it names the object, field or permission that is missing"


class Fault(NamedTuple):
    """One thing that Salesforce dislikes: its code, its words, and the fields where it names some."""

    code: str
    message: str
    fields: tuple[str, ...] = ()

    @property
    def field(self) -> str | None:
        """The first field named."""
        return self.fields[0] if self.fields else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; header names in any case."""

    status: int
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The body as text, whatever it is."""
        return self.content.decode("utf-8", "replace")

    @property
    def retry_after(self) -> float | None:
        """Seconds that Salesforce asks to wait, where it does."""
        try:
            return max(0.0, float(self.headers["Retry-After"]))
        except (KeyError, ValueError):
            return None

    @property
    def login_refused(self) -> bool:
        """Whether the token is no good (any more), so that nothing was done."""
        return self.status == UNAUTHORIZED or (
            OUR_FAULT <= self.status < THEIR_FAULT and any(fault.code == EXPIRED for fault in faults(self))
        )

    def json(self) -> Any:
        """Parse the body, numbers exact. Raises TransientError if it is no JSON: a proxy's page, or a cut answer."""
        try:
            return json.loads(self.content, parse_float=Decimal)
        except ValueError:
            words = f"Salesforce answered {self.status} without JSON: {self.text[:SHOWN]!r}"
            raise TransientError(words) from None

    def object(self) -> dict[str, Any]:
        """Parse a body that must be a JSON object. Raises TransientError if it is none."""
        body = self.json()
        if not isinstance(body, dict):
            raise TransientError(f"Salesforce answered {self.status} with something unexpected: {self.text[:SHOWN]!r}")
        return body


def faults(answer: Answer) -> list[Fault]:
    """List what an error body complains about: none if it is not Salesforce's JSON (a page of something in between)."""
    try:
        body = answer.json()
    except TransientError:
        return []
    entries = body if isinstance(body, list) else [body]
    return [
        Fault(str(entry["errorCode"]), str(entry.get("message") or entry["errorCode"]), _names(entry.get("fields")))
        for entry in entries
        if isinstance(entry, dict) and entry.get("errorCode")
    ]


def _names(fields: object) -> tuple[str, ...]:
    return tuple(str(name) for name in fields) if isinstance(fields, list) else ()


def refusal(answer: Answer) -> DestinationError:
    """Translate an answer that is no success (status 300 and above) into the error to raise."""
    found = faults(answer)
    said = "; ".join(f"{fault.code}: {fault.message}" for fault in found) or repr(answer.text[:SHOWN])
    words = f"Salesforce answered {answer.status}: {said}"
    limited = _rate(answer, found, words)
    if limited is not None:
        return limited
    if answer.login_refused:
        return CredentialsError(words, hint="check the connected app and its user: the login was accepted, its use not")
    if answer.status == TOO_LARGE and not found:  # something in between refuses the size, in words of its own
        return BatchRejectedError(words, reason="REQUEST_TOO_LARGE")
    if not OUR_FAULT <= answer.status < THEIR_FAULT or answer.status in PASSING_STATUS or not found:
        return TransientError(words, shrink=answer.status in SLOW_STATUS or any(map(_overtaxed, found)))
    if _passing(found[0]):
        return TransientError(words, shrink=_overtaxed(found[0]))
    if answer.status not in CONTENT_STATUS or found[0].code in SETUP or UNKNOWN_COLUMN in found[0].message:
        return FatalError(words, hint=_hint(found[0]))
    return BatchRejectedError(found[0].message, reason=found[0].code, field=found[0].field)


def _rate(answer: Answer, found: Sequence[Fault], words: str) -> RateLimitedError | None:
    for fault in found:
        if fault.code.upper() in QUOTAS:
            return RateLimitedError(words, scope=_scope(fault), retry_after=answer.retry_after)
    if answer.status in RATE_STATUS and (answer.status != 503 or answer.retry_after is not None):  # noqa: PLR2004
        return RateLimitedError(words, retry_after=answer.retry_after)
    return None


def _scope(fault: Fault) -> str:
    if BATCHES in fault.message:
        return "bulk"
    return "concurrent" if "Concurrent" in fault.message else "daily"


def _hint(fault: Fault) -> str:
    match fault.code:
        case "UNSUPPORTED_API_VERSION":
            return "set api_version to a version that the org offers"
        case "API_DISABLED_FOR_ORG":
            return "the org's edition has no API, or the user lacks “API Enabled”: Setup → Permission Sets → System"
        case "INSUFFICIENT_ACCESS" | "INSUFFICIENT_ACCESS_OR_READONLY" | "FORBIDDEN":
            return "give the integration user access to the object: Setup → Permission Sets → Object Settings"
        case "STORAGE_LIMIT_EXCEEDED":
            return "free storage, or buy more: Setup → Storage Usage"
        case _:
            return CHECK_HINT


def _overtaxed(fault: Fault) -> bool:
    limited = fault.code != OWN_WORDS and any(words in fault.message for words in LIMIT_WORDS)
    return limited or fault.code == TOO_LONG


def _passing(fault: Fault) -> bool:
    locked = any(words in fault.message for words in LOCK_WORDS)
    return fault.code in PASSING or locked or _overtaxed(fault)


def row_outcome(fault: Fault) -> Rejected | Retry:
    """Judge a row that was not written. Raises FatalError for a fault of the mapping or the org's setup."""
    if fault.code in ROW_SETUP or UNKNOWN_COLUMN in fault.message:
        raise FatalError(f"Salesforce refuses records: {fault.code}: {fault.message}", hint=_hint(fault))
    if _passing(fault) or fault.code in {*QUOTAS, EXPIRED}:
        return Retry(fault.code, fault.message, shrink=_overtaxed(fault))
    return Rejected(fault.code, fault.message, fault.field)


def failed(op: Op, fault: Fault) -> Outcome:
    """Judge a row of an operation: what is not there is deleted already, and may be ``Missing`` for an update.

    Raises FatalError as ``row_outcome`` does; others of the request may have been written.
    """
    if fault.code in GONE and op is Op.DELETE:
        return Applied(None)
    if fault.code in GONE and op is Op.UPDATE:
        return Missing(fault.message)
    return row_outcome(fault)


def result(op: Op, entry: object) -> Outcome:
    """Read one entry of a Collections answer. Raises TransientError if it is none, FatalError as ``failed`` does."""
    if not isinstance(entry, dict) or not isinstance(entry.get("success"), bool):
        raise TransientError(f"Salesforce's answer holds an entry that is no result: {str(entry)[:SHOWN]!r}")
    if entry["success"]:
        return Applied(str(entry["id"]) if entry.get("id") else None, created=entry.get("created") is True)
    return failed(op, _first(entry.get("errors")))


def _first(errors: object) -> Fault:
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            code = str(error.get("statusCode") or error.get("errorCode") or "UNKNOWN")
            return Fault(code, str(error.get("message") or code), _names(error.get("fields")))
    return Fault("UNKNOWN", "Salesforce refused the record without saying why")


def read_cell(cell: str) -> Fault:
    """Read an ``sf__Error`` cell, ``CODE:message:Field1,Field2 --``; messages hold colons and commas themselves."""
    code, colon, rest = cell.partition(":")
    if not colon or not code.isupper():
        return Fault("UNKNOWN", cell)
    message, colon, names = rest.removesuffix("--").rpartition(":")
    if not colon or not rest.endswith("--"):
        return Fault(code, rest)
    return Fault(code, message, tuple(name.strip() for name in names.split(",") if name.strip()))
