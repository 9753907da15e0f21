"""The objects that the sandbox org starts with: five standard ones, with a few custom fields on each."""

from __future__ import annotations

from typing import Any

from cdcsync.sandbox.salesforce_schema import Entity, Field, Schema

_SOURCES = ("Web", "Phone Inquiry", "Partner Referral", "Purchased List", "Other")
_INDUSTRIES = (
    "Agriculture",
    "Banking",
    "Construction",
    "Education",
    "Energy",
    "Finance",
    "Healthcare",
    "Manufacturing",
    "Retail",
    "Technology",
    "Transportation",
    "Other",
)
_STAGES = (
    "Prospecting",
    "Qualification",
    "Needs Analysis",
    "Proposal/Price Quote",
    "Negotiation/Review",
    "Closed Won",
    "Closed Lost",
)


def _text(name: str, label: str, length: int, **more: Any) -> Field:
    return Field(name, label, "string", length, **more)


def _area(name: str, label: str, length: int) -> Field:
    return Field(name, label, "textarea", length)


def _pick(name: str, label: str, values: tuple[str, ...], **more: Any) -> Field:
    return Field(name, label, "picklist", 255, values=values, **more)


def _number(name: str, label: str, precision: int, scale: int = 0, type_: str = "double") -> Field:
    return Field(name, label, type_, precision=precision, scale=scale)


def _bool(name: str, label: str) -> Field:
    return Field(name, label, "boolean", nillable=False, defaulted=True)


def _system(name: str, label: str, type_: str, **more: Any) -> Field:
    shape = {"nillable": False, "createable": False, "updateable": False, "defaulted": True, **more}
    return Field(name, label, type_, **shape)


def _reference(name: str, label: str, to: tuple[str, ...], relationship: str, **more: Any) -> Field:
    return Field(name, label, "reference", 18, reference_to=to, relationship=relationship, **more)


def base_fields() -> list[Field]:
    """List the fields that every object has: the system's own, and the custom ones of this org."""
    return [
        _system("Id", "Record ID", "id", length=18, id_lookup=True),
        _system("IsDeleted", "Deleted", "boolean"),
        _system("CreatedDate", "Created Date", "datetime"),
        _system("CreatedById", "Created By ID", "reference", length=18, reference_to=("User",)),
        _system("LastModifiedDate", "Last Modified Date", "datetime"),
        _system("LastModifiedById", "Last Modified By ID", "reference", length=18, reference_to=("User",)),
        _system("SystemModstamp", "System Modstamp", "datetime"),
        _text("External_Id__c", "External Id", 255, external_id=True, unique=True, id_lookup=True, case_sensitive=True),
        _number("Version__c", "Version", 18),
        _number("Score__c", "Score", 16, 2),
        _number("Count__c", "Count", 9),
        _pick("Level__c", "Level", ("Bronze", "Silver", "Gold"), restricted=True),
        _bool("Active__c", "Active"),
        Field("Signed_Up__c", "Signed Up", "datetime"),
        Field("Birth__c", "Birth", "date"),
        _area("Notes__c", "Notes", 131_072),
        Field("Second_Email__c", "Second Email", "email", 80),
        Field("Page__c", "Page", "url", 255),
    ]


def named_fields() -> list[Field]:
    """List what a custom object starts with: the base fields and a name that may be left out."""
    return [_text("Name", "Name", 80, nillable=False, defaulted=True, id_lookup=True), *base_fields()]


def _person() -> list[Field]:
    return [
        _text("LastName", "Last Name", 80, nillable=False),
        _text("FirstName", "First Name", 40),
        _pick("Salutation", "Salutation", ("Mr.", "Ms.", "Mrs.", "Dr.", "Prof.")),
        _system("Name", "Full Name", "string", length=121, defaulted=False, calculated=True),
        _text("Title", "Title", 128),
        Field("Phone", "Business Phone", "phone", 40),
        Field("MobilePhone", "Mobile Phone", "phone", 40),
        Field("Email", "Email", "email", 80, id_lookup=True),
        _pick("LeadSource", "Lead Source", _SOURCES),
        _area("Description", "Description", 32_000),
        _bool("HasOptedOutOfEmail", "Email Opt Out"),
    ]


