"""A portal's object types, properties, owners and pipelines. No IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cdcsync.sandbox import hubspot_defaults as defaults
from cdcsync.sandbox.hubspot_answers import VALIDATION, RefusedError, missing_fields
from cdcsync.sandbox.hubspot_values import (
    print_time,
    store_date,
    store_datetime,
    store_email,
    store_emails,
    store_number,
    store_option,
    store_options,
    store_text,
)

MAX_UNIQUE: Final = 10  # unique properties per object type
MAX_NAME: Final = 100  # characters
STAGE_PROPERTY: Final = "lifecyclestage"
EMAIL: Final = "email"
MORE_EMAILS: Final = "hs_additional_emails"
TYPES: Final = frozenset({"string", "number", "bool", "enumeration", "date", "datetime", "phone_number"})
_DEFINED_AT: Final = print_time(1_577_836_800)


@dataclass(frozen=True, slots=True)
class Property:
    """A property's definition. ``options`` are (internal value, label); ``flags`` as in ``hubspot_defaults``."""

    name: str
    label: str
    type: str
    field_type: str
    group: str
    flags: str = ""
    options: tuple[tuple[str, str], ...] = ()
    description: str = ""

    @property
    def unique(self) -> bool:
        """Whether no two live records may share a value."""
        return "u" in self.flags

    @property
    def read_only(self) -> bool:
        """Whether the value cannot be written."""
        return "r" in self.flags or "c" in self.flags

    @property
    def custom(self) -> bool:
        """Whether the portal's owner defined it."""
        return "p" in self.flags

    def as_json(self) -> dict[str, Any]:
        """Return the form of ``GET /crm/v3/properties``."""
        shown = [
            {"label": label, "value": value, "displayOrder": order, "hidden": False, "description": ""}
            for order, (value, label) in enumerate(self.options)
        ]
        return {
            "updatedAt": _DEFINED_AT,
            "createdAt": _DEFINED_AT,
            "name": self.name,
            "label": self.label,
            "type": self.type,
            "fieldType": self.field_type,
            "description": self.description,
            "groupName": self.group,
            "options": shown,
            "displayOrder": -1,
            "calculated": "c" in self.flags,
            "externalOptions": "e" in self.flags,
            "archived": False,
            "hasUniqueValue": self.unique,
            "hidden": "h" in self.flags,
            "hubspotDefined": not self.custom,
            "modificationMetadata": {
                "archivable": self.custom,
                "readOnlyDefinition": not self.custom,
                "readOnlyValue": self.read_only,
            },
            "formField": "f" in self.flags,
            "dataSensitivity": "non_sensitive",
        }


@dataclass(slots=True)
class ObjectType:
    """A kind of record. ``name`` is the plural in the API's paths, ``type_id`` as in ``0-1``.

    ``unique_names`` are the unique properties that can be written, ``key_names`` the custom ones among them: what a
    source uses as external keys.
    """

    name: str
    singular: str
    type_id: str
    properties: dict[str, Property]
    required: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    primary: str = "hs_object_id"
    labels: tuple[str, str] = ("", "")
    unique_names: tuple[str, ...] = field(init=False)
    key_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._sum_up()

    @property
    def custom(self) -> bool:
        """Whether the portal's owner defined it."""
        return self.type_id.startswith("2-")

    @property
    def created_property(self) -> str:
        """The property that holds the time of creation."""
        return "createdate" if "createdate" in self.properties else "hs_createdate"

    @property
    def modified_property(self) -> str:
        """The property that holds the time of the last change."""
        return "lastmodifieddate" if "lastmodifieddate" in self.properties else "hs_lastmodifieddate"

    def define(self, one: Property) -> None:
        """Add or redefine a property."""
        self.properties[one.name] = one
        self._sum_up()

    def _sum_up(self) -> None:
        """Work out what every write asks for, once."""
        self.unique_names = tuple(one.name for one in self.properties.values() if one.unique and not one.read_only)
        self.key_names = tuple(name for name in self.unique_names if self.properties[name].custom)


@dataclass(slots=True)
class Pipeline:
    """A pipeline and its stages (id → label)."""

    id: str
    label: str
    stages: dict[str, str] = field(default_factory=dict)


def parse_properties(table: str) -> dict[str, Property]:
    """Read a table of ``hubspot_defaults``."""
    lines = table.replace("\n+ ", " ").strip().splitlines()
    return {one.name: one for one in map(_parse_property, filter(None, lines))}


def _parse_property(line: str) -> Property:
    name, label, kinds, group, flags, options, *_ = [part.strip() for part in f"{line} | | ".split("|")]
    type_, field_type = kinds.split()
    return Property(name, label, type_, field_type, group, flags, tuple(_parse_options(options)))


def _parse_options(text: str) -> Iterable[tuple[str, str]]:
    for part in filter(None, (one.strip() for one in text.split(","))):
        value, _, label = part.partition("=")
        yield value, label or value


