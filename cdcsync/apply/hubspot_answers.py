"""What HubSpot's answers mean: quotas in headers, refusals as our errors, faults named in error bodies. Pure.

Sources: HubSpot's error handling and usage guidelines pages, its OpenAPI documents, and recorded traffic. Categories
are not enough to branch on (a search refusal has the burst refusal's category), and a property error names its
properties but never the row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cdcsync.errors import (
    BatchRejectedError,
    CredentialsError,
    DestinationError,
    FatalError,
    RateLimitedError,
    TransientError,
)
from cdcsync.model import Rejected, Window

DAY: Final = 86_400.0
BY_PROPERTY: Final = "Property values were not valid: "
MAPPING_CODES: Final = frozenset({"PROPERTY_DOESNT_EXIST", "READ_ONLY_VALUE", "MISSING_SCOPES"})
"""Faults of the mapping, not of a record: every record would fail alike."""
MAPPING_WORDS: Final = (" by non-unique ", "Unable to infer object type")
PASSING: Final = frozenset({408, 423, 425, 477})
"""Timeouts; 423: locked by other writes; 477: the account is being moved to another data centre."""
PASSING_CATEGORIES: Final = frozenset({"RATE_LIMITS", "LOCKED", "INTERNAL_ERROR", "TIMEOUT"})
"""Of a request or a row that another try may cure."""
SLOW: Final = frozenset({408, 504, 524})
"""It took too long: with fewer records it may take less."""
TOO_LARGE: Final = 413
CONTENT: Final = frozenset({400, 409, TOO_LARGE, 414, 422})
"""What is refused is what was sent. 414 is also said of a record with more than 250 merged ids."""
ANSWER_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. ``body`` is the JSON object in it, empty if there is none; header names in any case."""

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retry_after(self) -> float | None:
        """Seconds that HubSpot asks to wait, where it does."""
        try:
            return float(self.headers["Retry-After"])
        except (KeyError, ValueError):
            return None


class Fault(NamedTuple):
    """One thing that HubSpot dislikes: its code, its words, and the property where it names one."""

    code: str
    message: str
    field: str | None


def read(status: int, text: str, headers: Mapping[str, str]) -> Answer:
    """Take an answer apart. Raises TransientError if a success is no JSON object (a proxy's page, a cut body)."""
    try:
        body = json.loads(text) if text else {}
    except ValueError:
        body = None
    if isinstance(body, dict):
        return Answer(status, text, headers, body)
    if status < 300:  # noqa: PLR2004 - a success
        raise TransientError(f"HubSpot answered {status} without JSON: {text[:ANSWER_SHOWN]!r}")
    return Answer(status, text, headers)


def windows(headers: Mapping[str, str]) -> list[Window]:
    """Read the quotas of an answer. Search answers and public apps lack some; what is broken is left out."""
    found = []
    for name, mark, seconds in (("burst", "", _interval(headers)), ("daily", "-Daily", DAY)):
        limit = headers.get("X-HubSpot-RateLimit-Max" if not mark else "X-HubSpot-RateLimit-Daily", "")
        remaining = headers.get(f"X-HubSpot-RateLimit{mark}-Remaining", "")
        if limit.isdecimal() and remaining.lstrip("-").isdecimal():
            found.append(Window(name, int(limit), int(remaining), seconds))
    return found


def _interval(headers: Mapping[str, str]) -> float:
    shown = headers.get("X-HubSpot-RateLimit-Interval-Milliseconds", "")
    return int(shown) / 1000 if shown.isdecimal() and int(shown) else 10.0


def scope(answer: Answer) -> str:
    """Name the quota of a 429: ``burst``, ``daily`` or ``search``. Search refusals have no policy name."""
    words = f"{answer.body.get('policyName', '')} {answer.body.get('message', '')}".upper()
    if "DAILY" in words:
        return "daily"
    return "search" if "SECONDLY" in words and "TEN_SECONDLY" not in words else "burst"


