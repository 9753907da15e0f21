"""What describe tells of objects and fields, and the resource lists around it."""

from __future__ import annotations

from typing import Any, Final

from cdcsync.sandbox.salesforce_schema import NUMBER_TYPES, Entity, Field, Schema

MINIMUM_VERSION: Final = 31
MAXIMUM_VERSION: Final = 67
_RETIRED: Final = range(1, 31)
_SOAP: Final = {
    "boolean": "xsd:boolean",
    "date": "xsd:date",
    "datetime": "xsd:dateTime",
    "id": "tns:ID",
    "reference": "tns:ID",
    "int": "xsd:int",
    "double": "xsd:double",
    "currency": "xsd:double",
    "percent": "xsd:double",
}


def retired(version: int) -> bool:
    """Whether an API version has been switched off (410)."""
    return version in _RETIRED


def versions() -> list[dict[str, str]]:
    """List the API versions, as ``/services/data/`` does."""
    return [
        {"label": f"API {number}", "url": f"/services/data/v{number}.0", "version": f"{number}.0"}
        for number in range(MINIMUM_VERSION, MAXIMUM_VERSION + 1)
    ]


def resources(root: str) -> dict[str, str]:
    """List the resources under ``/services/data/vXX.0``."""
    names = ("sobjects", "query", "queryAll", "limits", "jobs", "composite")
    return {"identity": "/services/oauth2/userinfo", **{name: f"{root}/{name}" for name in names}}


def _summary(entity: Entity, root: str) -> dict[str, Any]:
    base = f"{root}/sobjects/{entity.name}"
    return {
        "name": entity.name,
        "label": entity.label,
        "labelPlural": f"{entity.label}s",
        "keyPrefix": entity.prefix,
        "custom": entity.name.endswith("__c"),
        "createable": True,
        "updateable": True,
        "deletable": True,
        "undeletable": True,
        "queryable": True,
        "retrieveable": True,
        "searchable": True,
        "urls": {"sobject": base, "describe": f"{base}/describe", "rowTemplate": f"{base}/{{ID}}"},
    }


def describe_global(schema: Schema, root: str) -> dict[str, Any]:
    """List all objects."""
    objects = [_summary(entity, root) for entity in schema.entities.values()]
    return {"encoding": "UTF-8", "maxBatchSize": 200, "sobjects": objects}


def describe(schema: Schema, entity: Entity, root: str) -> dict[str, Any]:
    """Describe one object with its fields and the objects that refer to it."""
    children = [
        {
            "childSObject": child.entity.name,
            "field": child.field.name,
            "cascadeDelete": child.field.cascade,
            "restrictedDelete": False,
            "relationshipName": f"{child.entity.name.removesuffix('__c')}s",
        }
        for child in schema.children(entity)
    ]
    members = [_member(member) for member in entity.fields.values()]
    return {**_summary(entity, root), "fields": members, "childRelationships": children}


def _member(member: Field) -> dict[str, Any]:
    numeric = member.type in NUMBER_TYPES
    return {
        "name": member.name,
        "label": member.titled,
        "type": member.type,
        "soapType": _SOAP.get(member.type, "xsd:string"),
        "length": member.length,
        "byteLength": member.length * 3,
        "precision": 0 if member.type == "int" else member.precision,
        "scale": member.scale,
        "digits": member.precision if numeric and member.type == "int" else 0,
        "nillable": member.nillable,
        "createable": member.createable,
        "updateable": member.updateable,
        "defaultedOnCreate": member.defaulted,
        "defaultValue": False if member.type == "boolean" and member.default is None else member.default,
        "externalId": member.external_id,
        "unique": member.unique,
        "idLookup": member.id_lookup or member.type == "id",
        "caseSensitive": member.case_sensitive,
        "custom": member.custom,
        "calculated": member.calculated,
        "picklistValues": [
            {"active": True, "defaultValue": value == member.default, "label": value, "validFor": None, "value": value}
            for value in member.values
        ],
        "restrictedPicklist": member.restricted,
        "referenceTo": list(member.reference_to),
        "relationshipName": member.relationship,
        "polymorphicForeignKey": len(member.reference_to) > 1,
        "filterable": member.type != "textarea",
        "sortable": member.type != "textarea",
    }
