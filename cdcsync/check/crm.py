"""Whether a CRM lets us in and has what the mappings need; the adapters know what that means."""

from __future__ import annotations

from collections.abc import Sequence

from cdcsync.apply.base import Finding, OpenGate, Wanted
from cdcsync.apply.registry import create
from cdcsync.config import CrmConfig, FieldConfig, MapConfig
from cdcsync.errors import CdcsyncError
from cdcsync.model import Target


def check_crm(name: str, config: CrmConfig, maps: Sequence[MapConfig]) -> list[Finding]:
    """Log in and compare the mappings with the CRM's own description of its objects. Blocks."""
    findings = []
    subject = f"crm {name}: login"
    try:
        destination = create(name, config, OpenGate())
        try:
            destination.open()
            findings.append(Finding(subject, ok=True, message=f"{config.kind} lets us in"))
            subject = f"crm {name}"
            findings += destination.check([wanted(one) for one in maps])
        finally:
            destination.close()
    except CdcsyncError as error:
        findings.append(Finding(subject, ok=False, message=error.message, hint=error.hint))
    return findings


def wanted(one: MapConfig) -> Wanted:
    """Say what a mapping needs of its object."""
    return Wanted(
        mapping=one.name,
        target=Target(one.object, one.key_field),
        fields=_set_on_delete(one) | {name: _source(field) for name, field in one.fields.items()},
        links=[(link.to_object, link.type) for link in one.associate],
        deletes=one.on_delete == "delete",
        refs={name: (field.ref.object, field.ref.key_field) for name, field in one.fields.items() if field.ref},
        only_if_empty=one.only_if_empty,
    )


def _set_on_delete(one: MapConfig) -> dict[str, str]:
    return {name: f"on_delete, {value!r}" for name, value in one.tombstone.set.items()} if one.tombstone else {}


def _source(field: FieldConfig) -> str:
    if field.template is not None:
        return f'"{field.template}"'
    return f"{field.column} → {field.ref.object}.{field.ref.key_field}" if field.ref else field.column or ""