def refusal(answer: Answer) -> DestinationError:
    """Translate an answer that is no success (status 300 and above) into the error to raise."""
    words = f"HubSpot answered {answer.status}: {_words(answer)}"
    status = answer.status
    if status == 429:  # noqa: PLR2004 - too many requests
        return RateLimitedError(words, scope=scope(answer), retry_after=answer.retry_after)
    if status == 401:  # noqa: PLR2004 - the token
        return CredentialsError(words, hint="give a valid token: HubSpot, Settings, Integrations, Private Apps")
    if status < 400 or status >= 500 or status in PASSING:  # noqa: PLR2004 - 4xx are for the content
        return TransientError(words, shrink=status in SLOW)
    if status == 404:  # noqa: PLR2004 - of a path, and so of an object type
        return FatalError(words, hint="check the object's name in the mapping, and base_url")
    if status == TOO_LARGE and not answer.body:
        return BatchRejectedError(words, reason="REQUEST_TOO_LARGE")
    if not answer.body or answer.body.get("category") in PASSING_CATEGORIES:
        return TransientError(words)  # a page of something in between: HubSpot's own refusals are JSON
    if status == 403:  # noqa: PLR2004 - scopes
        return FatalError(words, hint=_scopes_hint(answer.body))
    if status not in CONTENT:
        return FatalError(words, hint="run `cdcsync check`; HubSpot refuses all requests of this kind")
    found = faults(answer.body)
    return mapping_fault(found) or BatchRejectedError(
        "; ".join(dict.fromkeys(fault.message for fault in found)), reason=found[0].code, field=found[0].field
    )


def _words(answer: Answer) -> str:
    message = answer.body.get("message")
    return message if isinstance(message, str) else repr(answer.text[:ANSWER_SHOWN])


def _scopes_hint(body: Mapping[str, Any]) -> str:
    scopes = concerned(body, "requiredGranularScopes", "requiredScopes")
    return f"add the scope {' or '.join(scopes)} to the app" if scopes else "add the missing scope to the app"


def mapping_fault(found: Sequence[Fault]) -> FatalError | None:
    """Give the error to raise if one of the faults is a fault of the mapping."""
    for fault in found:
        if fault.code in MAPPING_CODES or any(words in fault.message for words in MAPPING_WORDS):
            where = f" ({fault.field})" if fault.field else ""
            return FatalError(
                f"HubSpot refuses the mapping{where}: {fault.message}",
                hint="run `cdcsync check`, then correct the mapping or add what is missing in HubSpot",
            )
    return None


def rejection(error: Mapping[str, Any]) -> Rejected:
    """Turn an entry of ``errors`` into a record's outcome. Raises FatalError for a fault of the mapping."""
    found = faults(error)
    fatal = mapping_fault(found)
    if fatal:
        raise fatal
    return Rejected(found[0].code, "; ".join(dict.fromkeys(fault.message for fault in found)), found[0].field)


def faults(error: Mapping[str, Any]) -> list[Fault]:
    """List what an error body, or an entry of ``errors``, complains about; at least one.

    The details stand in ``errors`` (sometimes fewer than there are) and, as JSON, within the message.
    """
    details = [*_details(error.get("errors")), *_details_in(str(error.get("message", "")))]
    if details:
        return list(dict.fromkeys(details))
    code = str(error.get("subCategory") or error.get("category") or "UNKNOWN").rpartition(".")[2]
    named = concerned(error, "propertyName", "properties")
    return [Fault(code, str(error.get("message") or code), named[0] if named else None)]


def _details(entries: object) -> Iterator[Fault]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            named = concerned(entry, "propertyName", "properties")
            code = entry.get("code") or entry.get("subCategory") or "UNKNOWN"
            yield Fault(str(code), str(entry.get("message", "")), named[0] if named else None)


def _details_in(message: str) -> Iterator[Fault]:
    _, found, details = message.partition(BY_PROPERTY)
    if not found:
        return
    try:
        entries = json.loads(details)
    except ValueError:
        return
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            name = entry.get("name")
            yield Fault(str(entry.get("error", "UNKNOWN")), str(entry.get("message", "")), str(name) if name else None)


def concerned(error: Mapping[str, Any], *names: str) -> list[str]:
    """List what an error's context gives under the first of ``names`` that it has, such as ``objectWriteTraceId``."""
    context = error.get("context")
    for name in names:
        listed = context.get(name) if isinstance(context, dict) else None
        if isinstance(listed, list) and listed:
            return [str(entry) for entry in listed]
    return []
