"""SOQL, as much of it as a replicator or a person at a prompt needs: parse text into a ``Query``.

``SELECT a, b, Parent.c | count() FROM X [WHERE …] [ORDER BY a [DESC], …] [LIMIT n] [OFFSET n]``; conditions with
``= != < <= > >= LIKE IN NOT IN``, AND, OR, NOT and parentheses. String escapes as in the SOQL and SOSL Reference,
"Quoted String Escape Sequences".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeAlias

from cdcsync.sandbox.salesforce_errors import ApiError

LONGEST: Final = 100_000
_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^'\\]|\\.)*')
    | (?P<moment>\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}:?\d{2}))?)
    | (?P<number>[+-]?\d+(?:\.\d+)?)
    | (?P<word>[A-Za-z_][A-Za-z0-9_.]*)
    | (?P<sign><=|>=|!=|<>|[=<>(),])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "b": "\b",
    "f": "\f",
    '"': '"',
    "'": "'",
    "\\": "\\",
}
_OPERATORS: Final = frozenset({"=", "!=", "<>", "<", "<=", ">", ">="})

Literal: TypeAlias = str | bool | Decimal | None


@dataclass(frozen=True, slots=True)
class Compare:
    """``field operator value``; the values of IN are a tuple."""

    field: str
    operator: str
    value: Literal | tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Every:
    """All parts hold."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """One of the parts holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Condition


Condition: TypeAlias = Compare | Every | Some | Not


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query. ``fields`` is empty for ``count()``; ``order`` holds (field, descending)."""

    fields: tuple[str, ...]
    object: str
    where: Condition | None
    order: tuple[tuple[str, bool], ...]
    limit: int | None
    offset: int


def malformed(message: str) -> ApiError:
    """Give the answer for a query that cannot be parsed."""
    return ApiError(400, "MALFORMED_QUERY", message)


def parse(text: str) -> Query:
    """Parse a query. Raises ApiError ``MALFORMED_QUERY`` (or ``QUERY_TOO_COMPLICATED`` for its length)."""
    if len(text) > LONGEST:
        raise ApiError(400, "QUERY_TOO_COMPLICATED", f"SOQL statements cannot be longer than {LONGEST} characters.")
    return _Parser(text).query()


def unquote(quoted: str) -> str:
    """Take the quotes and escapes off a string literal, for comparing with ``=``. Raises ApiError."""
    return re.sub(r"\\(.)", _unescape, quoted[1:-1], flags=re.DOTALL)


def _unescape(match: re.Match[str]) -> str:
    char = match[1]
    if char in "_%":
        return match[0]  # only LIKE gives these a meaning, and keeps the backslash until then
    if char not in _ESCAPES:
        raise malformed(f"Invalid string literal. Illegal character sequence '\\{char}' in string literal")
    return _ESCAPES[char]


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0

    def query(self) -> Query:
        self._expect("select")
        fields = self._fields()
        self._expect("from")
        name = self._name()
        where = self._any() if self._accept("where") else None
        order = self._order() if self._accept("order") else ()
        limit = self._count() if self._accept("limit") else None
        offset = self._count() if self._accept("offset") else 0
        if self._at < len(self._tokens):
            raise self._unexpected()
        return Query(fields, name, where, order, limit, offset)

    def _fields(self) -> tuple[str, ...]:
        first = self._name()
        if first.lower() == "count" and self._accept("("):
            self._expect(")")
            return ()
        fields = [first]
        while self._accept(","):
            fields.append(self._name())
        return tuple(fields)

    def _order(self) -> tuple[tuple[str, bool], ...]:
        self._expect("by")
        order = [self._ordered()]
        while self._accept(","):
            order.append(self._ordered())
        return tuple(order)

    def _ordered(self) -> tuple[str, bool]:
        name = self._name()
        descending = self._accept("desc")
        if not descending:
            self._accept("asc")
        return name, descending

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._accept("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _all(self) -> Condition:
        parts = [self._one()]
        while self._accept("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _one(self) -> Condition:
        if self._accept("not"):
            return Not(self._one())
        if self._accept("("):
            inner = self._any()
            self._expect(")")
            return inner
        name = self._name()
        if self._accept("not"):
            self._expect("in")
            return Not(Compare(name, "in", self._list()))
        if self._accept("in"):
            return Compare(name, "in", self._list())
        if self._accept("like"):
            return Compare(name, "like", self._literal())
        kind, sign = self._take()
        if kind != "sign" or sign not in _OPERATORS:
            self._at -= 1
            raise self._unexpected()
        return Compare(name, "!=" if sign == "<>" else sign, self._literal())

    def _list(self) -> tuple[Literal, ...]:
        self._expect("(")
        values = [self._literal()]
        while self._accept(","):
            values.append(self._literal())
        self._expect(")")
        return tuple(values)

    def _literal(self) -> Literal:
        kind, text = self._take()
        match kind, text.lower():
            case "string", _:
                return unquote(text)
            case "number", _:
                return Decimal(text)
            case "moment", _:
                return text
            case "word", "null":
                return None
            case "word", "true" | "false":
                return text.lower() == "true"
        self._at -= 1
        raise self._unexpected()

    def _count(self) -> int:
        kind, text = self._take()
        if kind != "number" or not text.isdigit():
            self._at -= 1
            raise self._unexpected()
        return int(text)

    def _name(self) -> str:
        kind, text = self._take()
        if kind != "word":
            self._at -= 1
            raise self._unexpected()
        return text

    def _accept(self, word: str) -> bool:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind != "string" and text.lower() == word:
                self._at += 1
                return True
        return False

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise self._unexpected()

    def _take(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise malformed("unexpected token: '<EOF>'")
        self._at += 1
        return self._tokens[self._at - 1]

    def _unexpected(self) -> ApiError:
        shown = self._tokens[self._at][1] if self._at < len(self._tokens) else "<EOF>"
        return malformed(f"unexpected token: '{shown}'")


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if not match or not match.lastgroup:
            raise malformed(f"line 1:{position} no viable alternative at character '{text[position]}'")
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return tokens
