"""The ``[[map]]`` tables: which columns of a table make which fields of a CRM object."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    field_validator,
    model_validator,
)

from cdcsync.config.table import MaxDeletes, Table
from cdcsync.config.units import Allowance

Scalar: TypeAlias = str | bool | int | float


class RefConfig(NamedTuple):
    """A parent, by its external key: ``crm.object.key_field``."""

    crm: str
    object: str
    key_field: str

    def __str__(self) -> str:
        return ".".join(self)


def _ref(given: object) -> RefConfig:
    parts = given.split(".") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or len(parts) != len(RefConfig._fields) or not all(parts):
        msg = 'expected "CRM.Object.KeyField", such as "salesforce.Account.External_Id__c"'
        raise ValueError(msg)
    return RefConfig(*parts)


_FIELD_IN_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Split a template into (literal before, column) pairs; the last column is None. Doubled braces are literal ones.

    Raises ValueError for a brace that stands alone.
    """
    parts: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in _FIELD_IN_TEMPLATE.finditer(template):
        literal += template[end : match.start()]
        end = match.end()
        if match[1] is not None:
            parts.append((literal, match[1].strip()))
            literal = ""
        elif len(match[0]) == len("{{"):
            literal += match[0][0]
        else:
            msg = f"{match[0]!r} stands alone: write {{column}}, or double it for a literal brace"
            raise ValueError(msg)
    return [*parts, (literal + template[end:], None)]


class FieldConfig(Table):
    """One CRM field: what it is made of."""

    column: Annotated[str, Field(min_length=1)] | None = None
    """The column it is taken from."""
    template: str | None = None
    """Text with {column} in it; NULL counts as empty."""
    default: Scalar | None = None
    """Sent where the column is NULL."""
    values: dict[str, Scalar] | None = None
    """The column's text → the CRM's value."""
    otherwise: Literal["reject", "clear", "keep"] | None = None
    """A text that is not in values: park the row (default), clear the field, or keep what the CRM has."""
    on_invalid: Literal["reject", "null", "clamp"] | None = None
    """A value that no CRM has (NaN, infinity, a year before 1 or after 9999, 24:00, an array of several dimensions,
    text that is not UTF-8): park the row (default), take it for NULL, or send the nearest date or time there is."""
    ref: Annotated[RefConfig, PlainValidator(_ref, json_schema_input_type=str), PlainSerializer(str)] | None = None
    """The parent object whose external key the column holds: CRM.Object.KeyField."""
    only_if_empty: bool = False
    """Whether the field is the CRM's own once it is filled: it is sent when the record is created, and later only while
    the CRM has nothing in it. A NULL never clears it."""

    @model_validator(mode="after")
    def _consistent(self) -> FieldConfig:
        if (self.column is None) == (self.template is None):
            msg = "give column or template, one of them"
        elif self.otherwise is not None and self.values is None:
            msg = "otherwise needs values"
        elif self.template is not None and (
            self.default is not None or self.values is not None or self.ref is not None
        ):
            msg = "template does not go with default, values or ref"
        elif self.on_invalid is not None and (self.values is not None or self.ref is not None):
            msg = "on_invalid does not go with values (they have otherwise) or ref"
        elif self.on_invalid == "clamp" and self.template is not None:
            msg = 'on_invalid = "clamp" is for a date or time column, not for a template'
        elif self.ref is not None and (self.default is not None or self.values is not None):
            msg = "ref does not go with default or values"
        elif self.only_if_empty and self.otherwise == "clear":
            msg = 'only_if_empty never clears what the CRM has: use otherwise = "keep"'
        else:
            return self
        raise ValueError(msg)

    @field_validator("template")
    @classmethod
    def _template(cls, template: str | None) -> str | None:
        if template is not None and len(template_parts(template)) == 1:
            msg = "no {column} in the template"
            raise ValueError(msg)
        return template


def _field(given: Any) -> Any:
    return {"column": given} if isinstance(given, str) else given