def _address(prefix: str, label: str) -> list[Field]:
    return [
        _area(f"{prefix}Street", f"{label}Street", 255),
        _text(f"{prefix}City", f"{label}City", 40),
        _text(f"{prefix}State", f"{label}State/Province", 80),
        _text(f"{prefix}PostalCode", f"{label}Zip/Postal Code", 20),
        _text(f"{prefix}Country", f"{label}Country", 80),
    ]


def _account() -> Entity:
    own = [
        _text("Name", "Account Name", 255, nillable=False),
        _pick("Type", "Account Type", ("Prospect", "Customer - Direct", "Customer - Channel", "Other")),
        _reference("ParentId", "Parent Account", ("Account",), "Parent"),
        *_address("Billing", "Billing "),
        Field("Phone", "Account Phone", "phone", 40),
        Field("Website", "Website", "url", 255),
        _pick("Industry", "Industry", _INDUSTRIES),
        _number("AnnualRevenue", "Annual Revenue", 18, 0, "currency"),
        _number("NumberOfEmployees", "Employees", 8, 0, "int"),
        _text("AccountNumber", "Account Number", 40),
        _area("Description", "Account Description", 32_000),
    ]
    return Entity.of("Account", "Account", "001", [*own, *base_fields()])


def _contact() -> Entity:
    own = [
        _reference("AccountId", "Account", ("Account",), "Account", cascade=True),
        _reference("ReportsToId", "Reports To", ("Contact",), "ReportsTo"),
        *_person(),
        *_address("Mailing", "Mailing "),
        _text("Department", "Department", 80),
        Field("Birthdate", "Birthdate", "date"),
        _bool("DoNotCall", "Do Not Call"),
    ]
    return Entity.of("Contact", "Contact", "003", [*own, *base_fields()])


def _lead() -> Entity:
    own = [
        *_person(),
        _text("Company", "Company", 255, nillable=False),
        *_address("", ""),
        Field("Website", "Website", "url", 255),
        _pick("Status", "Lead Status", ("Open", "Working", "Closed"), nillable=False, defaulted=True, default="Open"),
        _pick("Rating", "Rating", ("Hot", "Warm", "Cold")),
        _pick("Industry", "Industry", _INDUSTRIES),
        _number("NumberOfEmployees", "Employees", 8, 0, "int"),
    ]
    return Entity.of("Lead", "Lead", "00Q", [*own, *base_fields()])


def _opportunity() -> Entity:
    own = [
        _reference("AccountId", "Account", ("Account",), "Account", cascade=True),
        _text("Name", "Name", 120, nillable=False),
        _pick("StageName", "Stage", _STAGES, nillable=False),
        Field("CloseDate", "Close Date", "date", nillable=False),
        _number("Amount", "Amount", 18, 2, "currency"),
        _number("Probability", "Probability (%)", 3, 0, "percent"),
        _pick("Type", "Opportunity Type", ("New Business", "Existing Business")),
        _pick("LeadSource", "Lead Source", _SOURCES),
        _text("NextStep", "Next Step", 255),
        _area("Description", "Description", 32_000),
    ]
    return Entity.of("Opportunity", "Opportunity", "006", [*own, *base_fields()])


def _task() -> Entity:
    statuses = ("Not Started", "In Progress", "Completed", "Waiting on someone else", "Deferred")
    own = [
        _reference("WhoId", "Name", ("Contact", "Lead"), "Who", cascade=True),
        _reference("WhatId", "Related To", ("Account", "Opportunity"), "What", cascade=True),
        Field("Subject", "Subject", "combobox", 255),
        Field("ActivityDate", "Due Date Only", "date"),
        _pick("Status", "Status", statuses, nillable=False, defaulted=True, default="Not Started"),
        _pick("Priority", "Priority", ("High", "Normal", "Low"), nillable=False, defaulted=True, default="Normal"),
        _area("Description", "Description", 32_000),
    ]
    return Entity.of("Task", "Task", "00T", [*own, *base_fields()])


def standard_schema() -> Schema:
    """Build the schema of a fresh sandbox org."""
    return Schema([_account(), _contact(), _lead(), _opportunity(), _task()])
