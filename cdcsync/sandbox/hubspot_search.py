"""``POST /crm/v3/objects/{type}/search``: filters, sorts and pages over the search index. Pure.

Matching is against the index, which trails; the values returned are the present ones. Archived records leave the
results at once, but are counted in ``total`` until the index has caught up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from cdcsync.sandbox.hubspot_answers import VALIDATION, RefusedError
from cdcsync.sandbox.hubspot_inputs import as_objects, as_text
from cdcsync.sandbox.hubspot_schema import ObjectType
from cdcsync.sandbox.hubspot_store import Store, Stored
from cdcsync.sandbox.hubspot_values import read_millis

PAGE: Final = 10
MAX_PAGE: Final = 200
MAX_RESULTS: Final = 10_000
MAX_GROUPS: Final = 5
MAX_FILTERS: Final = 6
MAX_ALL_FILTERS: Final = 18
MAX_QUERY: Final = 3000

Match = Callable[[Mapping[str, str]], bool]


def search(store: Store, kind: ObjectType, body: Mapping[str, Any], now: float) -> tuple[int, list[Stored], str | None]:
    """Search; returns the total, the page's records, and where the next page begins. Raises RefusedError."""
    matches = _compile(kind, body)
    limit, offset = _whole(body, "limit", PAGE), _whole(body, "after", 0)
    if not 0 < limit <= MAX_PAGE:
        raise _refuse(f"limit must be between 1 and {MAX_PAGE}")
    if offset + limit > MAX_RESULTS:
        raise _refuse(f"Searches return at most {MAX_RESULTS} results")
    documents = store.index.documents(kind.name, now)
    found = [record_id for record_id, document in documents.items() if matches(document)]
    _sort(found, documents, kind, as_objects(body.get("sorts") or []))
    page = found[offset : offset + limit]
    records = [record for record in (store.get(kind, one) for one in page) if record]
    following = str(offset + limit) if offset + limit < len(found) else None
    return len(found), records, following


def _refuse(message: str) -> RefusedError:
    return RefusedError(400, message, VALIDATION)


def _whole(body: Mapping[str, Any], name: str, default: int) -> int:
    text = as_text(body.get(name))
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise _refuse(f"{name} must be a number") from error


def _compile(kind: ObjectType, body: Mapping[str, Any]) -> Match:
    groups = [as_objects(group.get("filters") or []) for group in as_objects(body.get("filterGroups") or [])]
    if not groups and body.get("filters"):
        groups = [as_objects(body["filters"])]
    if len(groups) > MAX_GROUPS or any(len(group) > MAX_FILTERS for group in groups):
        raise _refuse(f"At most {MAX_GROUPS} filter groups of {MAX_FILTERS} filters are allowed")
    if sum(map(len, groups)) > MAX_ALL_FILTERS:
        raise _refuse(f"At most {MAX_ALL_FILTERS} filters are allowed")
    compiled = [[_filter(kind, one) for one in group] for group in groups]
    query = str(body.get("query") or "").lower()
    if len(query) > MAX_QUERY:
        raise _refuse(f"query may have at most {MAX_QUERY} characters")
    shown = [name for name in (*kind.shown, "phone", "domain", "name") if name in kind.properties]

    def matches(document: Mapping[str, str]) -> bool:
        if query and not any(query in document.get(name, "").lower() for name in shown):
            return False
        return not compiled or any(all(one(document) for one in group) for group in compiled)

    return matches


def _filter(kind: ObjectType, raw: Mapping[str, Any]) -> Match:
    name, operator = as_text(raw.get("propertyName")) or "", as_text(raw.get("operator")) or ""
    if name not in kind.properties:
        raise _refuse(f"There was a problem with the request. Property {name} does not exist")
    value = _comparable(kind, name, as_text(raw.get("value")) or "")
    if operator in {"IN", "NOT_IN"}:
        return _membership(name, raw, negated=operator == "NOT_IN")
    if operator == "BETWEEN":
        high = _comparable(kind, name, as_text(raw.get("highValue")) or "")
        return lambda document: _ordered(value, stored := _stored(kind, name, document)) and _ordered(stored, high)
    tests: dict[str, Match] = {
        "EQ": lambda document: _stored(kind, name, document) == value,
        "NEQ": lambda document: _stored(kind, name, document) != value,
        "LT": lambda document: _below(_stored(kind, name, document), value),
        "LTE": lambda document: _ordered(_stored(kind, name, document), value),
        "GT": lambda document: _below(value, _stored(kind, name, document)),
        "GTE": lambda document: _ordered(value, _stored(kind, name, document)),
        "HAS_PROPERTY": lambda document: bool(document.get(name)),
        "NOT_HAS_PROPERTY": lambda document: not document.get(name),
        "CONTAINS_TOKEN": lambda document: _has_token(document.get(name, ""), str(value)),
        "NOT_CONTAINS_TOKEN": lambda document: not _has_token(document.get(name, ""), str(value)),
    }
    if operator not in tests:
        raise _refuse(f"Operator {operator} is not valid")
    return tests[operator]


def _membership(name: str, raw: Mapping[str, Any], *, negated: bool) -> Match:
    """IN compares with what was sent as it is: text has to be in lower case."""
    values = raw.get("values")
    if not isinstance(values, list) or not values:
        raise _refuse("values must be set for this operator")
    wanted = {as_text(one) for one in values}
    return lambda document: (document.get(name, "").lower() in wanted) is not negated


Comparable = str | Decimal | None


def _stored(kind: ObjectType, name: str, document: Mapping[str, str]) -> Comparable:
    return _comparable(kind, name, document.get(name, ""))


def _comparable(kind: ObjectType, name: str, text: str) -> Comparable:
    """Return what to compare by: numbers as such, times as milliseconds, texts without case, None for empty ones."""
    type_ = kind.properties[name].type
    if not text or type_ not in {"number", "date", "datetime"}:
        return text.lower() or None
    try:
        return Decimal(text) if type_ == "number" else Decimal(read_millis(text))
    except (InvalidOperation, ValueError, OverflowError):
        return None


def _below(low: Comparable, high: Comparable) -> bool:
    if isinstance(low, Decimal) and isinstance(high, Decimal):
        return low < high
    return isinstance(low, str) and isinstance(high, str) and low < high


def _ordered(low: Comparable, high: Comparable) -> bool:
    return low is not None and (low == high or _below(low, high))


def _has_token(text: str, pattern: str) -> bool:
    expression = re.compile(re.escape(pattern).replace(r"\*", ".*"), re.IGNORECASE)
    return any(expression.fullmatch(token) for token in re.split(r"[\s@.]+", text)) or bool(expression.fullmatch(text))


def _sort(
    found: list[str],
    documents: Mapping[str, Mapping[str, str]],
    kind: ObjectType,
    sorts: Sequence[Mapping[str, Any]],
) -> None:
    if len(sorts) > 1:
        raise _refuse("Only one sort is allowed")
    for one in sorts:
        name = str(one.get("propertyName"))
        if name not in kind.properties:
            raise _refuse(f"There was a problem with the request. Property {name} does not exist")
        with_value = [(_stored(kind, name, documents[each]), each) for each in found]
        numbers = sorted((value, each) for value, each in with_value if isinstance(value, Decimal))
        texts = sorted((value, each) for value, each in with_value if isinstance(value, str))
        empty = [each for value, each in with_value if value is None]
        found[:] = [*empty, *(each for _, each in numbers), *(each for _, each in texts)]
        if one.get("direction") == "DESCENDING":
            found.reverse()
