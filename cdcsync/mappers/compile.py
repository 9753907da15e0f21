"""A mapping and a table's shape → the function that maps that table's rows. Pure.

All that can be wrong is found here, before the first row: columns that do not exist, a key that deletes would not
carry, types that no CRM takes. What is left for the rows are values that reject one row (``RowRejectedError``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cdcsync.config.crosscheck import did_you_mean
from cdcsync.config.mapping import AssociateConfig, FieldConfig, MapConfig, RefConfig, template_parts
from cdcsync.errors import ConfigError, DecodeError, RowRejectedError
from cdcsync.mappers.generate import Source, anyof, converted, read_columns
from cdcsync.mappers.values import BINARY, BOOL, BPCHAR, INVALID, Converter, boolean, converter, nearest, padded, text
from cdcsync.model import ABSENT, Column, Ref, Relation, Value

_UNPACK = struct.Struct(">I").unpack_from
_BOOLS = {"true": b"t", "false": b"f"}


class Parent(NamedTuple):
    """A record that must exist before this one (from ``ref``)."""

    object: str
    key_field: str
    key: str


class WantedLink(NamedTuple):
    """An association that is to exist (from ``associate``); without a ``key`` there is to be none."""

    to_object: str
    type: str
    key: str | None


class Mapped(NamedTuple):
    """A row as the CRM is to hold it. ``fields`` lacks what is to be left alone.

    ``absent`` names the CRM fields (and links, as ``object:type``) left out because a column was not sent.
    """

    key: str
    fields: dict[str, Value]
    parents: tuple[Parent, ...]
    links: tuple[WantedLink, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RowMapper:
    """What was compiled for one mapping and one shape of its table. Both functions raise DecodeError for no tuple."""

    relation: Relation
    key_of: Callable[[bytes], str | None]
    """The external key of a tuple; None where its column is NULL or was not sent."""
    map: Callable[[bytes], Mapped]
    """The record of a tuple. Raises RowRejectedError."""


def compile_mapper(map_config: MapConfig, relation: Relation, types: Mapping[int, int]) -> RowMapper:
    """Compile a mapping for rows of ``relation``; ``types`` gives the builtin oid for each user-defined type's.

    Raises ConfigError that names everything in the mapping that does not fit the table.
    """
    shape = _Shape(map_config, relation, types)
    shape.check()
    return RowMapper(relation, _key_function(shape), _map_function(shape))


class _Shape:
    """A table's columns as a mapping sees them."""

    def __init__(self, config: MapConfig, relation: Relation, types: Mapping[int, int]) -> None:
        self.config = config
        self.relation = relation
        self._types = types
        self._places = {column.name: place for place, column in enumerate(relation.columns)}

    def place(self, column: str) -> int:
        return self._places[column]

    def variable(self, column: str) -> str:
        return f"_c{self._places[column]}"

    def builtin(self, column: str) -> int:
        oid = self._column(column).type_oid
        return self._types.get(oid, oid)

    def converter(self, column: str) -> Converter:
        return converter(self.builtin(column))

    def printer(self, column: str) -> Converter:
        """Give the function for keys: the text as printed, which is the same in every table."""
        return padded if self.builtin(column) == BPCHAR else text

    def used(self) -> set[int]:
        """Tell the places of all columns that the mapping reads."""
        return {self._places[name] for name in columns_used(self.config)}

    def check(self) -> None:
        mistakes = list(self._mistakes())
        if mistakes:
            raise ConfigError("\n".join(f"map {self.config.name}: {mistake}" for mistake in mistakes))

    def _column(self, name: str) -> Column:
        return self.relation.columns[self._places[name]]

    def _mistakes(self) -> Iterable[str]:
        config = self.config
        yield from self._key_mistakes()
        for name, field in config.fields.items():
            missing = [
                mistake for column in columns_of(field) for mistake in self._column_mistakes(f"field {name}", column)
            ]
            yield from missing
            if not missing:
                yield from self._clamp_mistakes(name, field)
        for link in config.associate:
            yield from self._column_mistakes(f"association {link.type}", link.column)

    def _key_mistakes(self) -> Iterable[str]:
        key = self.config.key_column
        missing = list(self._column_mistakes(f"key {self.config.key_field}", key))
        yield from missing
        if missing or self.relation.identity == "f" or self._column(key).in_identity:
            return
        yield (
            f"key {self.config.key_field}: column {key} is not part of the replica identity of {self.relation.table}, "
            "so deletes and key changes would not carry it: make it the primary key, or use a unique index over it "
            f"(ALTER TABLE {self.relation.table} REPLICA IDENTITY USING INDEX …)"
        )

    def _column_mistakes(self, where: str, column: str) -> Iterable[str]:
        if column not in self._places:
            yield f"{where}: table {self.relation.table} has no column {column}{did_you_mean(column, self._places)}"
        elif self.builtin(column) in BINARY:
            yield f"{where}: column {column} is binary (bytea), which no CRM field takes: map a text form of it instead"

    def _clamp_mistakes(self, name: str, field: FieldConfig) -> Iterable[str]:
        if field.on_invalid == "clamp" and nearest(self.builtin(field.column or "")) is None:
            yield (
                f'field {name}: on_invalid = "clamp" is for dates and times, and column {field.column} is neither: '
                'use "null" or "reject"'
            )