def _target(to: str) -> str:
    crm, dot, name = to.partition(".")
    if not (crm and dot and name) or "." in name:
        msg = 'expected "CRM.Object", such as "salesforce.Contact"'
        raise ValueError(msg)
    return to


TargetName: TypeAlias = Annotated[str, AfterValidator(_target)]


class AssociateConfig(Table):
    """An association to the record that another mapping made (HubSpot)."""

    to: TargetName
    """CRM.Object of the other record."""
    column: Annotated[str, Field(min_length=1)]
    """The column that holds the other record's external key."""
    type: Annotated[str, Field(min_length=1)]
    """The association's type, as HubSpot names it."""

    @property
    def to_crm(self) -> str:
        """The CRM's name in the config."""
        return self.to.partition(".")[0]

    @property
    def to_object(self) -> str:
        """The CRM's name of the object."""
        return self.to.partition(".")[2]


_QUOTED = r'"(?:[^"]|"")+"'
_TABLE = re.compile(rf"(?:({_QUOTED}|[^\".][^.]*)\.)?({_QUOTED}|[^\".].*)", re.DOTALL)


def _table(given: str) -> str:
    match = _TABLE.fullmatch(given)
    if match is None or (match[1] is None and not match[2].startswith('"') and "." in match[2]):
        msg = 'expected "table" or "schema.table"; a part in double quotes is read as in SQL'
        raise ValueError(msg)
    schema, table = (_unquoted(part) for part in (match[1] or "public", match[2]))
    if "." in schema:
        msg = f"the schema {schema!r} has a dot in its name, which cannot be told from the one before the table's name"
        raise ValueError(f"{msg}: ALTER SCHEMA … RENAME")
    return f"{schema}.{table}"


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


class TombstoneConfig(Table):
    """What a deleted row leaves behind: its record, with these fields set."""

    set: Annotated[dict[str, Scalar], Field(min_length=1)]
    """CRM field = value, written in place of a delete."""
    unset: dict[str, Scalar] = Field(default_factory=dict)
    """CRM field = value, of the fields in set that are not mapped: what they have as long as the row lives."""

    @model_validator(mode="after")
    def _consistent(self) -> TombstoneConfig:
        if strangers := self.unset.keys() - self.set.keys():
            msg = f"unset is for fields of set, which {', '.join(sorted(strangers))} is not"
            raise ValueError(msg)
        return self


def _delete_form(given: object) -> str:
    return "<table>" if isinstance(given, dict | TombstoneConfig) else "<word>"


