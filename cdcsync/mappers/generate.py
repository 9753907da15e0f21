"""The source text of a mapper: one straight run over a tuple's bytes, no loop and no lookup per column. Pure.

Nothing of the user's appears in the text: names, texts and values are objects in the function's namespace under
numbered names, ``_c3`` is the column at place 3. The reader of a column is unrolled, because a loop that calls
``split_tuple`` and then picks costs about twice as much (``bench/map_rows.py``).

Tuple format: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html#PROTOCOL-LOGICALREP-MESSAGE-FORMATS-TUPLEDATA
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from cdcsync.mappers.values import Converter, boolean, integer, padded, text

_INLINE: dict[Converter, str] = {
    text: "{}.decode()",
    padded: '{}.decode().rstrip(" ")',
    integer: "int({})",
    boolean: '{} == b"t"',
}


class Source:
    """Collects the lines of one function and the objects that they name."""

    def __init__(self, **names: Any) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = dict(names)
        self._indent = 0

    def name(self, value: object) -> str:
        """Put an object into the namespace; returns the name by which the text has it."""
        name = f"_o{len(self.names)}"
        self.names[name] = value
        return name

    def line(self, text: str) -> None:
        """Add a line."""
        self.lines.append("    " * self._indent + text)

    def block(self, head: str, *lines: str) -> None:
        """Add a statement with its body."""
        self.line(head)
        with self.below():
            for line in lines:
                self.line(line)

    def below(self) -> _Below:
        """Indent the lines added meanwhile."""
        return _Below(self)

    def indent(self, by: int) -> None:
        """Move the lines to come to the right, or back."""
        self._indent += by

    def function(self, name: str) -> Callable[..., Any]:
        """Compile the text and return its function ``name``."""
        exec(compile("\n".join(self.lines), f"<{name}>", "exec"), self.names)  # noqa: S102 - our own text; see above
        function: Callable[..., Any] = self.names[name]
        return function


class _Below:
    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        self._source.indent(1)

    def __exit__(self, *_: object) -> None:
        self._source.indent(-1)


def converted(source: Source, convert: Converter, variable: str) -> str:
    """Return the expression of a column's value."""
    inline = _INLINE.get(convert)
    return inline.format(variable) if inline else f"{source.name(convert)}({variable})"


def read_columns(source: Source, wanted: Collection[int]) -> None:
    """Add lines that set ``_cN`` (bytes, None or ABSENT) for each wanted place, and read no further than the last.

    The namespace has ``unpack`` (of a 32-bit length), ``ABSENT`` and ``broken()``, an error to raise.
    """
    source.line("at = 2")
    for place in range(max(wanted) + 1):
        if place in wanted:
            _read(source, f"_c{place}")
        else:
            _pass_over(source)
    source.block("if at > len(raw):", "raise broken()")


def _read(source: Source, variable: str) -> None:
    source.line("tag = raw[at]")
    source.block(
        "if tag == 116:",
        "end = at + 5 + unpack(raw, at + 1)[0]",
        f"{variable} = raw[at + 5:end]",
        "at = end",
    )
    source.block("elif tag == 110:", f"{variable} = None", "at += 1")
    source.block("elif tag == 117:", f"{variable} = ABSENT", "at += 1")
    source.block("else:", "raise broken()")


def _pass_over(source: Source) -> None:
    source.line("tag = raw[at]")
    source.block("if tag == 116:", "at += 5 + unpack(raw, at + 1)[0]")
    source.block("elif tag == 110 or tag == 117:", "at += 1")
    source.block("else:", "raise broken()")


def anyof(conditions: Iterable[str], word: str) -> str:
    """Join conditions by ``and`` or ``or``."""
    return f" {word} ".join(conditions)