def columns_used(config: MapConfig) -> set[str]:
    """Name all columns that a mapping reads."""
    names = {config.key_column, *(link.column for link in config.associate)}
    for field in config.fields.values():
        names.update(columns_of(field))
    return names


def columns_of(field: FieldConfig) -> list[str]:
    """Name the columns that a field is made of."""
    if field.template is not None:
        return [column for _, column in template_parts(field.template) if column is not None]
    return [field.column] if field.column is not None else []


def _key_function(shape: _Shape) -> Callable[[bytes], str | None]:
    source = Source(unpack=_UNPACK, ABSENT=ABSENT, broken=_broken, malformed=(IndexError, struct.error))
    column = shape.config.key_column
    variable = shape.variable(column)
    source.line("def key_of(raw):")
    with source.below():
        source.line("try:")
        with source.below():
            read_columns(source, {shape.place(column)})
            source.block(f"if {variable} is None or {variable} is ABSENT:", "return None")
            source.line(f"return {converted(source, shape.printer(column), variable)}")
        # A database in SQL_ASCII may hold anything: the row keeps a key of its own, and `map` rejects it.
        source.block("except UnicodeDecodeError:", f'return {variable}.decode("utf-8", "backslashreplace")')
        source.block("except malformed:", "raise broken() from None")
    return source.function("key_of")


def _map_function(shape: _Shape) -> Callable[[bytes], Mapped]:
    config = shape.config
    labels = [*config.fields, config.key_field, *(_link_label(link) for link in config.associate)]
    source = Source(
        unpack=_UNPACK,
        ABSENT=ABSENT,
        broken=_broken,
        malformed=(IndexError, struct.error),
        Mapped=Mapped,
        RowRejectedError=RowRejectedError,
        invalid=INVALID,
        labels=labels,
        reject=_reject,
        no_key=_no_key,
        count=len(shape.relation.columns).to_bytes(2, "big"),
    )
    source.line("def map(raw):")
    with source.below():
        source.line(f"field = {len(config.fields)}")
        source.line("try:")
        with source.below():
            source.block("if raw[:2] != count:", "raise broken()")
            read_columns(source, shape.used())
            _write_key(source, shape)
            source.line(f"fields = {source.name(dict(config.constants))}.copy()" if config.constants else "fields = {}")
            source.line("parents = links = absent = ()")
            for number, (name, field) in enumerate(config.fields.items()):
                _Field(source, shape, number, name, field).write()
            for number, link in enumerate(config.associate, start=len(config.fields) + 1):
                _write_link(source, shape, number, link)
            source.line("return Mapped(key, fields, parents, links, absent)")
        source.block("except RowRejectedError as error:", "error.field = labels[field]", "raise")
        source.block("except UnicodeDecodeError:", 'raise reject("not-utf8", labels[field]) from None')
        source.block("except malformed:", "raise broken() from None")
    return source.function("map")


def _write_key(source: Source, shape: _Shape) -> None:
    column = shape.config.key_column
    variable = shape.variable(column)
    source.block(f"if not {variable} or {variable} is ABSENT:", f"raise no_key({variable})")
    source.line(f"key = {converted(source, shape.printer(column), variable)}")