class Schema:
    """The portal's definitions; starts with the defaults."""

    def __init__(self) -> None:
        self.objects: dict[str, ObjectType] = {}
        self._names: dict[str, str] = {}
        self.pipelines: dict[str, list[Pipeline]] = {}
        self.owners: tuple[tuple[str, str, str, str, int], ...] = defaults.OWNERS
        self.portal_id = 44_237_313
        self._next_custom = 1
        for name, singular, type_id, table, required, shown in defaults.OBJECTS:
            fields = tuple(shown.split()) or ("hs_createdate", "hs_lastmodifieddate", "hs_object_id")
            kind = ObjectType(name, singular, type_id, parse_properties(table), tuple(required.split()), fields)
            self._enter(kind, singular)
        for name, (_, _, pipeline_id, label, stages) in defaults.PIPELINES.items():
            self.pipelines[name] = [Pipeline(pipeline_id, label, dict(_parse_options(stages)))]

    def _enter(self, kind: ObjectType, *aliases: str) -> None:
        self.objects[kind.name] = kind
        for alias in (kind.name, kind.type_id, *aliases):
            self._names[alias.lower()] = kind.name

    def resolve(self, text: str) -> ObjectType:
        """Find an object type by name, singular, type id or qualified name. Raises RefusedError."""
        name = self._names.get(text.lower())
        if name is None:
            raise RefusedError(400, f"Unable to infer object type from: {text}")
        return self.objects[name]

    def qualified(self, kind: ObjectType) -> str:
        """Return the fully qualified name: ``p{portal}_{name}`` for custom objects."""
        return f"p{self.portal_id}_{kind.name}" if kind.custom else kind.singular.upper()

    def add_object(self, raw: Mapping[str, Any]) -> ObjectType:
        """Define a custom object from the body of ``POST /crm/v3/schemas``. Raises RefusedError."""
        missing = [name for name in ("name", "labels", "properties") if not raw.get(name)]
        if missing:
            raise missing_fields(*missing)
        name = str(raw["name"])
        if name.lower() in self._names:
            raise RefusedError(409, f"Object type {name} already exists", "OBJECT_ALREADY_EXISTS")
        labels = raw["labels"]
        kind = ObjectType(
            name,
            name,
            f"2-{self._next_custom}",
            parse_properties(defaults.CUSTOM),
            tuple(raw.get("requiredProperties") or ()),
            ("hs_createdate", "hs_lastmodifieddate", "hs_object_id"),
            str(raw.get("primaryDisplayProperty") or "hs_object_id"),
            (str(labels.get("singular") or name), str(labels.get("plural") or name)),
        )
        for one in raw["properties"]:
            self.add_property(kind, {"groupName": f"{name}_information", **one})
        self._next_custom += 1
        self._enter(kind, f"p{self.portal_id}_{name}")
        return kind

    def add_property(self, kind: ObjectType, raw: Mapping[str, Any], *, redefine: bool = False) -> Property:
        """Define a property from the body of ``POST /crm/v3/properties/{type}``. Raises RefusedError."""
        missing = [name for name in ("name", "type", "fieldType", "groupName") if not raw.get(name)]
        if missing:
            raise missing_fields(*missing)
        one = _property_of(raw)
        if one.name in kind.properties and not redefine:
            raise RefusedError(
                409,
                f"A property named '{one.name}' already exists.",
                "OBJECT_ALREADY_EXISTS",
                subCategory="Properties.PROPERTY_WITH_NAME_EXISTS",
                context={"name": [one.name]},
            )
        if one.unique and len([name for name in kind.key_names if name != one.name]) >= MAX_UNIQUE:
            raise RefusedError(400, f"At most {MAX_UNIQUE} unique properties are allowed per object", VALIDATION)
        kind.define(one)
        return one

    def choices(self, kind: ObjectType, one: Property, pipeline: str | None = None) -> Sequence[str]:
        """Return the values that an enumeration accepts now; stages are those of ``pipeline`` if it is given."""
        if one.name == "hubspot_owner_id":
            return [owner[0] for owner in self.owners]
        if kind.name in defaults.PIPELINES:
            pipeline_property, stage_property, *_ = defaults.PIPELINES[kind.name]
            known = self.pipelines[kind.name]
            if one.name == pipeline_property:
                return [each.id for each in known]
            if one.name == stage_property:
                return [stage for each in known if pipeline in {None, each.id} for stage in each.stages]
        return [value for value, _ in one.options]

    def store_value(self, kind: ObjectType, one: Property, text: str, stored: str, pipeline: str | None) -> str:
        """Turn what was sent into what is stored. Raises ValueRefusedError. ``stored`` is the present value."""
        if not text:
            return ""
        if one.name == EMAIL and kind.name == "contacts":
            return store_email(text)
        if one.name == MORE_EMAILS:
            return store_emails(text)
        match one.type:
            case "number":
                return store_number(text)
            case "date":
                return store_date(text)
            case "datetime":
                return store_datetime(text)
            case "bool":
                return store_option(text, ("true", "false"))
            case "enumeration" if one.field_type == "checkbox":
                return store_options(text, self.choices(kind, one), stored)
            case "enumeration":
                return store_option(text, self.choices(kind, one, pipeline))
            case _:
                return store_text(text)


def _property_of(raw: Mapping[str, Any]) -> Property:
    name, type_ = str(raw["name"]), str(raw["type"])
    if name != name.lower() or len(name) > MAX_NAME or not name.replace("_", "").isalnum():
        raise RefusedError(400, f"Property name {name} is not valid", VALIDATION)
    if type_ not in TYPES:
        raise RefusedError(400, f"Property type {type_} is not valid", VALIDATION)
    if raw.get("hasUniqueValue") and type_ not in {"string", "number"}:
        raise RefusedError(400, "Only text and number properties can have unique values", VALIDATION)
    flags = "".join(
        flag
        for flag, member in (("u", "hasUniqueValue"), ("h", "hidden"), ("f", "formField"), ("r", "readOnlyValue"))
        if raw.get(member)
    )
    options = tuple((str(one["value"]), str(one.get("label") or one["value"])) for one in raw.get("options") or ())
    if type_ == "bool" and not options:
        options = (("true", "Yes"), ("false", "No"))
    plain = Property(name, str(raw.get("label") or name), type_, str(raw["fieldType"]), str(raw["groupName"]))
    return replace(plain, flags=flags + "p", options=options, description=str(raw.get("description") or ""))
