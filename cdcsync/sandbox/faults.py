"""Scripted faults: rules that say which requests or rows go wrong, how, and how often.

Request kinds: ``refuse`` (answer a status before any work), ``do_then_fail`` (work, then answer a status), ``hold``
(keep the request until released), ``slow``, ``reset`` (cut the connection), ``garbage`` (200 with broken content) and
``expire_token``; one rule per request, the first that matches. The CRMs themselves ask for ``lock`` (a row could not be
locked) and ``stuck_job`` (a bulk job stays in progress as long as its rule is there).
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

REQUEST_KINDS: Final = frozenset({"refuse", "do_then_fail", "hold", "slow", "reset", "garbage", "expire_token"})
KINDS: Final = REQUEST_KINDS | {"lock", "stuck_job"}
_LATE_KINDS: Final = frozenset({"do_then_fail", "slow", "garbage"})
_MEMBERS: Final = frozenset(
    {"kind", "match", "when", "status", "body", "headers", "seconds", "times", "probability"},
)

When = Literal["before", "after"]


class RuleError(ValueError):
    """A fault rule that cannot be understood."""


@dataclass(eq=False, slots=True)
class Rule:
    """One rule. ``left`` is how often it may still strike (None: for ever); an exhausted rule stays listed."""

    kind: str
    when: When
    method: str | None
    path: re.Pattern[str] | None
    object_name: str | None
    status: int
    body: object
    headers: Mapping[str, str]
    seconds: float
    probability: float
    left: int | None
    hits: int = 0

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Rule:
        """Read the JSON form. Raises RuleError."""
        unknown = set(raw) - _MEMBERS
        match = raw.get("match") or {}
        unknown_match = set(match) - {"method", "path", "object"}
        if unknown or unknown_match:
            raise RuleError(f"unknown members: {sorted(unknown | unknown_match)}")
        kind = raw.get("kind")
        if kind not in KINDS:
            raise RuleError(f"kind must be one of {sorted(KINDS)}, not {kind!r}")
        when: When = "after" if kind in _LATE_KINDS else "before"
        if raw.get("when") is not None:
            if raw["when"] not in {"before", "after"}:
                raise RuleError(f"when must be before or after, not {raw['when']!r}")
            when = raw["when"]
        try:
            return cls(
                kind=kind,
                when=when,
                method=match["method"].upper() if match.get("method") else None,
                path=re.compile(match["path"]) if match.get("path") else None,
                object_name=match["object"].lower() if match.get("object") else None,
                status=int(raw.get("status", 503)),
                body=raw.get("body"),
                headers={str(name): str(value) for name, value in (raw.get("headers") or {}).items()},
                seconds=float(raw.get("seconds", 1.0)),
                probability=float(raw.get("probability", 1.0)),
                left=None if raw.get("times", 1) is None else int(raw.get("times", 1)),
            )
        except (AttributeError, TypeError, ValueError, re.error) as error:
            raise RuleError(f"bad rule: {error}") from error

    def matches(self, method: str, path: str, objects: Collection[str]) -> bool:
        """Whether this rule, if not exhausted, is about such a request; ``objects`` in lower case."""
        return (
            self.left != 0
            and (self.method is None or self.method == method)
            and (self.path is None or self.path.search(path) is not None)
            and (self.object_name is None or self.object_name in objects)
        )

    def as_json(self) -> dict[str, Any]:
        """Show the rule as ``GET /faults`` shows it."""
        return {
            "kind": self.kind,
            "when": self.when,
            "match": {
                "method": self.method,
                "path": self.path.pattern if self.path else None,
                "object": self.object_name,
            },
            "status": self.status,
            "seconds": self.seconds,
            "probability": self.probability,
            "left": self.left,
            "hits": self.hits,
        }


class Faults:
    """The rules in force, in order."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self._random = random.Random(0)

    def reseed(self, seed: int) -> None:
        """Restart the dice of ``probability``."""
        self._random.seed(seed)

    def add(self, raw: Collection[Mapping[str, Any]]) -> None:
        """Append rules given in their JSON form. Raises RuleError, and then adds none."""
        self.rules.extend([Rule.parse(one) for one in raw])

    def clear(self) -> None:
        """Drop all rules."""
        self.rules.clear()

    def strike(self, kinds: Collection[str], method: str, path: str, objects: Collection[str] = ()) -> Rule | None:
        """Find the first rule of these kinds that matches and whose dice say so; one of its hits is used up.

        Called once per request, and once per row or job for ``lock`` and ``stuck_job``.
        """
        for rule in self.rules:
            if rule.kind in kinds and rule.matches(method, path, objects) and self._random.random() < rule.probability:
                rule.hits += 1
                if rule.left is not None:
                    rule.left -= 1
                return rule
        return None
