"""Objects and fields: what ``describe`` tells, and what values are checked against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

TEXT_TYPES: Final = frozenset({"string", "textarea", "email", "phone", "url", "picklist", "combobox"})
NUMBER_TYPES: Final = frozenset({"double", "currency", "percent", "int"})
TYPES: Final = TEXT_TYPES | NUMBER_TYPES | {"boolean", "date", "datetime", "reference", "id"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field. ``defaulted`` is describe's defaultedOnCreate, with ``default`` as the value that it gets.

    ``cascade`` on a reference: deleting the parent deletes the record; otherwise the reference is emptied.
    """

    name: str
    label: str
    type: str = "string"
    length: int = 0
    precision: int = 0
    scale: int = 0
    nillable: bool = True
    createable: bool = True
    updateable: bool = True
    defaulted: bool = False
    default: str | None = None
    external_id: bool = False
    unique: bool = False
    id_lookup: bool = False
    case_sensitive: bool = False
    values: tuple[str, ...] = ()
    restricted: bool = False
    reference_to: tuple[str, ...] = ()
    relationship: str | None = None
    cascade: bool = False
    calculated: bool = False

    @property
    def required(self) -> bool:
        """Whether a create must give it (facts 5)."""
        return self.createable and not self.nillable and not self.defaulted and self.type != "boolean"

    @property
    def matchable(self) -> bool:
        """Whether an upsert or a reference may find records by it."""
        return self.external_id or self.id_lookup

    @property
    def custom(self) -> bool:
        """Whether an administrator made it."""
        return self.name.endswith("__c")

    @property
    def titled(self) -> str:
        """The label as error messages show it: references with "ID"."""
        return f"{self.label} ID" if self.type == "reference" and not self.label.endswith("ID") else self.label


@dataclass(slots=True)
class Entity:
    """One object. ``fields`` are by lower-case name, since the API does not mind the case.

    ``indexed`` fields have an index of their own; ``linked`` names those and the references.
    """

    name: str
    label: str
    prefix: str
    fields: dict[str, Field] = field(default_factory=dict)
    relationships: dict[str, Field] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    indexed: list[Field] = field(default_factory=list)
    key_fields: list[str] = field(default_factory=list)
    linked: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, name: str, label: str, prefix: str, members: Iterable[Field]) -> Entity:
        """Build an object with its look-up tables."""
        entity = cls(name, label, prefix, {member.name.lower(): member for member in members})
        for member in entity.fields.values():
            if member.relationship:
                entity.relationships[member.relationship.lower()] = member
                entity.linked.add(member.name)
            if member.required:
                entity.required.append(member.name)
            if (member.matchable or member.unique) and member.type != "id":
                entity.indexed.append(member)
                entity.linked.add(member.name)
            if member.external_id:
                entity.key_fields.append(member.name)
        return entity

    def field(self, name: str) -> Field | None:
        """Find a field by name, in any case."""
        return self.fields.get(name.lower())


@dataclass(frozen=True, slots=True)
class Child:
    """A field of ``entity`` that refers to the parent in question."""

    entity: Entity
    field: Field


class Schema:
    """All objects of the org."""

    def __init__(self, entities: Iterable[Entity]) -> None:
        self.entities = {entity.name.lower(): entity for entity in entities}
        self.by_prefix = {entity.prefix: entity for entity in self.entities.values()}

    def entity(self, name: str) -> Entity | None:
        """Find an object by name, in any case."""
        return self.entities.get(name.lower())

    def children(self, parent: Entity) -> list[Child]:
        """List the fields that may refer to ``parent``."""
        return [
            Child(entity, member)
            for entity in self.entities.values()
            for member in entity.fields.values()
            if parent.name in member.reference_to
        ]

    def extended(self, objects: Mapping[str, Mapping[str, Any]], base: Iterable[Field]) -> Schema:
        """Return this schema with the ``objects`` setting applied. Raises ValueError for a bad definition.

        ``{"Invoice__c": {"label": "Invoice", "fields": {"Amount__c": {"type": "double", "scale": 2}}}}``
        adds objects and fields or changes those that are there; a field set to null is taken away. New objects start
        with the ``base`` fields. Members of a field are those of describe (``referenceTo``, ``externalId`` …).
        """
        entities = dict(self.entities)
        for name, raw in objects.items():
            known = entities.get(name.lower())
            members = dict(known.fields) if known else {member.name.lower(): member for member in base}
            for field_name, definition in (raw.get("fields") or {}).items():
                if definition is None:
                    members.pop(field_name.lower(), None)
                else:
                    members[field_name.lower()] = _defined(field_name, definition, members.get(field_name.lower()))
            prefix = known.prefix if known else f"a{len(entities):02d}"
            label = str(raw.get("label") or (known.label if known else name.removesuffix("__c").replace("_", " ")))
            entities[name.lower()] = Entity.of(known.name if known else name, label, prefix, members.values())
        return Schema(entities.values())


_MEMBERS: Final = {
    "label": "label",
    "type": "type",
    "length": "length",
    "precision": "precision",
    "scale": "scale",
    "nillable": "nillable",
    "createable": "createable",
    "updateable": "updateable",
    "defaultedOnCreate": "defaulted",
    "defaultValue": "default",
    "externalId": "external_id",
    "unique": "unique",
    "idLookup": "id_lookup",
    "caseSensitive": "case_sensitive",
    "picklistValues": "values",
    "restrictedPicklist": "restricted",
    "referenceTo": "reference_to",
    "relationshipName": "relationship",
    "cascadeDelete": "cascade",
    "calculated": "calculated",
}
_TUPLES: Final = frozenset({"values", "reference_to"})
_LENGTHS: Final = {
    "string": 255,
    "textarea": 32768,
    "email": 80,
    "phone": 40,
    "url": 255,
    "picklist": 255,
    "combobox": 255,
}


def _defined(name: str, raw: Mapping[str, Any], known: Field | None) -> Field:
    unknown = set(raw) - set(_MEMBERS)
    if unknown:
        raise ValueError(f"{name}: unknown members {sorted(unknown)}")
    given: dict[str, Any] = {
        _MEMBERS[member]: tuple(value) if _MEMBERS[member] in _TUPLES else value for member, value in raw.items()
    }
    start = known or Field(name, name.removesuffix("__c").replace("_", " "))
    made = replace(start, **given)
    if made.type not in TYPES:
        raise ValueError(f"{name}: unknown type {made.type!r}")
    if made.type == "reference" and not made.relationship:
        made = replace(made, relationship=name.removesuffix("__c") + "__r")
    if made.type in NUMBER_TYPES and not made.precision:
        made = replace(made, precision=18)
    if made.type in _LENGTHS and not made.length:
        made = replace(made, length=_LENGTHS[made.type])
    return made


assert set(_MEMBERS.values()) <= {member.name for member in fields(Field)}  # noqa: S101 - a typo here must not hide
