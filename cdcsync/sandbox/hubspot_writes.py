"""One record's write: checked against schema and other records, and what it would store. Changes nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cdcsync.sandbox import hubspot_defaults as defaults
from cdcsync.sandbox.hubspot_answers import (
    Complaint,
    InvalidValue,
    already_exists,
    invalid_values,
    missing_required,
)
from cdcsync.sandbox.hubspot_schema import EMAIL, STAGE_PROPERTY, ObjectType
from cdcsync.sandbox.hubspot_store import Store, Stored, claims
from cdcsync.sandbox.hubspot_values import ValueRefusedError


@dataclass(slots=True)
class Planned:
    """What one input would do: create a record (``record`` is None) or change one; or what is wrong with it."""

    record: Stored | None
    sent: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)
    complaint: Complaint | None = None


class Planner:
    """Plans the writes of one request; knows the unique values that its earlier inputs claimed."""

    def __init__(self, store: Store, kind: ObjectType, first_stage: str | None, now: float) -> None:
        self._store = store
        self._kind = kind
        self._first_stage = first_stage
        self._now = now
        self._claimed: dict[tuple[str, str], Stored | None] = {}

    def plan(self, record: Stored | None, properties: Mapping[str, str | None]) -> Planned:
        """Check one write. ``record`` None creates; null values are left out, as if not sent."""
        planned = Planned(record, tuple(properties))
        stored = record.properties if record else {}
        values, invalid = self._values(properties, stored)
        if invalid:
            planned.complaint = invalid_values(invalid)
            return planned
        if record is None:
            values = self._with_defaults(values)
            missing = [name for name in self._kind.required if not values.get(name)]
            if missing:
                planned.complaint = missing_required(self._kind.singular, missing)
                return planned
        planned.values = self._derived(values, stored)
        planned.complaint = self._conflict(record, {**stored, **planned.values})
        return planned

    def _values(
        self, properties: Mapping[str, str | None], stored: Mapping[str, str]
    ) -> tuple[dict[str, str], list[InvalidValue]]:
        values: dict[str, str] = {}
        invalid: list[InvalidValue] = []
        pipeline = self._pipeline(properties, stored)
        for name, text in properties.items():
            one = self._kind.properties.get(name)
            if one is None:
                invalid.append(InvalidValue(name, "PROPERTY_DOESNT_EXIST", f'Property "{name}" does not exist'))
            elif text is None:
                continue
            elif one.read_only:
                message = f'"{name}" is a read only property; its value cannot be set.'
                invalid.append(InvalidValue(name, "READ_ONLY_VALUE", message))
            else:
                try:
                    value = self._store.schema.store_value(self._kind, one, text, stored.get(name, ""), pipeline)
                except ValueRefusedError as error:
                    invalid.append(InvalidValue(name, error.code, error.message))
                else:
                    values[name] = value
        if self._goes_back(values, stored):
            del values[STAGE_PROPERTY]
        return values, invalid

    def _pipeline(self, properties: Mapping[str, str | None], stored: Mapping[str, str]) -> str | None:
        if self._kind.name not in defaults.PIPELINES:
            return None
        name, _, default, *_ = defaults.PIPELINES[self._kind.name]
        return properties.get(name) or stored.get(name) or default

    def _goes_back(self, values: Mapping[str, str], stored: Mapping[str, str]) -> bool:
        """Whether this asks for an earlier life cycle stage, which HubSpot ignores without a word."""
        wanted, present = values.get(STAGE_PROPERTY), stored.get(STAGE_PROPERTY)
        if not wanted or not present:
            return False
        stages = [value for value, _ in self._kind.properties[STAGE_PROPERTY].options]
        return stages.index(wanted) < stages.index(present)

    def _with_defaults(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return what HubSpot fills in for a new record."""
        filled: dict[str, str] = {}
        if STAGE_PROPERTY in self._kind.properties and self._first_stage:
            filled[STAGE_PROPERTY] = self._first_stage
        if self._kind.name in defaults.PIPELINES:
            name, _, default, *_ = defaults.PIPELINES[self._kind.name]
            filled[name] = default
        return {**filled, **values}

    def _derived(self, values: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
        """Return what HubSpot changes by itself along with a write."""
        derived = dict(values)
        if self._kind.name == "contacts" and EMAIL in values:
            derived["hs_email_domain"] = values[EMAIL].rpartition("@")[2]
        if self._kind.name == "companies" and values.get("domain") and not stored.get("website"):
            derived.setdefault("website", values["domain"])
        return derived

    def _conflict(self, record: Stored | None, properties: Mapping[str, str]) -> Complaint | None:
        """Look for another record that holds one of the unique values; claims them if there is none."""
        wanted = sorted(claims(self._kind, properties))
        for claim in wanted:
            if claim in self._claimed and (record is None or self._claimed[claim] is not record):
                return self._taken(claim, record, None)
            holder = self._store.holder(self._kind, claim, self._now)
            if holder is not None and (record is None or holder != record.id):
                return self._taken(claim, record, holder)
        self._claimed.update(dict.fromkeys(wanted, record))
        return None

    def _taken(self, claim: tuple[str, str], record: Stored | None, holder: str | None) -> Complaint:
        name, value = claim
        if name == EMAIL:
            return already_exists(self._kind.singular, holder)
        own = record.id if record else self._store.next_id()
        coordinates = (
            f"portalId={self._store.schema.portal_id}, objectTypeId={self._kind.type_id}, "
            f"propertyName={name}, value={value}"
        )
        message = (
            f"Cannot set PropertyValueCoordinates{{{coordinates}}} on {own}. "
            f"{holder or 'Another input'} already has that value."
        )
        return invalid_values([InvalidValue(name, "CONFLICTING_UNIQUE_VALUE", message)], conflict=True)
