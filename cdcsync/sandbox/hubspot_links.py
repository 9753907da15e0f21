"""Associations of records: what requests mean by ids and type ids, checked against types and records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdcsync.sandbox.hubspot_answers import VALIDATION, RefusedError, missing_fields, not_found
from cdcsync.sandbox.hubspot_association_types import HUBSPOT, AssociationType
from cdcsync.sandbox.hubspot_inputs import as_objects, as_text, record_id
from cdcsync.sandbox.hubspot_portal import Portal
from cdcsync.sandbox.hubspot_schema import ObjectType
from cdcsync.sandbox.hubspot_store import Stored


@dataclass(frozen=True, slots=True)
class Planned:
    """Associations to write from one record: to which, and of which types."""

    target: ObjectType
    target_id: str
    types: tuple[AssociationType, ...]


class Links:
    """Reads and writes associations between the records of a portal."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def types(self, source: ObjectType, target: ObjectType) -> list[AssociationType]:
        """Return the association types of one direction. Raises RefusedError if there can be none."""
        found = self._portal.association_types.between(source.name, target.name, custom=source.custom or target.custom)
        if not found:
            message = f"No association types between {source.type_id} and {target.type_id}"
            raise RefusedError(400, message, VALIDATION)
        return found

    def types_of(self, source: ObjectType, target: ObjectType, specs: object) -> tuple[AssociationType, ...]:
        """Return the types that a request's ``types`` mean. Raises RefusedError for one of another direction."""
        known = {one.spec: one for one in self.types(source, target)}
        wanted = []
        for raw in as_objects(specs):
            category, type_id = read_spec(raw)
            if (category, type_id) not in known:
                message = (
                    f"Association type {type_id} ({category}) is not valid from {source.type_id} to {target.type_id}"
                )
                raise RefusedError(400, message, VALIDATION)
            wanted.append(known[category, type_id])
        if not wanted:
            raise missing_fields("types")
        return tuple(wanted)

    def plan(self, source: ObjectType, associations: Iterable[Mapping[str, Any]]) -> list[Planned]:
        """Read the ``associations`` of a create. Raises RefusedError; both ends' types follow from the type ids."""
        planned = []
        for raw in associations:
            target_id = record_id(raw.get("to"))
            specs = as_objects(raw.get("types") or [])
            if not specs:
                raise missing_fields("types")
            target = self._target_of(source, specs[0])
            if self._portal.store.get(target, target_id) is None:
                raise RefusedError(400, f"{target_id} is not a valid ID", VALIDATION, context={"id": [target_id]})
            planned.append(Planned(target, target_id, self.types_of(source, target, specs)))
        return planned

    def _target_of(self, source: ObjectType, raw: Mapping[str, Any]) -> ObjectType:
        spec = read_spec(raw)
        for target in self._portal.schema.objects.values():
            pair = self._portal.association_types.between(
                source.name, target.name, custom=source.custom or target.custom
            )
            if any(one.spec == spec for one in pair):
                return target
        raise RefusedError(
            400, f"Association type {spec[1]} ({spec[0]}) is not valid from {source.type_id}", VALIDATION
        )

    def write(self, record: Stored, planned: Sequence[Planned]) -> None:
        """Write the associations of a new record; they are part of its creation for the books."""
        for one in planned:
            self.connect(record, one.target, one.target_id, one.types)

    def connect(self, record: Stored, target: ObjectType, target_id: str, types: Iterable[AssociationType]) -> bool:
        """Associate two records; a labelled association is an unlabelled one too. Returns whether anything changed."""
        plain = next((one for one in self.types(record.kind, target) if one.label is None), None)
        associations = self._portal.store.associations
        wanted = dict.fromkeys([*([plain] if plain else []), *types])
        changed = [associations.link(one, record.id, target_id) for one in wanted]
        return any(changed)

    def print_for(self, record: Stored, names: Iterable[str]) -> dict[str, Any]:
        """Return the ``associations`` member of a single record."""
        printed = {}
        for name in names:
            target = self._portal.schema.resolve(name)
            linked = self._portal.store.associations.of(record.kind.name, record.id).get(target.name, {})
            listed = [{"id": other, "type": f"{record.kind.singular}_to_{target.singular}"} for other in linked]
            if listed:
                printed[target.name] = {"results": listed}
        return printed

    def print_types(self, record: Stored, target: ObjectType, specs: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
        """``associationTypes`` of one association."""
        known = {one.spec: one for one in self.types(record.kind, target)}
        return [known[spec].as_label() for spec in sorted(specs)]

    def record(self, kind: ObjectType, text: str) -> Stored:
        """Return a live record. Raises RefusedError."""
        found = self._portal.store.get(kind, text)
        if found is None:
            raise not_found()
        return found


def read_spec(raw: Mapping[str, Any]) -> tuple[str, int]:
    """Category and type id of a request's association type. Raises RefusedError."""
    try:
        type_id = int(as_text(raw.get("associationTypeId")) or "")
    except ValueError as error:
        raise missing_fields("associationTypeId") from error
    return as_text(raw.get("associationCategory")) or HUBSPOT, type_id