class _Field:
    """Writes the lines that fill one field."""

    def __init__(self, source: Source, shape: _Shape, number: int, name: str, config: FieldConfig) -> None:
        self.source = source
        self.shape = shape
        self.config = config
        self.number = number
        self.name = source.name(name)

    def write(self) -> None:
        variables = [self.shape.variable(column) for column in columns_of(self.config)]
        self.source.block(f"if {anyof((f'{one} is None' for one in variables), 'and')}:", self._null())
        self.source.block(
            f"elif {anyof((f'{one} is ABSENT' for one in variables), 'or')}:", f"absent += ({self.name},)"
        )
        self.source.line("else:")
        with self.source.below():
            self.source.line(f"field = {self.number}")
            if self.config.template is not None:
                self._template(self.config.template)
            elif self.config.values is not None:
                self._values(self.config.values, variables[0])
            elif self.config.ref is not None:
                self._ref(self.config.ref, variables[0])
            else:
                self._set(converted(self.source, self.shape.converter(self.config.column or ""), variables[0]))

    def _set(self, expression: str) -> None:
        assignment = f"fields[{self.name}] = {expression}"
        if self.config.on_invalid in {None, "reject"}:
            self.source.line(assignment)
        else:  # a try costs nothing while nothing is raised
            self.source.block("try:", assignment)
            self.source.block("except invalid:", self._instead())

    def _instead(self) -> str:
        if self.config.on_invalid == "null":
            return self._null()
        column = self.config.column or ""
        convert = self.source.name(nearest(self.shape.builtin(column)))
        return f"fields[{self.name}] = {convert}({self.shape.variable(column)})"

    def _null(self) -> str:
        if self.config.default is not None:
            return f"fields[{self.name}] = {self.source.name(self.config.default)}"
        return "pass" if self.shape.config.nulls == "keep" else f"fields[{self.name}] = None"

    def _template(self, template: str) -> None:
        parts = []
        for literal, column in template_parts(template):
            if literal:
                parts.append(self.source.name(literal))
            if column is not None:
                variable = self.shape.variable(column)
                parts.append(f'("" if {variable} is None else {self._word(column, variable)})')
        self._set(" + ".join(parts))

    def _word(self, column: str, variable: str) -> str:
        if self.shape.converter(column) is boolean:
            return f'("true" if {variable} == b"t" else "false")'
        return converted(self.source, self.shape.printer(column), variable)

    def _values(self, values: Mapping[str, Any], variable: str) -> None:
        builtin = self.shape.builtin(self.config.column or "")
        table = {_BOOLS.get(key, key.encode()) if builtin == BOOL else key.encode(): one for key, one in values.items()}
        looked_up = f'{variable}.rstrip(b" ")' if builtin == BPCHAR else variable
        self.source.line(f"found = {self.source.name(table)}.get({looked_up})")
        self.source.block("if found is not None:", f"fields[{self.name}] = found")
        otherwise = {
            "clear": f"fields[{self.name}] = None",
            "keep": "pass",
            "reject": 'raise reject("value-unmapped", labels[field])',
        }[self.config.otherwise or "reject"]
        self.source.block("else:", otherwise)

    def _ref(self, ref: RefConfig, variable: str) -> None:
        name = self.source.name
        target = f"{name(ref.object)}, {name(ref.key_field)}, parent"
        self.source.line(f"parent = {converted(self.source, self.shape.printer(self.config.column or ''), variable)}")
        self.source.block(
            "if parent:",
            f"fields[{self.name}] = {name(Ref)}({target})",
            f"parents += ({name(Parent)}({target}),)",
        )
        self.source.block("else:", self._null())


def _link_label(link: AssociateConfig) -> str:
    """Name an association where fields are named: ``object:type``."""
    return f"{link.to_object}:{link.type}"


def _write_link(source: Source, shape: _Shape, number: int, link: AssociateConfig) -> None:
    variable = shape.variable(link.column)
    make, to_object, kind = source.name(WantedLink), source.name(link.to_object), source.name(link.type)
    source.block(f"if {variable} is ABSENT:", f"absent += ({source.name(_link_label(link))},)")
    source.block(
        f"elif {variable}:",
        f"field = {number}",
        f"links += ({make}({to_object}, {kind}, {_text(source, shape, link)}),)",
    )
    if shape.config.nulls == "clear":
        source.block("else:", f"links += ({make}({to_object}, {kind}, None),)")


def _text(source: Source, shape: _Shape, link: AssociateConfig) -> str:
    return converted(source, shape.printer(link.column), shape.variable(link.column))


_REASONS = {
    "not-utf8": "the text is not valid UTF-8 (the database's encoding is SQL_ASCII?)",
    "value-unmapped": "the column's text is not among the mapping's values; add it there, or set otherwise",
    "key-null": "the key column is NULL, so there is no record to write to",
    "key-empty": "the key column is empty, which no CRM takes as a key",
    "key-absent": "the key column is a large value that did not change, and the stream does not carry it",
}


def _reject(code: str, field: str | None) -> RowRejectedError:
    return RowRejectedError(code, field, _REASONS[code])


def _no_key(given: object) -> RowRejectedError:
    return _reject("key-null" if given is None else "key-absent" if given is ABSENT else "key-empty", None)


def _broken() -> DecodeError:
    return DecodeError("a row's tuple is malformed, or is not of the relation that its mapper was made for")
