"""Where each key of a TOML document stands. Pure.

``tomllib`` keeps no positions, so this walks a document that ``tomllib`` has already accepted: it need not
check anything, only skip values (strings, nested brackets, comments) without taking their content for keys.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^\"'\[\]{}#\n]+")


def locate(text: str) -> dict[Path, int]:
    """Map each key path (array indexes included) to its line, from 1. ``text`` must be valid TOML.

    Inside an inline table or array nothing is listed: ``line_of`` falls back to the key that holds it.
    """
    return _Walk(text).run()


def line_of(lines: Mapping[Path, int], path: Iterable[str | int]) -> int:
    """Find the line of ``path``, or of the nearest thing around it that has one; 1 for the document."""
    parts = tuple(path)
    while parts and parts not in lines:
        parts = parts[:-1]
    return lines.get(parts, 1)


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # array of tables → its length so far

    def run(self) -> dict[Path, int]:
        table: Path = ()
        self.at = self._skip(_BLANK)
        while self.at < len(self.text):
            line = self.text.count("\n", 0, self.at) + 1
            if self.text[self.at] == "[":
                table = self._header(line)
            else:
                self._note((*table, *self._key()), line, below=len(table))
                self._value()
            self.at = self._skip(_BLANK)
        return self.lines

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        return match.end() if match else self.at

    def _note(self, path: Path, line: int, below: int) -> None:
        for length in range(below + 1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _header(self, line: int) -> Path:
        array = self.text.startswith("[[", self.at)
        self.at += 2 if array else 1
        path: Path = ()
        names = self._key()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            if array and number == len(names):
                self._note(path, line, below=0)
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        self._note(path, line, below=0)
        self.at = self._skip(re.compile(r"[ \t]*\]\]?"))
        return path

    def _key(self) -> list[str]:
        """Read a dotted key and the ``=`` behind it, if any."""
        names: list[str] = []
        while True:
            self.at = self._skip(re.compile(r"[ \t]*"))
            match = _BARE.match(self.text, self.at) or _STRING.match(self.text, self.at)
            if match is None:
                return names
            names.append(_unquote(match[0]))
            self.at = match.end()
            self.at = self._skip(re.compile(r"[ \t]*[.=]?"))
            if self.text[self.at - 1] != ".":
                return names

    def _value(self) -> None:
        """Go to the end of the line that ends the value."""
        depth = 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\n" and depth == 0:
                return
            if char in "[{":
                depth += 1
            elif char in "]}":
                depth -= 1
            end = max(self._skip(_STRING), self._skip(_PLAIN), self._skip(re.compile(r"#[^\n]*")))
            self.at = max(end, self.at + 1)


def _unquote(key: str) -> str:
    if key[0] not in "\"'":
        return key
    value = tomllib.loads(f"key = {key}")["key"]
    return str(value)