class MapConfig(Table):
    """One table → one CRM object."""

    given_name: Annotated[str, Field(min_length=1)] | None = Field(default=None, alias="name")
    """The mapping's name; made from table and target if absent. The state is kept under it."""
    table: Annotated[str, AfterValidator(_table)]
    """table or schema.table, as the names are; a part in double quotes is read as in SQL."""
    to: TargetName
    """CRM.Object to write to."""
    key: Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1)]
    """The external key: { CRM field = "column" }."""
    fields: dict[str, Annotated[FieldConfig, BeforeValidator(_field, json_schema_input_type=str | FieldConfig)]] = (
        Field(default_factory=dict)
    )
    """CRM field = "column", or a table."""
    associate: list[AssociateConfig] = Field(default_factory=list)
    """Associations to keep (HubSpot)."""
    where: str | None = None
    """SQL condition that a row must meet (the publication's row filter; before PostgreSQL 15 applied by cdcsync)."""
    given_on_delete: Annotated[
        Annotated[Literal["delete", "ignore", "archive"], Tag("<word>")] | Annotated[TombstoneConfig, Tag("<table>")],
        Discriminator(_delete_form),
    ] = Field(default="delete", alias="on_delete")
    """What a deleted row does to its record: delete it (HubSpot's word is "archive"), nothing, or set fields."""
    on_truncate: Literal["pause", "ignore", "delete"] = "pause"
    """What TRUNCATE does: pause the mapping, nothing, or delete the records whose rows are gone."""
    max_deletes: MaxDeletes = Allowance(0.1, 3600.0)
    """How many records may be deleted unasked, "10% per hour" (100 at least) or "500 per day", or "off"; beyond it the
    mapping pauses."""
    priority: Literal["high", "normal", "low"] = "normal"
    """Whose changes go first where not all can go: each class has twice the share of the next one."""
    nulls: Literal["clear", "keep"] = "clear"
    """What a NULL does: clear the field, or leave the CRM's value."""
    backfill: bool = True
    """Whether to send the rows that exist already."""
    on_drift: Literal["warn", "pause", "fail"] = "pause"
    """When the table changes in what is mapped: go on with what is left, pause the mapping, or end the daemon."""

    @property
    def name(self) -> str:
        """The given name, else ``customers:salesforce.Contact``; the schema public is left out."""
        return self.given_name or f"{self.table.removeprefix('public.')}:{self.to}"

    @property
    def crm(self) -> str:
        """The CRM's name in the config."""
        return self.to.partition(".")[0]

    @property
    def object(self) -> str:
        """The CRM's name of the object."""
        return self.to.partition(".")[2]

    @property
    def key_field(self) -> str:
        """The CRM field that holds the external key."""
        return next(iter(self.key))

    @property
    def key_column(self) -> str:
        """The column that holds the external key."""
        return next(iter(self.key.values()))

    @property
    def only_if_empty(self) -> frozenset[str]:
        """The CRM fields that are the CRM's own once they are filled."""
        return frozenset(name for name, field in self.fields.items() if field.only_if_empty)

    @property
    def meaning(self) -> str:
        """What a row becomes, as a digest: as long as it is the same, so is what is sent for a row."""
        # What is as it always was is left out, so that a digest made before there was such a key stays the same.
        usual = {name: {"only_if_empty"} for name, field in self.fields.items() if not field.only_if_empty}
        names = {"table", "to", "key", "fields", "associate", "where", "nulls"}
        parts = self.model_dump_json(include=names, exclude={"fields": usual})
        if self.constants:
            parts += json.dumps(self.constants, sort_keys=True)
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()

    @property
    def on_delete(self) -> Literal["delete", "ignore", "set"]:
        """The delete policy, in one vocabulary for all CRMs."""
        if self.tombstone is not None:
            return "set"
        return "ignore" if self.given_on_delete == "ignore" else "delete"

    @property
    def tombstone(self) -> TombstoneConfig | None:
        """What is set in the record of a deleted row, if it is kept."""
        return self.given_on_delete if isinstance(self.given_on_delete, TombstoneConfig) else None

    @property
    def constants(self) -> Mapping[str, Scalar]:
        """Fields that have the same value in the record of every row that lives."""
        return self.tombstone.unset if self.tombstone is not None else {}

    @model_validator(mode="after")
    def _deletes_fit(self) -> MapConfig:
        if self.on_delete == "ignore" and self.on_truncate == "delete":
            msg = 'on_truncate = "delete" does not go with on_delete = "ignore"'
            raise ValueError(msg)
        if self.tombstone is None:
            return self
        mapped = {name.lower() for name in self.fields}
        own = {name.lower() for name in self.tombstone.unset}
        for name in self.tombstone.set:
            if name.lower() == self.key_field.lower():
                msg = f"on_delete: {name} is the key, which a deleted row's record keeps"
            elif name.lower() in mapped & own:
                msg = f"on_delete: {name} is mapped, so that unset has nothing to say about it"
            elif name.lower() not in mapped | own:
                msg = (
                    f"on_delete: say what {name} is while the row lives: map it, or write "
                    f"on_delete = {{ set = {{ {name} = … }}, unset = {{ {name} = … }} }}"
                )
            else:
                continue
            raise ValueError(msg)
        return self

    @field_validator("fields")
    @classmethod
    def _no_field_twice(cls, fields: dict[str, FieldConfig]) -> dict[str, FieldConfig]:
        seen: dict[str, str] = {}
        for name in fields:
            if (other := seen.setdefault(name.lower(), name)) != name:
                msg = f"{other} and {name} are the same field to a CRM"
                raise ValueError(msg)
        return fields
